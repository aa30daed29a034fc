"""What the results of a benchmark come to: one content for the job, its report and a table.

Tasks asked earlier, of the same student in the same manner, stay in it beside those asked now.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from retort import metrics
from retort.jobs.benchmark.harness import StoredResult
from retort.jobs.source_digests import source_digests
from retort.metrics.comparison.shapes import (
    Benchmarks,
    BenchmarkScore,
    BenchmarkTask,
    Difference,
    ScoresByTask,
    read_benchmarks,
)
from retort.spec import JobSpec, recipes
from retort.store import Folder, Store

Keys = dict[str, dict[str, str]]  # by role and task: the name of the result's file
Results = dict[str, dict[str, StoredResult]]  # by role and task
Value = TypeVar("Value")
FILE = "benchmarks.json"
# The harness's metrics are not ours of the same name; those compared here are means of scores.
MEAN = "mean"


@dataclass(frozen=True)
class Manner:
    """How all models are asked: results in another manner do not stand beside one another."""

    lm_eval_version: str | None
    engine: str
    dtype: str
    max_length: int


def gathered(
    spec: JobSpec, store: Store, manner: Manner, keys: Keys, left_out: list[str]
) -> Benchmarks:
    """Returns the content of `benchmarks.json`.

    `left_out` says which tasks were not asked of whom, and why.
    """
    job, student = store.job(spec.name), student_of(spec)
    results, earlier = _read(job, keys), of_student(store, spec.name, student)
    if earlier and manner == Manner(**{name: getattr(earlier, name) for name in asdict(manner)}):
        keys, results = _beside(earlier.keys, _read(job, earlier.keys), keys, results)
        left_out = list(dict.fromkeys([*earlier.left_out, *left_out]))
    results = {role: results[role] for role in spec.roles if role in results}
    return Benchmarks(
        student=student,
        **asdict(manner),
        tasks={
            row: BenchmarkTask(**told, limit=each["limit"])
            for tasks in results.values()
            for each in tasks.values()
            for row, told in each["tasks"].items()
        },
        models={role: _scores(tasks) for role, tasks in results.items()},
        differences=_differences(spec, results),
        notes=[*left_out, *_truncated(results)],
        left_out=left_out,
        keys={role: keys[role] for role in results},
    )


def student_of(spec: JobSpec) -> str:
    """Returns the name of the train artifact that holds a job's student."""
    return recipes(spec, source_digests(spec))["train"].name


def _read(job: Folder, keys: Keys) -> Results:
    """Returns the results that stand; one asked earlier may have been removed since."""
    files = {key: f"benchmarks/{key}.json" for tasks in keys.values() for key in tasks.values()}
    found = {key: job.read_json(name) for key, name in files.items() if job.has(name)}
    return {
        role: {task: found[key] for task, key in tasks.items() if key in found}
        for role, tasks in keys.items()
    }


def _beside(old: Keys, standing: Results, keys: Keys, results: Results) -> tuple[Keys, Results]:
    """Returns earlier results and new ones together; an earlier one of a task that was now asked in
    another manner is left out, whoever it is of."""
    asked = {task: each for tasks in results.values() for task, each in tasks.items()}

    def agrees(task: str, each: StoredResult) -> bool:
        return task not in asked or _questions(each) == _questions(asked[task])

    merged_keys, merged = {**keys}, {**results}
    for role, tasks in standing.items():
        kept = [task for task, each in tasks.items() if agrees(task, each)]
        merged_keys[role] = {task: old[role][task] for task in kept} | keys.get(role, {})
        merged[role] = {task: tasks[task] for task in kept} | results.get(role, {})
    return merged_keys, merged


def _questions(result: StoredResult) -> tuple[object, ...]:
    """Returns what the same questions asked in the same manner have in common."""
    return result["digest"], result["limit"], result["num_fewshot"]


def _scores(tasks: Mapping[str, StoredResult]) -> ScoresByTask:
    """Returns a model's scores, the rows of all tasks together."""
    return {
        row: {metric: BenchmarkScore(**score) for metric, score in told.items()}
        for each in tasks.values()
        for row, told in each["metrics"].items()
    }


def _differences(spec: JobSpec, results: Results) -> dict[str, dict[str, dict[str, Difference]]]:
    """Returns student - each other model by task and metric, paired question by question."""
    knobs = spec.evaluate
    own = _means(results.get("student", {}))
    found: dict[str, dict[str, dict[str, Difference]]] = {}
    for role in (role for role in results if role != "student"):
        for row, scores in _means(results[role]).items():
            for metric in scores:
                if metric not in own.get(row, {}):
                    continue
                pair = own[row][metric], scores[metric]
                gap = metrics.difference(MEAN, *pair, knobs.num_bootstrap, knobs.seed)
                found.setdefault(role, {}).setdefault(row, {})[metric] = Difference.of(gap)
    return found


def _means(tasks: Mapping[str, StoredResult]) -> dict[str, metrics.Statistics]:
    """Returns the statistics of each row's metrics that are the mean of its questions' scores."""
    found: dict[str, metrics.Statistics] = {}
    for result in tasks.values():
        for row, told in result["metrics"].items():
            for metric, measured in told.items():
                each = result["scores"][row].get(metric, {})
                if each and math.isclose(sum(each.values()) / len(each), measured["value"]):
                    found.setdefault(row, {})[metric] = {key: [s, 1.0] for key, s in each.items()}
    return found


def _truncated(results: Results) -> list[str]:
    """Returns a note on each task whose prompts lost their start."""
    return [
        f"{task}: {each['num_truncated']:,} prompts of the {role} lost their start, for prompt and "
        "answer were longer than --max-length; its score is worth little"
        for role, tasks in results.items()
        for task, each in tasks.items()
        if each["num_truncated"]
    ]


def table(content: Benchmarks) -> list[list[str]]:
    """Returns a heading row, then a row for each task and metric: a column a model with its
    standard error, and a column for the student minus each other with its 95% interval."""
    rows = []
    for task, facts in content.tasks.items():
        told = [_row(by_task, task) for by_task in content.models.values()]
        gaps = [_row(by_task, task) for by_task in content.differences.values()]
        for metric in dict.fromkeys(metric for scores in told for metric in scores):
            cells = [_score(scores.get(metric)) for scores in told]
            cells += [_gap(each.get(metric)) for each in gaps]
            rows.append([task, metric, f"{facts.n:,}", *cells])
    minus = (f"student - {role}" for role in content.differences)
    return [["task", "metric", "n", *content.models, *minus], *rows]


def _row(by_task: Mapping[str, dict[str, Value]], task: str) -> dict[str, Value]:
    return by_task.get(task, {})


def _score(found: BenchmarkScore | None) -> str:
    if found is None:
        return "not asked"
    sure = "" if found.stderr is None else f" \N{PLUS-MINUS SIGN} {found.stderr:.4f}"
    return f"{found.value:.4f}{sure}"


def _gap(found: Difference | None) -> str:
    return "" if found is None else f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def of_student(store: Store, name: str, student: str) -> Benchmarks | None:
    """Returns a job's benchmarks if they are of the student in the train artifact named `student`.

    None where there are none, or they are of an earlier one.
    """
    job = store.job(name)
    content = read_benchmarks(job.read_json(FILE)) if job.has(FILE) else None
    return content if content and content.student == student else None
