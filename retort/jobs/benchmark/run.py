"""One benchmark of one job: which results are missing, who makes them, and what they come to.

The surprise: a result stands for as long as model, questions and manner are the same; what names
it is their content, so nothing else (the spec, the store's place, other tasks) makes it anew.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort import processes
from retort.engines import resolve
from retort.errors import SpecError
from retort.events import Reporter
from retort.jobs.benchmark import harness
from retort.jobs.benchmark.candidates import BenchmarkedModel, candidates, is_folder, longest
from retort.jobs.benchmark.results import gathered
from retort.processes import machine
from retort.records import content_id
from retort.spec import JobSpec
from retort.store import Store, model_folder

ENGINES = {"vllm": "vllm", "transformers": "hf"}
BenchmarkPlan = dict[str, dict[str, Any]]  # by task: what `harness.plan` returns


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is asked of which models. `limit` is the most questions of a task, `num_fewshot` the
    examples before each; the task's own where None. `max_length` is in tokens."""

    tasks: tuple[str, ...]
    roles: tuple[str, ...] = ("teacher", "base", "student")
    limit: int | None = None
    num_fewshot: int | None = None
    include_path: str | None = None
    engine: str = "auto"
    max_length: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the harness is told of the tasks."""
        given = self.include_path
        return {
            "include_path": str(Path(given).resolve()) if given else None,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
        }


def benchmark(
    spec: JobSpec, store: Store, asked: BenchmarkRequest, report: Reporter
) -> dict[str, Any]:
    """Returns what the package's docstring shows, and leaves it in the job's `benchmarks.json`.

    Raises `SpecError` for a student that is not there, an unknown task, model or engine,
    `DataError` for a task whose data cannot be loaded.
    """
    if asked.include_path and not Path(asked.include_path).is_dir():
        raise SpecError(f"--include-path: no folder {asked.include_path}")
    engine = resolve(asked.engine, 0)
    if engine not in ENGINES:
        raise SpecError(f"--engine: {engine}; the harness knows {' and '.join(ENGINES)}")
    found = candidates(spec, store, asked.roles)
    manner = {
        **asked.settings,
        "engine": engine,
        "dtype": spec.evaluate.dtype,
        "max_length": longest(spec, asked.max_length),
        "lm_eval_version": machine.version_of("lm_eval"),
    }
    planned = _planned(spec, store, asked, report)
    job, left_out = store.job(spec.name), list[str]()
    keys: dict[str, dict[str, str]] = {}
    for index, candidate in enumerate(found):
        tasks, not_asked = _askable(candidate, planned)
        left_out += not_asked
        keys[candidate.role] = {task: _key(candidate, manner, planned[task]) for task in tasks}
        named = keys[candidate.role].items()
        missing = {task: key for task, key in named if not job.has(f"benchmarks/{key}.json")}
        if standing := [task for task in tasks if task not in missing]:
            report.note(f"{candidate.role}: {', '.join(standing)} stands already")
        if missing:
            part = report.part(candidate.role, index, len(found))
            _measure(spec, store, candidate, (manner, planned, missing), part)
    content = gathered(spec, store, manner, keys, left_out)
    job.write_json("benchmarks.json", content)
    return content


def _planned(
    spec: JobSpec, store: Store, asked: BenchmarkRequest, report: Reporter
) -> BenchmarkPlan:
    found: BenchmarkPlan = processes.run(
        harness.plan,
        {"tasks": list(asked.tasks), "settings": asked.settings},
        report.part("reading", 0, 1),
        store.log(spec.name),
        spec.evaluate.runtime.model_dump(mode="json"),
    )
    return found


def _askable(candidate: BenchmarkedModel, planned: BenchmarkPlan) -> tuple[list[str], list[str]]:
    """Returns the tasks that a model can be asked, and a note on each that it cannot."""
    if candidate.settings is None:
        return list(planned), []
    tasks = [name for name, facts in planned.items() if facts["generates"]]
    return tasks, [
        f"{name} is not asked of the {candidate.role}: it needs the probability of given answers, "
        "which a chat endpoint does not give"
        for name in planned
        if name not in tasks
    ]


def _key(candidate: BenchmarkedModel, manner: dict[str, Any], facts: dict[str, Any]) -> str:
    """Returns what names a result: the content of model and questions, and how they are asked."""
    told = {key: value for key, value in manner.items() if key != "include_path"}
    if candidate.settings:
        told = {k: told[k] for k in ("num_fewshot", "limit", "lm_eval_version")}
    return content_id({"model": candidate.digest, "task": facts["digest"], **told})


def _measure(
    spec: JobSpec,
    store: Store,
    candidate: BenchmarkedModel,
    chosen: tuple[dict[str, Any], BenchmarkPlan, dict[str, str]],
    report: Reporter,
) -> None:
    """Asks a model the tasks that are missing, in a process of its own."""
    manner, planned, missing = chosen
    runtime = spec.evaluate.runtime.model_dump(mode="json")
    with candidate.here() as address:
        model = {
            "kind": "endpoint" if candidate.settings else ENGINES[manner["engine"]],
            "address": address,
            "is_local": is_folder(address),
            "dtype": _dtype(address, manner) if candidate.settings is None else None,
            "max_length": manner["max_length"],
            "runtime": runtime,
            "settings": candidate.settings,
            "engine": candidate.engine,
        }
        tasks = [{"name": task, "key": key, **planned[task]} for task, key in missing.items()]
        processes.run(
            harness.measure,
            {
                "model": model,
                "tasks": tasks,
                "settings": {key: manner[key] for key in ("include_path", "num_fewshot", "limit")},
                "out": store.job(spec.name).uri,
            },
            report,
            store.log(spec.name),
            runtime,
        )


def _dtype(address: str, manner: dict[str, Any]) -> str:
    """Returns the precision of the weights; vLLM's own auto would run float32 in bfloat16."""
    chosen = str(manner["dtype"])
    return model_folder.stored_dtype(address) if chosen == "auto" else chosen
