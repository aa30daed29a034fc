"""The gate: whether the student may go out, by the report's numbers and the spec's policy.

What was not measured never passes: a check whose number is unknown is refused, and says why.
"""

import math

from retort.metrics import lower_is_better
from retort.metrics.comparison.content import (
    Comparison,
    GateCheck,
    GateOutcome,
    Latency,
    MeasuredModel,
)
from retort.spec import Gate

BOUND = "by the worse bound of the 95% interval"
NOT_MEASURED = "it was not measured"


def judge(
    student: MeasuredModel, comparison: Comparison, gate: Gate, has_champion: bool = False
) -> GateOutcome:
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
        checks.append(_beats(comparison, gate, "base"))
    if gate.beat_fine_tuning:
        checks.append(_beats(comparison, gate, "fine_tuning"))
    if gate.beat_champion and has_champion:
        checks.append(_beats(comparison, gate, "champion"))
    if gate.max_latency_seconds is not None:
        checks.append(_latency(student, gate, gate.max_latency_seconds))
    if gate.max_memory_bytes is not None:
        checks.append(_memory(student, gate.max_memory_bytes))
    if (most := gate.max_cost_per_1000_requests) is not None:
        required = f"at most {most:g} for 1,000 requests"
        cost, reason = student.cost_per_1000_requests, "no price given: set report.prices.student"
        checks.append(_check("cost", required, cost, _at_most(cost, most), reason))
    return GateOutcome(all(check.passed for check in checks), checks)


def _retention(found: Comparison, gate: Gate) -> GateCheck:
    on_bound, interval = "retention" in gate.on_bound, found.retention_interval
    measured = found.retention
    if on_bound:
        measured = interval.low if interval else None
    least = gate.min_retention
    required = _on(f"at least {least:g} of the teacher's {found.metric}", on_bound)
    reason = "the teacher scored nothing that a share could be taken of"
    return _check("retention", required, measured, _at_least(measured, least), reason)


def _beats(found: Comparison, gate: Gate, role: str) -> GateCheck:
    """Returns the check of student - another model, in the main metric."""
    name = f"beats_{role}"
    on_bound, difference = name in gate.on_bound, found.differences.get(role)
    measured = None
    if difference:
        measured = difference.low if on_bound else difference.value
    if role == "champion":
        required, passed = f"{found.metric} not below the champion's", _at_least(measured, 0.0)
    else:
        whose = {"base": "the base's", "fine_tuning": "plain fine-tuning's"}[role]
        required = f"{found.metric} above {whose}"
        passed = measured is not None and measured > 0
    reason = "the champion cannot be read" if role == "champion" else NOT_MEASURED
    return _check(name, _on(required, on_bound), measured, passed, reason)


def _latency(student: MeasuredModel, gate: Gate, most: float) -> GateCheck:
    on_bound, latency = "latency" in gate.on_bound, student.latency_seconds or Latency()
    measured = latency.p95_high if on_bound else latency.p95
    required = _on(f"95% of whole answers within {most:g} s", on_bound)
    return _check("latency", required, measured, _at_most(measured, most))


def _memory(student: MeasuredModel, most: int) -> GateCheck:
    """Returns the check of the peak: of the GPU's memory where one was used, else of the host's."""
    on_gpu = student.peak_gpu_memory_bytes
    measured = student.peak_memory_bytes if on_gpu is None else on_gpu
    required = f"at most {most:,} bytes of {'memory' if on_gpu is None else 'GPU memory'}"
    return _check("memory", required, measured, _at_most(measured, most))


def _check(
    name: str, required: str, measured: float | None, passed: bool, reason: str = NOT_MEASURED
) -> GateCheck:
    if measured is None or math.isnan(measured):
        # NaN is no JSON, and nobody's measurement.
        return GateCheck(name, required, None, False, reason)
    return GateCheck(name, required, measured, passed)


def _at_least(measured: float | None, least: float) -> bool:
    """Whether a number was measured and is not less; NaN is neither."""
    return measured is not None and measured >= least


def _at_most(measured: float | None, most: float) -> bool:
    return measured is not None and measured <= most


def _on(required: str, on_bound: bool) -> str:
    return f"{required}, {BOUND}" if on_bound else required
