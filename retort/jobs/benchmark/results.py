"""What the results of a benchmark come to: one content for the job, its report and a table.

Tasks asked earlier, of the same student in the same manner, stay in it beside those asked now.
"""

import math

from retort import metrics
from retort.jobs.source_digests import source_digests
from retort.records import JsonObject
from retort.spec import JobSpec, recipes
from retort.store import Folder, Store

Keys = dict[str, dict[str, str]]  # by role and task: the name of the result's file
Results = dict[str, dict[str, JsonObject]]  # by role and task: what `harness.measure` wrote
SHARED = ("student", "lm_eval_version", "engine", "dtype", "max_length")
# The harness's metrics are not ours of the same name; those compared here are means of scores.
MEAN = "mean"
# What the same questions asked in the same manner have in common.
QUESTIONS = ("digest", "limit", "num_fewshot")


def gathered(
    spec: JobSpec, store: Store, manner: JsonObject, keys: Keys, left_out: list[str]
) -> JsonObject:
    """Returns the content of `benchmarks.json`, as the package's docstring shows it.

    `left_out` says which tasks were not asked of whom, and why.
    """
    job = store.job(spec.name)
    content = {key: manner.get(key) for key in SHARED} | {"student": student_of(spec)}
    results = _read(job, keys)
    earlier = job.read_json("benchmarks.json") if job.has("benchmarks.json") else {}
    if all(earlier.get(key) == content[key] for key in SHARED):
        keys, results = _beside(earlier["keys"], _read(job, earlier["keys"]), keys, results)
        left_out = list(dict.fromkeys([*earlier["left_out"], *left_out]))
    results = {role: results[role] for role in spec.roles if role in results}
    facts = {
        row: {**told, "limit": each["limit"]}
        for tasks in results.values()
        for each in tasks.values()
        for row, told in each["tasks"].items()
    }
    found = {role: _rows(tasks, "metrics") for role, tasks in results.items()}
    return {
        **content,
        "tasks": facts,
        "models": found,
        "differences": _differences(spec, results),
        "notes": [*left_out, *_truncated(results)],
        "left_out": left_out,
        "keys": {role: keys[role] for role in results},
    }


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

    def agrees(task: str, each: JsonObject) -> bool:
        return task not in asked or all(each[key] == asked[task][key] for key in QUESTIONS)

    merged_keys, merged = {**keys}, {**results}
    for role, tasks in standing.items():
        kept = [task for task, each in tasks.items() if agrees(task, each)]
        merged_keys[role] = {task: old[role][task] for task in kept} | keys.get(role, {})
        merged[role] = {task: tasks[task] for task in kept} | results.get(role, {})
    return merged_keys, merged


def _rows(tasks: dict[str, JsonObject], what: str) -> JsonObject:
    """Returns what results say of each row of the report, the tasks' rows together."""
    return {row: told for each in tasks.values() for row, told in each[what].items()}


def _differences(spec: JobSpec, results: Results) -> JsonObject:
    """Returns student - each other model by task and metric, paired question by question."""
    knobs, found = spec.evaluate, JsonObject()
    own = _means(results.get("student", {}))
    for role in (role for role in results if role != "student"):
        for row, scores in _means(results[role]).items():
            for metric in scores:
                if metric not in own.get(row, {}):
                    continue
                pair = own[row][metric], scores[metric]
                gap = metrics.difference(MEAN, *pair, knobs.num_bootstrap, knobs.seed)
                found.setdefault(role, {}).setdefault(row, {})[metric] = gap
    return found


def _means(tasks: dict[str, JsonObject]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Returns the statistics of each row's metrics that are the mean of its questions' scores."""
    values, scores = _rows(tasks, "metrics"), _rows(tasks, "scores")
    found: JsonObject = {}
    for row, told in values.items():
        for metric, measured in told.items():
            each = scores[row].get(metric, {})
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


def table(content: JsonObject) -> list[list[str]]:
    """Returns a heading row, then a row for each task and metric: a column a model with its
    standard error, and a column for the student minus each other with its 95% interval."""
    found, gaps = content["models"], content["differences"]
    rows = []
    for task, facts in content["tasks"].items():
        for metric in dict.fromkeys(m for told in found.values() for m in told.get(task, {})):
            cells = [_score(told.get(task, {}).get(metric)) for told in found.values()]
            cells += [_gap(told.get(task, {}).get(metric)) for told in gaps.values()]
            rows.append([task, metric, f"{facts['n']:,}", *cells])
    return [["task", "metric", "n", *found, *(f"student - {role}" for role in gaps)], *rows]


def _score(found: JsonObject | None) -> str:
    if found is None:
        return "not asked"
    error = found["stderr"]
    sure = "" if error is None else f" \N{PLUS-MINUS SIGN} {error:.4f}"
    return f"{found['value']:.4f}{sure}"


def _gap(found: JsonObject | None) -> str:
    return "" if found is None else "{value:+.4f} ({low:+.4f} to {high:+.4f})".format(**found)


def of_student(store: Store, name: str, student: str) -> JsonObject | None:
    """Returns a job's benchmarks if they are of the student in the train artifact named `student`.

    None where there are none, or they are of an earlier one.
    """
    job = store.job(name)
    if not job.has("benchmarks.json"):
        return None
    content: JsonObject = job.read_json("benchmarks.json")
    return content if content["student"] == student else None
