"""From answers and measures to the stage's facts: metrics with intervals, differences, medians.

All of it is computed from files in the artifact, so that it can be computed again without asking a
model.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median, median_high

from retort import metrics
from retort.data import task_types
from retort.errors import StageError
from retort.metrics import Statistics
from retort.metrics.comparison.shapes import (
    ConfusionMatrix,
    Difference,
    Differences,
    Estimate,
    Latency,
    LoadLimit,
    MeasuredModel,
    ModelsByRole,
)
from retort.records import Example, JsonObject, Response
from retort.spec import Evaluate
from retort.stages.evaluate.compared_models import (
    asked_examples,
    is_answered,
    read_answers,
    roles_of,
    rounds_of,
    title,
)
from retort.stages.evaluate.load_test import summary
from retort.stages.evaluate.measure import Measures, file_of
from retort.stages.stage import Stage

# What is measured in several rounds, and reported as their median.
MEDIANS = (
    "load_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "requests_per_second",
    "tokens_per_second",
)
# What belongs to one round, or is reported in another form.
OF_ONE_ROUND = ("process_id", "latencies", "cut_short", "spending", "ledgers")
# What is logged to MLflow of each model beside its metrics and latencies.
LOGGED = (*MEDIANS, "weights_bytes", "parameters")


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples that all models answered, in order, and all answers by role and id.

    Only on these are models compared: a prompt that one of them could not take says nothing about
    the quality of its answers.
    """

    examples: list[Example]
    responses: dict[str, dict[str, Response]]

    def texts(self, role: str) -> dict[str, str]:
        """Returns a model's answers to the compared examples."""
        return {e.id: self.responses[role][e.id].text for e in self.examples}

    def unanswered(self, role: str) -> dict[str, int]:
        """Returns how many prompts a model did not answer, by the response's state."""
        responses = self.responses[role].values()
        return dict(Counter(r.state for r in responses if not is_answered(r)))


def read_held_out(stage: Stage) -> HeldOut:
    """Returns what is compared. Raises `StageError` where no prompt was answered by all models."""
    responses = {role: read_answers(stage, role) for role in roles_of(stage)}
    examples = [
        example
        for example in asked_examples(stage)
        if all(is_answered(own[example.id]) for own in responses.values())
    ]
    if not examples:
        raise StageError(
            "no held-out prompt was answered by all models, so there is nothing to compare; raise "
            "evaluate.max_model_len, or give shorter prompts"
        )
    return HeldOut(examples, responses)


def unanswered_notes(stage: Stage, held_out: HeldOut) -> list[str]:
    """Returns a warning for each model that did not answer all prompts."""
    length = stage.spec.evaluate.max_model_len or stage.spec.generate.max_model_len
    limit = "the longest text that it takes" if length is None else f"max_model_len {length:,}"
    reasons = {"too_long": f"longer than {limit}", "failed": "refused or failed"}
    lines = []
    for role, responses in held_out.responses.items():
        counts = held_out.unanswered(role)
        if counts:
            why = ", ".join(f"{count:,} {reasons[state]}" for state, count in counts.items())
            lines.append(
                f"{role}: {sum(counts.values()):,} of {len(responses):,} held-out prompts are "
                f"unanswered ({why}); all models are scored, and retention and differences "
                f"computed, on the {len(held_out.examples):,} prompts that every model answered"
            )
    return lines


def statistics_of(
    stage: Stage, held_out: HeldOut, further: dict[str, Statistics]
) -> dict[str, Statistics]:
    """Returns the statistics of the compared examples by role: those of the texts, then `further`.

    Without the teacher's answers there is no agreement with them.
    """
    task_type, ids = (
        task_types.load(stage.spec.prepare.task_type),
        {e.id for e in held_out.examples},
    )
    by_role: dict[str, Statistics] = {}
    for role in held_out.responses:
        own = held_out.texts(role)
        teachers = held_out.texts("teacher") if "teacher" in held_out.responses else own
        names = stage.spec.evaluate.metrics
        by_role[role] = metrics.statistics(task_type, held_out.examples, own, teachers, names)
        if "teacher" not in held_out.responses:
            by_role[role].pop("agreement", None)
        for name, values in further.get(role, {}).items():
            compared = {key: value for key, value in values.items() if key in ids}
            by_role[role] |= {name: compared} if compared else {}
    return by_role


def models_of(stage: Stage, held_out: HeldOut, statistics: dict[str, Statistics]) -> ModelsByRole:
    """Returns each model: what was measured, and metrics with intervals."""
    knobs = stage.spec.evaluate
    return {
        role: MeasuredModel.of(
            {
                "model": title(stage.spec, role),
                **_measured(stage, role, held_out),
                "metrics": {
                    name: Estimate.of(
                        metrics.interval(name, values, knobs.num_bootstrap, knobs.seed)
                    )
                    for name, values in statistics[role].items()
                },
                "confusion": _confusion(stage, held_out, role),
            }
        )
        for role in roles_of(stage)
    }


def _measured(stage: Stage, role: str, held_out: HeldOut) -> JsonObject:
    """Returns a model's measures over all rounds, by the names of `MeasuredModel` and others:
    medians, of each request its least latency, and the tokens of the compared examples."""
    knobs, rounds = stage.spec.evaluate, list[Measures]()
    for number in range(1, rounds_of(stage) + 1):
        rounds.append(stage.out.read_json(file_of(role, number)))
    latencies = {
        kind: _quickest([measures["latencies"][kind] for measures in rounds])
        for kind in ("whole", "first_token")
    }
    known = {name: [each[name] for each in rounds if name in each] for name in MEDIANS}
    compared = [held_out.responses[role][e.id] for e in held_out.examples]
    unanswered = held_out.unanswered(role)
    limit = rounds[0].get("within_bound")
    return {
        **{name: value for name, value in rounds[0].items() if name not in OF_ONE_ROUND},
        "within_bound": limit and LoadLimit(**limit),
        **{name: _median(values) for name, values in known.items()},
        "num_tokens": sum(response.num_tokens for response in compared),
        "num_prompt_tokens": sum(response.num_prompt_tokens for response in compared),
        "latency_seconds": summary(latencies["whole"], knobs.num_bootstrap, knobs.seed),
        "first_token_seconds": summary(latencies["first_token"], knobs.num_bootstrap, knobs.seed),
        "latencies": latencies,
        "num_changed": max(measures.get("num_changed", 0) for measures in rounds),
        "num_rounds": len(rounds),
        "num_unanswered": sum(unanswered.values()),
        "unanswered": unanswered,
        "cut_short": [
            f"round {number}: {text}"
            for number, measures in enumerate(rounds, start=1)
            for text in measures.get("cut_short", [])
        ],
    }


def paid_facts(stage: Stage) -> JsonObject:
    """Returns what asking models at endpoints has cost, those of generate left out, and the ledgers
    of their answers; nothing where all models are on this machine."""
    spending: Counter[str] = Counter()
    ledgers: list[str] = []
    for role in roles_of(stage):
        last = stage.out.read_json(file_of(role, rounds_of(stage)))
        spending.update(last.get("spending", {}))
        ledgers += last.get("ledgers", [])
    return {"spending": dict(spending), "ledgers": ledgers} if ledgers else {}


def num_unreached(stage: Stage) -> int:
    """Returns how many requests to models at endpoints failed for a passing reason."""
    first = (stage.out.read_json(file_of(role, 1)) for role in roles_of(stage))
    return sum(measures.get("num_unreached", 0) for measures in first)


def _quickest(rounds: list[list[float]]) -> list[float]:
    """Returns each request's least seconds: all rounds time the same requests, some rounds fewer.

    Only the machine's other work can make one and the same answer slower in one round than in
    another. Source: Chen & Revels, "Robust benchmarking in noisy environments" (2016,
    arXiv:1608.04295).
    """
    times = zip_longest(*rounds, fillvalue=float("inf"))
    return [min(seconds) for seconds in times]


def _median(values: list[float | None]) -> float | None:
    """Returns the median of the values that are known; of counts a count."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return median_high(known) if isinstance(known[0], int) else median(known)


def _confusion(stage: Stage, held_out: HeldOut, role: str) -> ConfusionMatrix | None:
    """Returns the confusion matrix, where the answers are a closed set."""
    task_type = task_types.load(stage.spec.prepare.task_type)
    matrix = metrics.confusion(task_type, held_out.examples, held_out.texts(role))
    return None if matrix is None else ConfusionMatrix(**matrix)


def differences_of(statistics: dict[str, Statistics], knobs: Evaluate) -> dict[str, Differences]:
    """Returns student minus each other model by role and metric, of the metrics that both have on
    some example."""
    own = statistics.get("student", {})
    return {
        role: {
            name: Difference.of(
                metrics.difference(name, own[name], other[name], knobs.num_bootstrap, knobs.seed)
            )
            for name in own
            if own[name].keys() & other.get(name, {}).keys()
        }
        for role, other in statistics.items()
        if own and role != "student"
    }


def retention_of(statistics: dict[str, Statistics], knobs: Evaluate) -> dict[str, Estimate | None]:
    """Returns student / teacher with its interval by metric, of the metrics that both have; None
    where the teacher's is 0."""
    own, teachers = statistics.get("student", {}), statistics.get("teacher", {})
    found = {
        name: metrics.ratio(name, own[name], teachers[name], knobs.num_bootstrap, knobs.seed)
        for name in own
        if own[name].keys() & teachers.get(name, {}).keys()
    }
    return {name: None if each is None else Estimate.of(each) for name, each in found.items()}


def flat(models: ModelsByRole, differences: dict[str, Differences], main: str) -> dict[str, float]:
    """Returns the scores as MLflow metrics, such as `student.accuracy` and `difference.base`."""
    values: dict[str, float | None] = {}
    for role, model in models.items():
        for name, estimate in model.metrics.items():
            values |= _with_bounds(f"{role}.{name}", estimate)
        values |= {f"{role}.{name}": getattr(model, name) for name in LOGGED}
        for name in ("latency_seconds", "first_token_seconds"):
            latency: Latency = getattr(model, name) or Latency()
            values |= {f"{role}.{name}_p50": latency.p50, f"{role}.{name}_p95": latency.p95}
        if best := model.within_bound:
            values[f"{role}.requests_per_second_within_bound"] = best.requests_per_second
    for role, gaps in differences.items():
        values |= _with_bounds(f"difference.{role}", gaps[main]) if main in gaps else {}
    return {name: float(value) for name, value in values.items() if value is not None}


def _with_bounds(name: str, estimate: Estimate) -> dict[str, float | None]:
    """Returns a value under a name, and its interval under the name with `_low` and `_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
