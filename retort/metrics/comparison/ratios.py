"""The numbers of the comparison: ratios of student and teacher, differences and their outcomes."""

from typing import Any

from retort.metrics import tells as outcome

CONTROLS = {
    "fine_tuning": "plain fine-tuning on the same rows",
    "gold": "plain fine-tuning on the rows' own answers",
}
WAYS_OUT = {
    "fine_tuning": "its losses made the student worse; use plain fine-tuning (train.losses: "
    "[{name: cross_entropy}]), or look at their weights and temperature",
    "gold": "the teacher taught it less than those answers do; learn them (train.text: expected, "
    "train.losses: [{name: cross_entropy}]), or look at train.losses and the teacher's own score",
}


def main_metric(scores: dict[str, Any]) -> str:
    """The metric that decides: the task type's first where answers are known, else agreement."""
    return str(next(iter(scores["teacher"]["metrics"])))


def compare(evaluated: dict[str, Any]) -> dict[str, Any]:
    """Returns retention with its interval, gain, the reductions and the throughput ratio, and the
    paired differences of student and each other model, each with its outcome.

    `evaluated` are evaluate's facts; where its models carry `cost_per_1000_requests` costs are
    compared too. All but the costs are of the main metric. Retention is student / teacher, gain is
    student - base. Reductions are 1 - student / teacher: of the median whole-answer latency, of
    the bytes of the weights, of the cost of 1,000 requests. What is unknown is None.
    """
    models = evaluated["models"]
    teacher, base, student = (models[role] for role in ("teacher", "base", "student"))
    name = main_metric(models)
    value = {role: models[role]["metrics"][name]["value"] for role in models}
    pair = student, teacher
    return {
        "metric": name,
        "retention": value["student"] / value["teacher"] if value["teacher"] else None,
        "retention_interval": evaluated.get("retention", {}).get(name),
        "gain": value["student"] - base["metrics"][name]["value"],
        "latency_reduction": _reduction(*(median_seconds(model) for model in pair)),
        "memory_reduction": _reduction(*(model["weights_bytes"] for model in pair)),
        "cost_reduction": _reduction(*(model.get("cost_per_1000_requests") for model in pair)),
        "throughput_ratio": _share(*(model["tokens_per_second"] for model in pair)),
        "differences": {
            role: {**found[name], "outcome": outcome(found[name])}
            for role, found in evaluated["differences"].items()
            if name in found
        },
    }


def median_seconds(model: dict[str, Any]) -> float | None:
    """Returns a model's median seconds to a whole answer, None where it was not measured."""
    found = model["latency_seconds"]
    return None if found is None else found["p50"]


def _share(student: float | None, teacher: float | None) -> float | None:
    return None if student is None or not teacher else student / teacher


def _reduction(student: float | None, teacher: float | None) -> float | None:
    share = _share(student, teacher)
    return None if share is None else 1 - share


def flat_differences(differences: dict[str, Any]) -> dict[str, float]:
    """Returns the differences as MLflow metrics: `difference.base`, with `_low` and `_high`."""
    return {
        f"difference.{role}{end}": found[key]
        for role, found in differences.items()
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
    }


def warnings(comparison: dict[str, Any]) -> list[str]:
    """Returns what to do about each control that the student is below of."""
    return [
        f"the student is below {CONTROLS[role]}: {WAYS_OUT[role]}"
        for role, found in comparison["differences"].items()
        if role in CONTROLS and found["outcome"] == "below"
    ]
