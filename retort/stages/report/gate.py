"""The gate: whether the student may go out, by the report's numbers and the spec's policy.

What was not measured never passes: a check whose number is unknown is refused, and says why.
"""

import math
from collections.abc import Callable

from retort.metrics import lower_is_better
from retort.metrics.comparison import shapes
from retort.records import JsonObject
from retort.spec.report import ExportGate, Gate

BOUND = "by the worse bound of the 95% interval"
NOTHING = None, None
Bounds = tuple[float | None, float | None]  # what was measured, and the worse end of its interval
NOT_MEASURED = {
    "retention": "the teacher scored nothing that a share could be taken of",
    "beats_champion": "the champion cannot be read",
    "cost": "no price given: set report.prices.student",
}


def judge(
    student: shapes.MeasuredModel,
    comparison: shapes.Comparison,
    gate: Gate,
    has_champion: bool = False,
) -> shapes.GateOutcome:
    """Returns the checks that the policy requires, and whether all of them passed.

    In `gate.on_bound` a check looks at the worse bound of the 95% interval instead of the value:
    the lower one of retention and the differences, the upper one of the 95th percentile of latency.
    The student must not score below the champion, so that an equal one may follow it; on the bound,
    the interval of student - champion must not reach below zero.
    """
    # The first metrics of all task types, and agreement, are shares of what is right.
    metric = comparison.metric
    assert not lower_is_better(metric), f"the gate compares by {metric}, of which less is better"
    checks = [_retention(comparison, gate)]
    if gate.beat_base:
        checks.append(_beats(comparison, gate, "base", f"{metric} above the base's"))
    if gate.beat_fine_tuning:
        checks.append(
            _beats(comparison, gate, "fine_tuning", f"{metric} above plain fine-tuning's")
        )
    if gate.beat_champion and has_champion:
        checks.append(_beats(comparison, gate, "champion", f"{metric} not below the champion's"))
    if (seconds := gate.max_latency_seconds) is not None:
        required, latency = f"95% of whole answers within {seconds:g} s", student.latency_seconds
        ends = (latency.p95, latency.p95_high) if latency else NOTHING
        checks.append(_check(gate, "latency", required, ends, lambda x: x <= seconds))
    if gate.max_memory_bytes is not None:
        checks.append(_memory(student, gate, gate.max_memory_bytes))
    if (price := gate.max_cost_per_1000_requests) is not None:
        required, cost = f"at most {price:g} for 1,000 requests", student.cost_per_1000_requests
        checks.append(_check(gate, "cost", required, (cost, cost), lambda x: x <= price))
    return shapes.GateOutcome(all(check.passed for check in checks), checks)


def judge_export(
    difference: shapes.Difference | None,
    kl: shapes.Estimate | None,
    gate: ExportGate,
    metric: str,
    facts: JsonObject,
) -> shapes.GateCheck:
    """Returns whether an exported student may go out: what it loses against the student and how far
    its distributions are from the student's; that its runtime cuts texts into the same tokens and
    renders chats alike."""
    bound = f", {BOUND}" if gate.on_bound else ""
    required = f"at most {gate.max_loss:g} below the student's {metric}{bound}"
    of_tokens = "difference" if gate.tokenizer == "all_texts" else "own_difference"
    for name, key in (
        ("tokenizer", of_tokens),
        ("template", "difference"),
        ("answers", "difference"),
    ):
        if other := facts.get(name, {}).get(key):
            needed = f"the student's {name}"
            return shapes.GateCheck(name, needed, None, passed=False, reason=other)
    if difference is None:
        reason = "it was not measured"
        return shapes.GateCheck("loss", required, None, passed=False, reason=reason)
    value = difference.low if gate.on_bound else difference.value
    if value < -gate.max_loss or gate.max_kl is None:
        return shapes.GateCheck("loss", required, value, value >= -gate.max_loss)
    if kl is None:
        return shapes.GateCheck("kl", required, None, passed=False, reason="it was not measured")
    required = f"at most {gate.max_kl:g} nats a token from the student{bound}"
    value = kl.high if gate.on_bound else kl.value
    return shapes.GateCheck("kl", required, value, value <= gate.max_kl)


def _retention(comparison: shapes.Comparison, gate: Gate) -> shapes.GateCheck:
    least, interval = gate.min_retention, comparison.retention_interval
    required = f"at least {least:g} of the teacher's {comparison.metric}"
    ends = comparison.retention, interval.low if interval else None
    return _check(gate, "retention", required, ends, lambda x: x >= least)


def _beats(comparison: shapes.Comparison, gate: Gate, role: str, required: str) -> shapes.GateCheck:
    """Returns the check of student - another model, in the main metric."""
    difference, may_be_equal = comparison.differences.get(role), role == "champion"
    ends = (difference.value, difference.low) if difference else NOTHING
    name = f"beats_{role}"
    return _check(gate, name, required, ends, lambda x: x > 0 or (may_be_equal and x == 0))


def _memory(student: shapes.MeasuredModel, gate: Gate, most: int) -> shapes.GateCheck:
    """Returns the check of the peak: of the GPU's memory where one was used, else of the host's."""
    on_gpu = student.peak_gpu_memory_bytes
    peak = student.peak_memory_bytes if on_gpu is None else on_gpu
    required = f"at most {most:,} bytes of {'memory' if on_gpu is None else 'GPU memory'}"
    return _check(gate, "memory", required, (peak, peak), lambda x: x <= most)


def _check(
    gate: Gate, name: str, required: str, measured: Bounds, passes: Callable[[float], bool]
) -> shapes.GateCheck:
    """Returns the check of a measured value, or of its worse bound."""
    value, bound = measured
    if name in gate.on_bound:
        value, required = bound, f"{required}, {BOUND}"
    if value is None or math.isnan(value):  # NaN is no JSON, and nobody's measurement
        reason = NOT_MEASURED.get(name, "it was not measured")
        return shapes.GateCheck(name, required, None, passed=False, reason=reason)
    return shapes.GateCheck(name, required, value, passes(value))
