"""The parts that run in child processes: reading tasks, and running one model on them.

With `opening` and `scoring` it is the only place that imports lm_eval. Prompts, few-shot examples
and scores are the harness's own; Retort chooses model and tasks, and the model's chat template.
Note: where model and data are on this machine, the hub's libraries are set to offline.
"""

import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from retort.errors import DataError, SpecError, did_you_mean
from retort.events import Reporter
from retort.jobs.benchmark.opening import ModelOptions, open_model
from retort.jobs.benchmark.scoring import OTHER_SEED, TaskResult, scored, seed
from retort.records import sha256_of
from retort.store import Folder

SILENCE = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# The names by which `datasets` reads local files, and never looks for a dataset at a hub.
FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text", "pandas")


class TaskSettings(TypedDict):
    """What the user chose of all tasks."""

    include_path: str | None
    num_fewshot: int | None
    limit: int | None


class PlannedTask(TypedDict):
    """A task, or a group of tasks, before it is run.

    `digest` names its questions and how it asks and scores, `questions` the questions alone;
    `generates` says that a model answers it in text alone, `is_local` that its data are on this
    machine; `folder` is where it and its `members` are defined.
    """

    digest: str
    questions: str
    generates: bool
    is_local: bool
    members: list[str]
    folder: str


class MissingTask(PlannedTask):
    """A planned task with its name, and the key of the result that is missing."""

    name: str
    key: str


class StoredResult(TaskResult):
    """A result of a task as it is kept, with how it was asked; `digest` is the planned task's."""

    digest: str
    limit: int | None
    num_fewshot: int | None


def plan(tasks: list[str], settings: TaskSettings, report: Reporter) -> dict[str, PlannedTask]:
    """Returns the tasks by name, with patterns such as mmlu_* resolved.

    Raises `SpecError` for an unknown name, `DataError` where data cannot be loaded.
    """
    os.environ.update(SILENCE)
    manager = _manager(tasks, settings["include_path"])
    names: list[str] = []
    for pattern in tasks:
        matches = sorted(manager.match_tasks([pattern]))
        if not matches:
            raise SpecError(
                f"--tasks: unknown task {pattern}{did_you_mean(pattern, manager.all_tasks)}; give "
                "names of lm-evaluation-harness, or --include-path with the folder of your own"
            )
        names += [name for name in matches if name not in names]
    planned: dict[str, PlannedTask] = {}
    for index, name in enumerate(names):
        report.progress(index, len(names), "tasks", name)
        loaded = _load(manager, name, settings)
        planned[name] = _planned(manager, name, loaded, settings["limit"])
    return planned


def measure(
    model: ModelOptions,
    tasks: list[MissingTask],
    settings: TaskSettings,
    out: str,
    report: Reporter,
) -> None:
    """Runs one model on tasks; writes each task's result as soon as it is there.

    The result of a task is `benchmarks/KEY.json` in the folder `out`.
    """
    is_local = all(task["is_local"] for task in tasks) and model["is_local"]
    os.environ.update(SILENCE | (OFFLINE if is_local else {}))
    report.progress(0, len(tasks), "tasks", "loading")
    manager = _manager_of(tasks, settings["include_path"])
    opened = open_model(model, all(task["generates"] for task in tasks))
    for index, task in enumerate(tasks):
        report.progress(index, len(tasks), "tasks", task["name"])
        loaded = _load(manager, task["name"], settings)
        if _questions(loaded["tasks"].values(), settings["limit"]) != task["questions"]:
            raise DataError(
                f"task {task['name']}: its questions changed since it was read: its data changed, "
                "or it draws them at random; models cannot be compared on it, so leave it out"
            )
        result: StoredResult = {
            "limit": settings["limit"],
            "num_fewshot": settings["num_fewshot"],
            "digest": task["digest"],
            **scored(opened, loaded, task["name"], settings["limit"]),
        }
        Folder(out).write_json(f"benchmarks/{task['key']}.json", {**result})
    report.progress(len(tasks), len(tasks), "tasks", "done")


def _manager(names: list[str], include_path: str | None) -> Any:
    """Returns the index of tasks: of the user's folder alone where that defines all that are named,
    because reading the harness's own 14,000 tasks takes many seconds."""
    from lm_eval.tasks import TaskManager

    if include_path:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if _members(own, names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=include_path)


def _manager_of(tasks: list[MissingTask], include_path: str | None) -> Any:
    """Returns the index of planned tasks: of their folders alone where those define the same."""
    from lm_eval.tasks import TaskManager

    folders = sorted({task["folder"] for task in tasks})
    some = TaskManager(include_path=folders, include_defaults=False)
    if all(sorted(_members(some, [task["name"]])) == task["members"] for task in tasks):
        return some
    return TaskManager(include_path=include_path)


def _members(manager: Any, names: Iterable[str]) -> set[str]:
    """Returns the names of tasks, groups and tags, with those that the latter two consist of."""
    members = set(names)
    for name in names:
        entry = manager.task_index.get(name)
        if entry is None:
            continue
        listed = (entry.cfg or {}).get("task")
        parts = listed if isinstance(listed, list) else []
        named = [part if isinstance(part, str) else part.get("task") for part in parts]
        if entry.yaml_path is None:  # a tag: its entry lists the tasks that have it
            named += entry.tags
        members |= _members(manager, [part for part in named if isinstance(part, str)])
    return members


def _load(manager: Any, name: str, settings: TaskSettings) -> dict[str, Any]:
    """Returns a task, or the tasks of a group, with data loaded and few-shot examples chosen, as
    the harness's own `simple_evaluate` chooses them."""
    seed()  # some tasks shuffle their options while they load
    try:
        loaded: dict[str, Any] = manager.load([name])
    except Exception as error:  # a dataset or a task can raise anything
        cause = (str(error).strip() or "no reason given").splitlines()[0]
        raise DataError(
            f"task {name}: its data or definition cannot be loaded ({type(error).__name__}: "
            f"{cause[:300]}); without a network, use a task on local files with --include-path DIR"
        ) from error
    for each in loaded["tasks"].values():
        if getattr(each, "UNSAFE_CODE", False) or getattr(each, "MULTIMODAL", False):
            raise SpecError(
                f"task {name} runs code that a model wrote, or shows images; leave it out"
            )
        own = each.get_config("num_fewshot")
        # The harness never changes a task's own 0.
        if own is None or (settings["num_fewshot"] is not None and own != 0):
            each.set_config(key="num_fewshot", value=settings["num_fewshot"] or 0)
        each.set_fewshot_seed(seed=OTHER_SEED)
    return loaded


def _planned(manager: Any, name: str, loaded: dict[str, Any], limit: int | None) -> PlannedTask:
    """Returns the facts of a loaded task."""
    each, members = loaded["tasks"].values(), sorted(_members(manager, [name]))
    entries = (manager.task_index.get(member) for member in members)
    folders = {str(e.yaml_path.parent) for e in entries if e is not None and e.yaml_path}
    questions = _questions(each, limit)
    return {
        "digest": sha256_of([questions, [_protocol(task) for task in each]]),
        "questions": questions,
        "generates": all(task.OUTPUT_TYPE == "generate_until" for task in each),
        "is_local": all(_is_local(task.config) for task in each),
        "members": members,
        "folder": os.path.commonpath(folders),
    }


def _questions(tasks: Iterable[Any], limit: int | None) -> str:
    """Returns the digest of all questions, and of the few-shot examples to choose from."""
    seed()
    texts = []
    for task in tasks:
        shots = task.fewshot_docs() if task.get_config("num_fewshot") else []
        texts += [[_plain(doc) for doc in docs] for docs in (list(task.eval_docs)[:limit], shots)]
    return sha256_of(texts)


def _protocol(task: Any) -> Any:
    """Returns how a task asks and scores, wherever its data are."""
    config = task.dump_config()
    kept = {k: v for k, v in config.items() if k not in ("metadata", "dataset_kwargs")}
    return _plain([kept, task.VERSION])


def _plain(value: Any) -> Any:
    """Returns a value as JSON, the same in every process; a function as its source code."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__name__)
    known = isinstance(value, str | int | float | bool | None)
    return value if known else re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _is_local(config: Any) -> bool:
    """Whether a task's data are files on this machine."""
    files = str((config.dataset_kwargs or {}).get("data_files", ""))
    path = str(config.dataset_path or "")
    return "://" not in files and (path in FILE_FORMATS or Path(path).is_dir())
