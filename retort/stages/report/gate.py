"""The gate: whether the student may go out, by the report's numbers and the spec's policy.

What was not measured never passes: a check whose number is unknown is refused, and says why.
"""

import math
from typing import Any

from retort.metrics import lower_is_better
from retort.spec import Gate

GateResult = dict[str, Any]
BOUND = "by the worse bound of the 95% interval"


def judge(content: dict[str, Any], gate: Gate) -> dict[str, Any]:
    """Returns `passed` and `checks`: of each its name, what was required, measured, and whether it
    passed; where nothing was measured, `reason` says why.

    It reads `models`, `comparison` and `champion` of the report's content. In `gate.on_bound` a
    check looks at the worse bound of the 95% interval instead of the value: retention's and the
    differences' lower one, the upper one of the 95th percentile of latency. The champion is not
    beaten but met: the student must not score below it, so that an equal one may follow it; on the
    bound, the interval of student - champion must not reach below zero.
    """
    metric = content["comparison"]["metric"]
    # All the task types' first metrics and agreement are shares of what is right.
    assert not lower_is_better(metric), f"the gate compares by {metric}, of which less is better"
    checks = [_retention(content, gate)]
    if gate.beat_base:
        checks.append(_beats(content, gate, "base"))
    if gate.beat_fine_tuning:
        checks.append(_beats(content, gate, "fine_tuning"))
    if gate.beat_champion and (content.get("champion") or "champion" in content["models"]):
        checks.append(_beats(content, gate, "champion"))
    if gate.max_latency_seconds is not None:
        checks.append(_latency(content, gate, gate.max_latency_seconds))
    if gate.max_memory_bytes is not None:
        checks.append(_memory(content, gate.max_memory_bytes))
    if gate.max_cost_per_1000_requests is not None:
        checks.append(_cost(content, gate.max_cost_per_1000_requests))
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def _retention(content: dict[str, Any], gate: Gate) -> GateResult:
    found, on_bound = content["comparison"], "retention" in gate.on_bound
    interval = found.get("retention_interval") or {}
    measured = interval.get("low") if on_bound else found["retention"]
    least = gate.min_retention
    required = f"at least {least:g} of the teacher's {found['metric']}"
    reason = "the teacher scored nothing that a share could be taken of"
    return _check(
        "retention", _on(required, on_bound), measured, _at_least(measured, least), reason
    )


def _beats(content: dict[str, Any], gate: Gate, role: str) -> GateResult:
    """Returns the check of student - another model, in the main metric."""
    name = f"beats_{role}"
    on_bound = name in gate.on_bound
    found = content["comparison"]
    difference = found["differences"].get(role)
    measured = difference["low" if on_bound else "value"] if difference else None
    if role == "champion":
        required, passed = f"{found['metric']} not below the champion's", _at_least(measured, 0.0)
    else:
        whose = {"base": "the base's", "fine_tuning": "plain fine-tuning's"}[role]
        required = f"{found['metric']} above {whose}"
        passed = measured is not None and measured > 0
    reason = "the champion cannot be read" if role == "champion" else "it was not measured"
    return _check(name, _on(required, on_bound), measured, passed, reason)


def _latency(content: dict[str, Any], gate: Gate, most: float) -> GateResult:
    on_bound = "latency" in gate.on_bound
    latency = content["models"]["student"]["latency_seconds"] or {}
    measured = latency.get("p95_high" if on_bound else "p95")
    required = _on(f"95% of whole answers within {most:g} s", on_bound)
    return _check("latency", required, measured, _at_most(measured, most), "it was not measured")


def _memory(content: dict[str, Any], most: int) -> GateResult:
    """Returns the check of the peak: of the GPU's memory where one was used, else of the host's."""
    student = content["models"]["student"]
    on_gpu = student.get("peak_gpu_memory_bytes")
    measured = student["peak_memory_bytes"] if on_gpu is None else on_gpu
    required = f"at most {most:,} bytes of {'memory' if on_gpu is None else 'GPU memory'}"
    return _check("memory", required, measured, _at_most(measured, most), "it was not measured")


def _cost(content: dict[str, Any], most: float) -> GateResult:
    measured = content["models"]["student"].get("cost_per_1000_requests")
    required = f"at most {most:g} for 1,000 requests"
    reason = "no price given: set report.prices.student"
    return _check("cost", required, measured, _at_most(measured, most), reason)


def _check(
    name: str, required: str, measured: float | None, passed: bool, reason: str
) -> GateResult:
    found: GateResult = {"name": name, "required": required, "measured": measured, "passed": passed}
    if measured is None or math.isnan(measured):
        # NaN is no JSON, and nobody's measurement.
        return {**found, "measured": None, "reason": reason}
    return found


def _at_least(measured: float | None, least: float) -> bool:
    """Whether a number was measured and is not less; NaN is neither."""
    return measured is not None and measured >= least


def _at_most(measured: float | None, most: float) -> bool:
    return measured is not None and measured <= most


def _on(required: str, on_bound: bool) -> str:
    return f"{required}, {BOUND}" if on_bound else required
