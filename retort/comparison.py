"""The comparison: five numbers, the gate that judges them, and how they are shown everywhere."""

from collections.abc import Callable
from typing import Any

from retort.spec import Gate


def main_metric(scores: dict[str, Any]) -> str:
    """The metric that decides: the task type's first where answers are known, else agreement."""
    return str(next(iter(scores["teacher"]["metrics"])))


def compare(scores: dict[str, Any]) -> dict[str, Any]:
    """Returns retention, gain, latency_reduction, memory_reduction and throughput_ratio.

    Retention is student / teacher and gain is student - base, of the main metric. Reductions are
    1 - student / teacher: of the median whole-answer latency, and of the bytes of the weights,
    None for a teacher behind an endpoint.
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
    }


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
    """Returns the comparison's table: a heading row, then a row a measure."""
    models, metric = content["models"], content["comparison"]["metric"]
    roles = ("teacher", "base", "student")

    def row(label: str, show: Any) -> list[str]:
        return [label, *(show(models[role]) for role in roles)]

    def score(model: dict[str, Any]) -> str:
        return f"{model['metrics'][metric]['value']:.1%}"

    def interval(model: dict[str, Any]) -> str:
        found = model["metrics"][metric]
        return f"{found['low']:.1%} to {found['high']:.1%}"

    return [
        ["", *roles],
        row(metric, score),
        row("95% interval", interval),
        row("parameters", lambda m: _or_unknown(m["parameters"], "{:,}".format)),
        row("weights", lambda m: _or_unknown(m["weights_bytes"], _bytes)),
        row("peak memory", lambda m: _or_unknown(m["peak_memory_bytes"], _bytes)),
        row("latency p50", lambda m: f"{m['latency_seconds']['p50'] * 1000:,.1f} ms"),
        row("latency p95", lambda m: f"{m['latency_seconds']['p95'] * 1000:,.1f} ms"),
        row("throughput", lambda m: f"{m['tokens_per_second']:,.0f} tokens/s"),
    ]


def verdict(content: dict[str, Any]) -> str:
    """Returns the outcome in one sentence."""
    found, gate = content["comparison"], content["gate"]
    kept = "none" if found["retention"] is None else f"{found['retention']:.1%}"
    less = found["memory_reduction"]
    lighter = "" if less is None else f"{less:.1%} less weight memory and "
    judged = "passed" if gate["passed"] else "was refused by"
    return (
        f"The student keeps {kept} of the teacher's {found['metric']}, "
        f"{found['gain'] * 100:+.1f} points against its base, with {lighter}"
        f"{found['throughput_ratio']:.2f} times the throughput; it {judged} the gate."
    )


def caption(content: dict[str, Any]) -> str:
    """Returns what exactly the table's numbers are."""
    data, student = content["data"], content["models"]["student"]
    return (
        f"{data['num_examples']} held-out examples ({data['split']} file), greedy decoding, "
        f"engine {student['engine']} {student['engine_version']}, each model in a process of its "
        "own; score with 95% bootstrap interval; latency: whole answers one at a time; "
        "throughput: all examples at once; weights: bytes of the parameters; peak memory: of the "
        "whole process, engine included."
    )


def _or_unknown(value: Any, show: Callable[[Any], str]) -> str:
    return "unknown" if value is None else show(value)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
