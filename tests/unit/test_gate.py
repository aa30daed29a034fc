"""The gate: what is required, what was measured, and that the unmeasured never passes."""

import json
import math
from typing import Any

import pytest

from retort.spec import Gate
from retort.stages.report.gate import judge

BESIDE = ("base", "fine_tuning", "champion")


def content(**beside: dict[str, float]) -> dict[str, Any]:
    """A report's numbers: the student keeps 95% (90 to 99) and is a little above everybody."""
    above = {"value": 0.02, "low": -0.01, "high": 0.05}
    return {
        "models": {
            "student": {
                "latency_seconds": {"p50": 0.1, "p95": 0.2, "p95_low": 0.15, "p95_high": 0.3},
                "peak_memory_bytes": 1000,
                "peak_gpu_memory_bytes": None,
                "cost_per_1000_requests": 0.5,
            },
            **{role: {} for role in BESIDE},
        },
        "comparison": {
            "metric": "accuracy",
            "retention": 0.95,
            "retention_interval": {"value": 0.95, "low": 0.9, "high": 0.99},
            "gain": 0.02,
            "differences": {role: beside.get(role, above) for role in BESIDE},
        },
    }


def outcome(found: dict[str, Any], **policy: Any) -> dict[str, tuple[Any, bool]]:
    """What was measured and whether it passed, by check; the whole passes where all do."""
    judged = judge(found, Gate(**policy))
    assert judged["passed"] == all(check["passed"] for check in judged["checks"])
    json.dumps(judged, allow_nan=False)
    return {check["name"]: (check["measured"], check["passed"]) for check in judged["checks"]}


def test_by_default_it_asks_for_retention_and_to_be_above_base_and_not_below_the_champion():
    found = outcome(content())
    assert found == {
        "retention": (0.95, True),
        "beats_base": (0.02, True),
        "beats_champion": (0.02, True),
    }
    without = content()
    del without["models"]["champion"]
    assert list(outcome(without)) == ["retention", "beats_base"]
    assert outcome(without, beat_base=False, min_retention=0.96) == {"retention": (0.95, False)}


def test_on_the_bound_each_check_looks_at_the_worse_end_of_its_interval():
    names = ("retention", "beats_base", "beats_fine_tuning", "beats_champion", "latency")
    policy = {"beat_fine_tuning": True, "max_latency_seconds": 0.25}
    assert all(passed for _, passed in outcome(content(), **policy).values())
    found = outcome(content(), min_retention=0.91, on_bound=names, **policy)
    measured = {name: value for name, (value, _) in found.items()}
    assert measured == dict(zip(names, (0.9, -0.01, -0.01, -0.01, 0.3), strict=True))
    assert not any(passed for _, passed in found.values())
    required = {c["name"]: c["required"] for c in judge(content(), Gate(on_bound=names))["checks"]}
    assert required["retention"] == (
        "at least 0.9 of the teacher's accuracy, by the worse bound of the 95% interval"
    )


@pytest.mark.parametrize("on_bound", [(), ("beats_base", "beats_fine_tuning", "beats_champion")])
def test_an_equal_student_follows_the_champion_and_beats_nobody(on_bound):
    same = {"value": 0.0, "low": 0.0, "high": 0.0}
    even = content(**dict.fromkeys(BESIDE, same))
    even["comparison"]["gain"] = 0.0
    found = outcome(even, beat_fine_tuning=True, on_bound=on_bound)
    assert [found[f"beats_{role}"] for role in BESIDE] == [(0, False), (0, False), (0, True)]


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_what_was_not_measured_never_passes_and_says_why(unknown):
    found = content()
    student, compared = found["models"]["student"], found["comparison"]
    student["latency_seconds"] = {"p95": unknown}
    student |= {"peak_memory_bytes": unknown, "cost_per_1000_requests": unknown}
    compared |= {"retention": unknown, "gain": unknown}
    compared["differences"] = {"champion": {"value": unknown}} if unknown else {}
    bounds = {"max_latency_seconds": 1, "max_memory_bytes": 1, "max_cost_per_1000_requests": 1}
    policy = Gate(beat_fine_tuning=True, **bounds)
    checks = judge(found, policy)["checks"]
    assert [check["name"] for check in checks] == [
        "retention",
        "beats_base",
        "beats_fine_tuning",
        "beats_champion",
        "latency",
        "memory",
        "cost",
    ]
    assert all((check["measured"], check["passed"]) == (None, False) for check in checks)
    reasons = {check["name"]: check["reason"] for check in checks}
    assert reasons["cost"] == "no price given: set report.prices.student"
    assert outcome(found, on_bound=("retention", "latency"), max_latency_seconds=1)["latency"] == (
        None,
        False,
    )


def test_a_champion_that_cannot_be_read_refuses():
    found = content()
    del found["models"]["champion"], found["comparison"]["differences"]["champion"]
    found["champion"] = {"source": "gone", "is_readable": False}
    (check,) = [c for c in judge(found, Gate())["checks"] if c["name"] == "beats_champion"]
    assert (check["passed"], check["reason"]) == (False, "the champion cannot be read")
    assert "beats_champion" not in outcome(found, beat_champion=False)


def test_memory_is_the_gpus_where_one_is_used():
    found = content()
    assert outcome(found, max_memory_bytes=1000)["memory"] == (1000, True)
    found["models"]["student"]["peak_gpu_memory_bytes"] = 2000
    assert outcome(found, max_memory_bytes=1000)["memory"] == (2000, False)
    assert judge(found, Gate(max_memory_bytes=1000))["checks"][-1]["required"] == (
        "at most 1,000 bytes of GPU memory"
    )


def test_bounds_hold_up_to_the_number_itself():
    policy = {"max_latency_seconds": 0.2, "max_cost_per_1000_requests": 0.5, "min_retention": 0.95}
    assert all(passed for _, passed in outcome(content(), **policy).values())
    less = {"max_latency_seconds": 0.19, "max_cost_per_1000_requests": 0.49}
    found = outcome(content(), **less, min_retention=0.951)
    assert [found[name][1] for name in ("latency", "cost", "retention")] == [False] * 3
