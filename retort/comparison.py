"""The comparison: its numbers, the gate that judges them, and how they are shown everywhere.

A control is a student of the same base and rows by plain fine-tuning. The gate does not look at it;
the verdict says where the student stands against it, and `warnings` what to do when it is below.
"""

from collections.abc import Callable
from typing import Any

from retort.spec import Gate

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


def compare(scores: dict[str, Any], differences: dict[str, Any]) -> dict[str, Any]:
    """Returns retention, gain, latency_reduction, memory_reduction and throughput_ratio, and the
    paired differences of student and each other model, each with its outcome.

    Retention is student / teacher and gain is student - base, of the main metric. Reductions are
    1 - student / teacher: of the median whole-answer latency, and of the bytes of the weights,
    None for a teacher behind an endpoint. An outcome is above, below, or unclear: the 95% interval
    of student - model is above zero, below it, or holds it.
    """
    teacher, base, student = (scores[role] for role in ("teacher", "base", "student"))
    name = main_metric(scores)
    value = {role: scores[role]["metrics"][name]["value"] for role in scores}
    latency = student["latency_seconds"]["p50"] / teacher["latency_seconds"]["p50"]
    return {
        "metric": name,
        "retention": value["student"] / value["teacher"] if value["teacher"] else None,
        "gain": value["student"] - base["metrics"][name]["value"],
        "latency_reduction": 1 - latency,
        "memory_reduction": None
        if teacher["weights_bytes"] is None
        else 1 - student["weights_bytes"] / teacher["weights_bytes"],
        "throughput_ratio": student["tokens_per_second"] / teacher["tokens_per_second"],
        "differences": {
            role: {**found, "outcome": _outcome(found)} for role, found in differences.items()
        },
    }


def _outcome(found: dict[str, float]) -> str:
    if found["low"] > 0:
        return "above"
    return "below" if found["high"] < 0 else "unclear"


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


def judge(comparison: dict[str, Any], gate: Gate) -> dict[str, Any]:
    """Returns `passed` and the checks, each with what was required, measured, and the outcome."""
    retention = comparison["retention"]
    checks = [
        {
            "name": "retention",
            "required": f"at least {gate.min_retention:g} of the teacher's {comparison['metric']}",
            "measured": retention,
            "passed": retention is not None and retention >= gate.min_retention,
        }
    ]
    if gate.beat_base:
        checks.append(
            {
                "name": "beats_base",
                "required": f"{comparison['metric']} above the base's",
                "measured": comparison["gain"],
                "passed": comparison["gain"] > 0,
            }
        )
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def table(content: dict[str, Any]) -> list[list[str]]:
    """Returns the comparison's table: a heading row, then a row a measure; a column a model."""
    models, metric = content["models"], content["comparison"]["metric"]
    gaps = content["comparison"]["differences"]

    def row(label: str, show: Any) -> list[str]:
        return [label, *(show(model) for model in models.values())]

    def score(model: dict[str, Any]) -> str:
        return f"{model['metrics'][metric]['value']:.1%}"

    def interval(model: dict[str, Any]) -> str:
        found = model["metrics"][metric]
        return f"{found['low']:.1%} to {found['high']:.1%}"

    return [
        ["", *models],
        row(metric, score),
        row("95% interval", interval),
        ["student minus it", *(_gap(gaps.get(role), "{value:+.1f}") for role in models)],
        ["95% interval", *(_gap(gaps.get(role), "{low:+.1f} to {high:+.1f}") for role in models)],
        row("parameters", lambda m: _or_unknown(m["parameters"], "{:,}".format)),
        row("weights", lambda m: _or_unknown(m["weights_bytes"], _bytes)),
        row("peak memory", lambda m: _or_unknown(m["peak_memory_bytes"], _bytes)),
        row("latency p50", lambda m: f"{m['latency_seconds']['p50'] * 1000:,.1f} ms"),
        row("latency p95", lambda m: f"{m['latency_seconds']['p95'] * 1000:,.1f} ms"),
        row("throughput", lambda m: f"{m['tokens_per_second']:,.0f} tokens/s"),
    ]


def verdict(content: dict[str, Any]) -> str:
    """Returns the outcome in one sentence, and one more for each control."""
    found, gate = content["comparison"], content["gate"]
    kept = "none" if found["retention"] is None else f"{found['retention']:.1%}"
    less = found["memory_reduction"]
    lighter = "" if less is None else f"{less:.1%} less weight memory and "
    judged = "passed" if gate["passed"] else "was refused by"
    said = (
        f"The student keeps {kept} of the teacher's {found['metric']}, "
        f"{found['gain'] * 100:+.1f} points against its base, with {lighter}"
        f"{found['throughput_ratio']:.2f} times the throughput; it {judged} the gate."
    )
    gaps = found["differences"]
    return " ".join([said, *(_against(role, gaps[role]) for role in CONTROLS if role in gaps)])


def _against(role: str, gap: dict[str, Any]) -> str:
    """Returns how the student stands against a control, in one sentence."""
    low, high = gap["low"] * 100, gap["high"] * 100
    if gap["outcome"] == "unclear":
        return f"The test cannot tell it from {CONTROLS[role]} ({low:+.1f} to {high:+.1f} points)."
    if gap["outcome"] == "below":
        low, high = -high, -low
    return (
        f"It is {abs(gap['value']) * 100:.1f} points ({low:.1f} to {high:.1f}) {gap['outcome']} "
        f"{CONTROLS[role]}."
    )


def _gap(gap: dict[str, Any] | None, form: str) -> str:
    """Returns a difference in points, in the given form; of the student to itself nothing."""
    return "" if gap is None else form.format(**{k: gap[k] * 100 for k in ("value", "low", "high")})


def caption(content: dict[str, Any]) -> str:
    """Returns what exactly the table's numbers are."""
    data, student = content["data"], content["models"]["student"]
    return (
        f"{data['num_examples']} held-out examples ({data['split']} file), greedy decoding, "
        f"engine {student['engine']} {student['engine_version']}, each model in a process of its "
        "own; score with 95% bootstrap interval; student minus it: points, paired example by "
        "example; latency: whole answers one at a time; throughput: all examples at once; weights: "
        "bytes of the parameters; peak memory: of the whole process, engine included."
    )


def _or_unknown(value: Any, show: Callable[[Any], str]) -> str:
    return "unknown" if value is None else show(value)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
