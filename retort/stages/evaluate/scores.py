"""From answers and measures to what is reported: metrics with intervals, differences, medians.

Everything is a pure function of files that stand in the artifact, so that it can be made again
from them without asking a model.
"""

from statistics import median, median_high
from typing import Any

from retort import metrics
from retort.data import task_types
from retort.metrics import Statistics
from retort.records import Example
from retort.spec import Evaluate
from retort.stages.evaluate.compared_models import asked_examples, read_answers, roles_of, title
from retort.stages.evaluate.load_test import summary
from retort.stages.stage import Stage

# What is measured in every round, and told as the median of them.
MEDIANS = (
    "load_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "requests_per_second",
    "tokens_per_second",
)
# What belongs to one process, or is told in another form.
OWN = ("process_id", "latencies")
# What MLflow is told of each model beside its metrics and latencies.
TOLD = (*MEDIANS, "weights_bytes", "parameters")


def texts_of(stage: Stage) -> dict[str, dict[str, str]]:
    """Returns the answers' texts by role and example's id."""
    return {
        role: {key: response.text for key, response in read_answers(stage, role).items()}
        for role in roles_of(stage)
    }


def statistics_of(
    stage: Stage, texts: dict[str, dict[str, str]], further: dict[str, Statistics]
) -> dict[str, Statistics]:
    """Returns the statistics of all answers by role: those of the texts, then `further` ones.

    A stage without the teacher's answers tells no agreement with them.
    """
    examples, task_type = asked_examples(stage), task_types.load(stage.spec.prepare.task_type)
    found: dict[str, Statistics] = {}
    for role, own in texts.items():
        teachers = texts.get("teacher", own)
        names = stage.spec.evaluate.metrics
        found[role] = metrics.statistics(task_type, examples, own, teachers, names)
        if "teacher" not in texts:
            found[role].pop("agreement", None)
        found[role] |= {name: values for name, values in further.get(role, {}).items() if values}
    return found


def models_of(
    stage: Stage, texts: dict[str, dict[str, str]], statistics: dict[str, Statistics]
) -> dict[str, Any]:
    """Returns the report's `models` part: what was measured, and metrics with intervals."""
    knobs, examples = stage.spec.evaluate, asked_examples(stage)
    return {
        role: {
            "model": title(stage.spec, role),
            **_measured(stage, role),
            "metrics": {
                name: metrics.interval(name, values, knobs.num_bootstrap, knobs.seed)
                for name, values in statistics[role].items()
            },
            **_confusion(stage, examples, texts[role]),
        }
        for role in roles_of(stage)
    }


def _measured(stage: Stage, role: str) -> dict[str, Any]:
    """Returns a model's measures over all rounds: medians, and of each request the quickest round's
    latency."""
    knobs = stage.spec.evaluate
    rounds = [
        stage.out.read_json(f"measures-{role}-{number}.json")
        for number in range(1, knobs.rounds + 1)
    ]
    latencies = {
        kind: _quickest([found["latencies"][kind] for found in rounds])
        for kind in ("whole", "first_token")
    }
    of_all = {name: [found[name] for found in rounds if name in found] for name in MEDIANS}
    return {
        "within_bound": None,
        **{name: value for name, value in rounds[0].items() if name not in OWN},
        **{name: _median(values) for name, values in of_all.items()},
        "latency_seconds": summary(latencies["whole"], knobs.num_bootstrap, knobs.seed),
        "first_token_seconds": summary(latencies["first_token"], knobs.num_bootstrap, knobs.seed),
        "latencies": latencies,
        "num_changed": max(found.get("num_changed", 0) for found in rounds),
        "num_rounds": len(rounds),
    }


def _quickest(rounds: list[list[float]]) -> list[float]:
    """Returns each request's least seconds; all of them where rounds timed different requests.

    What makes one and the same answer slower in a round is the machine's other work, never the
    model. Source: Chen & Revels, "Robust benchmarking in noisy environments" (2016,
    arXiv:1608.04295).
    """
    if len({len(seconds) for seconds in rounds}) > 1:
        return [each for seconds in rounds for each in seconds]
    return [min(times) for times in zip(*rounds, strict=True)]


def _median(values: list[float | None]) -> float | None:
    """Returns the median of what is known; of counts a count."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return median_high(known) if isinstance(known[0], int) else median(known)


def _confusion(stage: Stage, examples: list[Example], texts: dict[str, str]) -> dict[str, Any]:
    """Returns the confusion matrix, where the answers are a closed set."""
    task_type = task_types.load(stage.spec.prepare.task_type)
    found = metrics.confusion(task_type, examples, texts)
    return {} if found is None else {"confusion": found}


def differences_of(statistics: dict[str, Statistics], knobs: Evaluate) -> dict[str, dict[str, Any]]:
    """Returns student minus each other model, in every metric that both have on some example."""
    own = statistics.get("student", {})
    return {
        role: {
            name: metrics.difference(name, own[name], other[name], knobs.num_bootstrap, knobs.seed)
            for name in own
            if own[name].keys() & other.get(name, {}).keys()
        }
        for role, other in statistics.items()
        if own and role != "student"
    }


def retention_of(statistics: dict[str, Statistics], knobs: Evaluate) -> dict[str, Any]:
    """Returns student / teacher with its interval, in every metric that both have; None where the
    teacher has 0."""
    own, teachers = statistics.get("student", {}), statistics.get("teacher", {})
    return {
        name: metrics.ratio(name, own[name], teachers[name], knobs.num_bootstrap, knobs.seed)
        for name in own
        if own[name].keys() & teachers.get(name, {}).keys()
    }


def flat(found: dict[str, Any], differences: dict[str, Any], main: str) -> dict[str, float]:
    """Returns the scores as MLflow metrics, such as `student.accuracy` and `difference.base`."""
    values: dict[str, float | None] = {}
    for role, facts in found.items():
        for name, metric in facts["metrics"].items():
            values |= _with_bounds(f"{role}.{name}", metric)
        values |= {f"{role}.{name}": facts[name] for name in TOLD}
        for name in ("latency_seconds", "first_token_seconds"):
            for quantile in ("p50", "p95"):
                values[f"{role}.{name}_{quantile}"] = (facts[name] or {}).get(quantile)
        best = facts.get("within_bound") or {}
        values[f"{role}.requests_per_second_within_bound"] = best.get("requests_per_second")
    for role, gaps in differences.items():
        values |= _with_bounds(f"difference.{role}", gaps.get(main, {}))
    return {name: float(value) for name, value in values.items() if value is not None}


def _with_bounds(name: str, found: dict[str, Any]) -> dict[str, float | None]:
    """Returns a value and its interval under a name, with `_low` and `_high`."""
    return {
        f"{name}{end}": found.get(key)
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
