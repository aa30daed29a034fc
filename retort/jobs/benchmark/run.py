"""One benchmark of one job: which results are missing, the processes that make them, the summary.

A result is stored under the digest of model, questions and settings. Nothing else (the spec, the
store's address, other tasks) makes it anew.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from retort import processes
from retort.engines import resolve
from retort.errors import SpecError
from retort.events import Reporter
from retort.jobs.benchmark import harness
from retort.jobs.benchmark.candidates import BenchmarkedModel, candidates, is_folder, longest
from retort.jobs.benchmark.harness import MissingTask, PlannedTask, TaskSettings
from retort.jobs.benchmark.opening import ModelOptions
from retort.jobs.benchmark.results import FILE, Manner, gathered
from retort.metrics.comparison.shapes import Benchmarks
from retort.processes import machine
from retort.records import content_id
from retort.spec import JobSpec
from retort.store import Store, model_folder

ENGINES: dict[str, Literal["hf", "vllm"]] = {"vllm": "vllm", "transformers": "hf"}
BenchmarkPlan = dict[str, PlannedTask]  # by name


@dataclass(frozen=True)
class BenchmarkRequest:
    """The tasks and the models. `limit` is the most questions of a task, `num_fewshot` the examples
    before each (None: the task's own number). `max_length` is in tokens."""

    tasks: tuple[str, ...]
    roles: tuple[str, ...] = ("teacher", "base", "student")
    limit: int | None = None
    num_fewshot: int | None = None
    include_path: str | None = None
    engine: str = "auto"
    max_length: int | None = None

    @property
    def settings(self) -> TaskSettings:
        """The settings of all tasks."""
        given = self.include_path
        return {
            "include_path": str(Path(given).resolve()) if given else None,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
        }


def benchmark(
    spec: JobSpec, store: Store, wanted: BenchmarkRequest, report: Reporter
) -> Benchmarks:
    """Returns what public benchmarks say of the job's models, and leaves it in its
    `benchmarks.json`.

    Raises `SpecError` for a student not yet trained, an unknown task, model or engine, and
    `DataError` for a task whose data cannot be loaded.
    """
    if wanted.include_path and not Path(wanted.include_path).is_dir():
        raise SpecError(f"--include-path: there is no folder {wanted.include_path}")
    engine = resolve(wanted.engine, 0)
    if engine not in ENGINES:
        raise SpecError(f"--engine: {engine}; the harness has {' and '.join(ENGINES)}")
    models = candidates(spec, store, wanted.roles)
    manner = Manner(
        machine.version_of("lm_eval"),
        engine,
        spec.evaluate.dtype,
        longest(spec, wanted.max_length),
    )
    planned = _planned(spec, store, wanted, report)
    job, left_out = store.job(spec.name), list[str]()
    keys: dict[str, dict[str, str]] = {}
    for index, model in enumerate(models):
        tasks, notes = _runnable(model, planned)
        left_out += notes
        keys[model.role] = {task: _key(model, wanted, manner, planned[task]) for task in tasks}
        missing: list[MissingTask] = [
            {"name": task, "key": key, **planned[task]}
            for task, key in keys[model.role].items()
            if not job.has(f"benchmarks/{key}.json")
        ]
        names = {task["name"] for task in missing}
        if finished := [task for task in tasks if task not in names]:
            report.note(f"{model.role}: {', '.join(finished)} already finished")
        if missing:
            part = report.part(model.role, index, len(models))
            _measure(spec, store, model, (wanted.settings, manner, missing), part)
    content = gathered(spec, store, manner, keys, left_out)
    job.write_json(FILE, asdict(content))
    return content


def _planned(
    spec: JobSpec, store: Store, wanted: BenchmarkRequest, report: Reporter
) -> BenchmarkPlan:
    return processes.run(
        harness.plan,
        {"tasks": list(wanted.tasks), "settings": wanted.settings},
        report.part("reading", 0, 1),
        store.log(spec.name),
        spec.evaluate.runtime.model_dump(mode="json"),
    )


def _runnable(model: BenchmarkedModel, planned: BenchmarkPlan) -> tuple[list[str], list[str]]:
    """Returns the tasks that a model can run, and a note on each other one."""
    if model.settings is None:
        return list(planned), []
    tasks = [name for name, task in planned.items() if task["generates"]]
    return tasks, [
        f"{name} is not run on the {model.role}: it needs the probability of given answers, "
        "which a chat endpoint does not give"
        for name in planned
        if name not in tasks
    ]


def _key(
    model: BenchmarkedModel, wanted: BenchmarkRequest, manner: Manner, task: PlannedTask
) -> str:
    """Returns the key of a result: the digest of model, questions and settings."""
    chosen = {"num_fewshot": wanted.num_fewshot, "limit": wanted.limit, **asdict(manner)}
    if model.settings:
        chosen = {key: chosen[key] for key in ("num_fewshot", "limit", "lm_eval_version")}
    return content_id({"model": model.digest, "task": task["digest"], **chosen})


def _measure(
    spec: JobSpec,
    store: Store,
    candidate: BenchmarkedModel,
    chosen: tuple[TaskSettings, Manner, list[MissingTask]],
    report: Reporter,
) -> None:
    """Runs a model on the missing tasks, in a process of its own."""
    settings, manner, missing = chosen
    runtime = spec.evaluate.runtime.model_dump(mode="json")
    with candidate.here() as address:
        model: ModelOptions = {
            "kind": "endpoint" if candidate.settings else ENGINES[manner.engine],
            "address": address,
            "is_local": is_folder(address),
            "dtype": _dtype(address, manner) if candidate.settings is None else None,
            "max_length": manner.max_length,
            "runtime": runtime,
            "settings": candidate.settings,
            "engine": candidate.engine,
        }
        processes.run(
            harness.measure,
            {
                "model": model,
                "tasks": missing,
                "settings": settings,
                "out": store.job(spec.name).uri,
            },
            report,
            store.log(spec.name),
            runtime,
        )


def _dtype(address: str, manner: Manner) -> str:
    """Returns the precision of the weights; vLLM's own auto would run float32 in bfloat16."""
    return model_folder.stored_dtype(address) if manner.dtype == "auto" else manner.dtype
