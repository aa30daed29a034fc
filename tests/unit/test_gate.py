"""The gate: what is required, what was measured, and that the unmeasured never passes."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from retort.metrics.comparison.shapes import (
    Comparison,
    Difference,
    Estimate,
    GateCheck,
    Latency,
    MeasuredModel,
)
from retort.spec import Gate
from retort.stages.report.gate import judge

BESIDE = ("base", "fine_tuning", "champion")


ABOVE = Difference(0.02, -0.01, 0.05)
STUDENT = MeasuredModel(
    model="student",
    engine="echo",
    metrics={},
    latency_seconds=Latency(p50=0.1, p95=0.2, p95_low=0.15, p95_high=0.3),
    peak_memory_bytes=1000,
    cost_per_1000_requests=0.5,
)
# The student keeps 95% (90 to 99) and is a little above everybody.
COMPARISON = Comparison(
    "accuracy", 0.95, 0.02, Estimate(0.95, 0.9, 0.99), differences=dict.fromkeys(BESIDE, ABOVE)
)


def judged(
    comparison: Comparison = COMPARISON,
    student: MeasuredModel = STUDENT,
    has_champion: bool = True,
    **policy: Any,
) -> dict[str, GateCheck]:
    """The checks by name; the whole passes where all do."""
    found = judge(student, comparison, Gate(**policy), has_champion)
    assert found.passed == all(check.passed for check in found.checks)
    json.dumps(asdict(found), allow_nan=False)
    return {check.name: check for check in found.checks}


def outcome(*arguments: Any, **policy: Any) -> dict[str, tuple[Any, bool]]:
    """What was measured and whether it passed, by check."""
    found = judged(*arguments, **policy)
    return {name: (check.measured, check.passed) for name, check in found.items()}


def test_by_default_it_asks_for_retention_and_to_be_above_base_and_not_below_the_champion():
    assert outcome() == {
        "retention": (0.95, True),
        "beats_base": (0.02, True),
        "beats_champion": (0.02, True),
    }
    assert list(outcome(has_champion=False)) == ["retention", "beats_base"]
    only = {"beat_base": False, "beat_champion": False, "min_retention": 0.96}
    assert outcome(**only) == {"retention": (0.95, False)}


def test_on_the_bound_each_check_looks_at_the_worse_end_of_its_interval():
    names = ("retention", "beats_base", "beats_fine_tuning", "beats_champion", "latency")
    policy = {"beat_fine_tuning": True, "max_latency_seconds": 0.25}
    assert all(passed for _, passed in outcome(**policy).values())
    found = judged(min_retention=0.91, on_bound=names, **policy)
    measured = {name: check.measured for name, check in found.items()}
    assert measured == dict(zip(names, (0.9, -0.01, -0.01, -0.01, 0.3), strict=True))
    assert not any(check.passed for check in found.values())
    assert judged(on_bound=names)["retention"].required == (
        "at least 0.9 of the teacher's accuracy, by the worse bound of the 95% interval"
    )


@pytest.mark.parametrize("on_bound", [(), ("beats_base", "beats_fine_tuning", "beats_champion")])
def test_an_equal_student_follows_the_champion_and_beats_nobody(on_bound):
    same = dict.fromkeys(BESIDE, Difference(0.0, 0.0, 0.0))
    even = replace(COMPARISON, gain=0.0, differences=same)
    found = outcome(even, beat_fine_tuning=True, on_bound=on_bound)
    assert [found[f"beats_{role}"] for role in BESIDE] == [(0, False), (0, False), (0, True)]


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_what_was_not_measured_never_passes_and_says_why(unknown):
    student = replace(
        STUDENT,
        latency_seconds=Latency(p95=unknown),
        peak_memory_bytes=unknown,
        cost_per_1000_requests=unknown,
    )
    nan = {"champion": Difference(math.nan, math.nan, math.nan)} if unknown else {}
    compared = replace(COMPARISON, retention=unknown, differences=nan)
    bounds = {"max_latency_seconds": 1, "max_memory_bytes": 1, "max_cost_per_1000_requests": 1}
    checks = judged(compared, student, beat_fine_tuning=True, **bounds)
    assert list(checks) == [
        "retention",
        "beats_base",
        "beats_fine_tuning",
        "beats_champion",
        "latency",
        "memory",
        "cost",
    ]
    assert all((check.measured, check.passed) == (None, False) for check in checks.values())
    assert all(check.reason for check in checks.values())
    assert checks["cost"].reason == "no price given: set report.prices.student"
    on_bound = outcome(compared, student, on_bound=("retention", "latency"), **bounds)
    assert on_bound["latency"] == (None, False)


def test_a_champion_that_cannot_be_read_refuses():
    unread = {role: ABOVE for role in BESIDE if role != "champion"}
    check = judged(replace(COMPARISON, differences=unread))["beats_champion"]
    assert (check.passed, check.reason) == (False, "the champion cannot be read")
    assert "beats_champion" not in outcome(beat_champion=False)


def test_memory_is_the_gpus_where_one_is_used():
    assert outcome(max_memory_bytes=1000)["memory"] == (1000, True)
    on_gpu = replace(STUDENT, peak_gpu_memory_bytes=2000)
    check = judged(COMPARISON, on_gpu, max_memory_bytes=1000)["memory"]
    assert (check.measured, check.passed) == (2000, False)
    assert check.required == "at most 1,000 bytes of GPU memory"


def test_bounds_hold_up_to_the_number_itself():
    policy = {"max_latency_seconds": 0.2, "max_cost_per_1000_requests": 0.5, "min_retention": 0.95}
    assert all(passed for _, passed in outcome(**policy).values())
    less = {"max_latency_seconds": 0.19, "max_cost_per_1000_requests": 0.49}
    found = outcome(**less, min_retention=0.951)
    assert [found[name][1] for name in ("latency", "cost", "retention")] == [False] * 3
