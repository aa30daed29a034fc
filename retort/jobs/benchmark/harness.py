"""What runs in processes of their own: the harness reads tasks, then asks one model after another.

With `opening` and `scoring` the only door to lm_eval. Prompts, few-shot examples and scores are the
harness's own; it is told which model and tasks, and to use the model's chat template. The surprise:
where all that is needed lies on this machine, the network is switched off.
"""

import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retort.errors import DataError, SpecError, did_you_mean
from retort.events import Reporter
from retort.jobs.benchmark.opening import open_model
from retort.jobs.benchmark.scoring import OTHER_SEED, scored, seed
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
# What `datasets` calls files that lie here, and never looks for at a hub.
FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text", "pandas")
TaskSettings = dict[str, Any]  # include_path, num_fewshot, limit: as the parent gives them
Facts = dict[str, Any]


def plan(tasks: list[str], settings: TaskSettings, report: Reporter) -> dict[str, Facts]:
    """Returns each asked task, a pattern such as mmlu_* resolved, with what it asks.

    `digest` names its questions and manner, `generates` says that it is answered in text alone,
    `is_local` that its data lie on this machine, `folder` where it and its `members` are defined.
    Raises `SpecError` for a name there is not, `DataError` where the data cannot be loaded.
    """
    os.environ.update(SILENCE)
    manager = _manager(tasks, settings["include_path"])
    names: list[str] = []
    for asked in tasks:
        found = sorted(manager.match_tasks([asked]))
        if not found:
            raise SpecError(
                f"--tasks: unknown task {asked}{did_you_mean(asked, manager.all_tasks)}; give "
                "names of lm-evaluation-harness, or --include-path with the folder of your own"
            )
        names += [name for name in found if name not in names]
    planned = {}
    for index, name in enumerate(names):
        report.progress(index, len(names), "tasks", name)
        loaded = _load(manager, name, settings)
        planned[name] = _described(loaded, settings["limit"]) | _places(manager, name)
    return planned


def measure(
    model: Facts, tasks: list[Facts], settings: TaskSettings, out: str, report: Reporter
) -> None:
    """Answers tasks with one model; writes each task's result as soon as it is there.

    `model` has role, kind (hf, vllm or endpoint) and what that kind needs; a task has name, key
    and is_local. The result of a task is `benchmarks/KEY.json` in the folder `out`.
    """
    is_local = all(task["is_local"] for task in tasks) and model.get("is_local", True)
    os.environ.update(SILENCE | (OFFLINE if is_local else {}))
    report.progress(0, len(tasks), "tasks", "loading")
    manager = _manager_of(tasks, settings["include_path"])
    opened = open_model(model, all(task["generates"] for task in tasks))
    for index, task in enumerate(tasks):
        report.progress(index, len(tasks), "tasks", task["name"])
        loaded = _load(manager, task["name"], settings)
        if _questions(loaded["tasks"].values(), settings["limit"]) != task["questions"]:
            raise DataError(
                f"task {task['name']}: its questions are others than a moment ago: its data "
                "changed, or it draws them by chance; models cannot be compared on it"
            )
        facts = {key: settings[key] for key in ("limit", "num_fewshot")} | {
            "digest": task["digest"],
            **scored(opened, loaded, task["name"], settings["limit"]),
        }
        Folder(out).write_json(f"benchmarks/{task['key']}.json", facts)
    report.progress(len(tasks), len(tasks), "tasks", "done")


def _manager(names: list[str], include_path: str | None) -> Any:
    """Returns the index of tasks: of the user's folder alone where that holds all that is named,
    for reading the harness's own 14,000 tasks takes many seconds."""
    from lm_eval.tasks import TaskManager

    if include_path:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if _members(own, names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=include_path)


def _manager_of(tasks: list[Facts], include_path: str | None) -> Any:
    """Returns the index of tasks that were planned: of their folders alone where those tell the
    same of them."""
    from lm_eval.tasks import TaskManager

    folders = sorted({task["folder"] for task in tasks})
    some = TaskManager(include_path=folders, include_defaults=False)
    if all(sorted(_members(some, [task["name"]])) == task["members"] for task in tasks):
        return some
    return TaskManager(include_path=include_path)


def _members(manager: Any, names: Iterable[str]) -> set[str]:
    """Returns names of tasks, groups and tags, and of all that the latter two are made of."""
    found = set(names)
    for name in names:
        entry = manager.task_index.get(name)
        if entry is None:
            continue
        listed = (entry.cfg or {}).get("task")
        parts = listed if isinstance(listed, list) else []
        named = [part if isinstance(part, str) else part.get("task") for part in parts]
        if entry.yaml_path is None:  # a tag, which is known by the tasks that bear it
            named += entry.tags
        found |= _members(manager, [part for part in named if isinstance(part, str)])
    return found


def _places(manager: Any, name: str) -> Facts:
    """Returns the `members` of a task, and the `folder` in which all of them are defined."""
    members = sorted(_members(manager, [name]))
    entries = (manager.task_index.get(member) for member in members)
    folders = {str(e.yaml_path.parent) for e in entries if e is not None and e.yaml_path}
    return {"members": members, "folder": os.path.commonpath(folders)}


def _load(manager: Any, name: str, settings: TaskSettings) -> dict[str, Any]:
    """Returns a task, or the tasks of a group, with data loaded and few-shot examples chosen."""
    seed()  # some tasks shuffle their options while they load
    try:
        loaded: dict[str, Any] = manager.load([name])
    except Exception as error:  # whatever a dataset's or task's loading can raise
        cause = (str(error).strip() or "no reason given").splitlines()[0]
        raise DataError(
            f"task {name}: its data or definition cannot be loaded ({type(error).__name__}: "
            f"{cause[:300]}); where there is no network, give a task on local files with "
            "--include-path DIR"
        ) from error
    for each in loaded["tasks"].values():
        if getattr(each, "UNSAFE_CODE", False) or getattr(each, "MULTIMODAL", False):
            raise SpecError(
                f"task {name}: it runs code that a model wrote, or shows pictures; leave it out"
            )
        own = each.get_config("num_fewshot")
        # A task that says 0 means it: the harness never changes that.
        if own is None or (settings["num_fewshot"] is not None and own != 0):
            each.set_config(key="num_fewshot", value=settings["num_fewshot"] or 0)
        each.set_fewshot_seed(seed=OTHER_SEED)
    return loaded


def _described(loaded: dict[str, Any], limit: int | None) -> Facts:
    """Returns what a loaded task asks: see `plan`."""
    each = loaded["tasks"].values()
    questions = _questions(each, limit)
    return {
        "digest": sha256_of([questions, [_manner(task) for task in each]]),
        "questions": questions,
        "generates": all(task.OUTPUT_TYPE == "generate_until" for task in each),
        "is_local": all(_is_local(task.config) for task in each),
    }


def _questions(tasks: Iterable[Any], limit: int | None) -> str:
    """Returns the digest of all that is asked, and of the examples that may stand before it."""
    seed()
    found = []
    for task in tasks:
        shots = task.fewshot_docs() if task.get_config("num_fewshot") else []
        found += [[_plain(doc) for doc in docs] for docs in (list(task.eval_docs)[:limit], shots)]
    return sha256_of(found)


def _manner(task: Any) -> Any:
    """Returns how a task asks and scores; where its data lie does not count."""
    told = {k: v for k, v in task.dump_config().items() if k not in ("metadata", "dataset_kwargs")}
    return _plain([told, task.VERSION])


def _plain(value: Any) -> Any:
    """Returns a value as JSON, the same in every process; a function as its source."""
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
    """Whether a task's data are files of this machine."""
    files = str((config.dataset_kwargs or {}).get("data_files", ""))
    path = str(config.dataset_path or "")
    return "://" not in files and (path in FILE_FORMATS or Path(path).is_dir())
