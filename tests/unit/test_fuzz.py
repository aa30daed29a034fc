"""The fuzzing benchmark: it sees what it is there to see, and a little of each kind is clean."""

import json
import time
from random import Random

import pytest

from benchmarks import fuzz, fuzz_cases
from benchmarks.hostile_values import ROWS
from retort.errors import SpecError


def endless(random: Random) -> str:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        pass
    return "ended"


def raising(error: BaseException):
    def case(random: Random) -> str:
        raise error

    return case


@pytest.fixture
def outcome_of(monkeypatch):
    def of(case) -> fuzz.Outcome:
        monkeypatch.setitem(fuzz.CASES, "rows", case)
        return fuzz.run_case("rows", 0, 5)

    return of


def test_an_error_that_is_none_of_ours_and_a_hang_are_told_with_their_case(outcome_of, monkeypatch):
    foreign = outcome_of(raising(KeyError("x")))
    assert (foreign.num_foreign, foreign.num_hangs) == (1, 0)
    ((place, numbers),) = foreign.failures.items()
    assert place.startswith("KeyError at ") and numbers == [5]
    ours = outcome_of(raising(SpecError("refused")))
    assert ours.endings == {"refused": 1} and not ours.failures
    monkeypatch.setattr(fuzz, "HANG_SECONDS", 0.2)
    hanging = outcome_of(endless)
    assert (hanging.num_foreign, hanging.num_hangs) == (0, 1)
    foreign.add(hanging)
    assert (foreign.num_foreign, foreign.num_hangs) == (1, 1)


def test_a_case_depends_on_its_number_and_leaves_the_good_rows_as_they_are():
    before = json.dumps(ROWS)
    lines = [[fuzz_cases.a_line(Random(f"{seed}")) for seed in range(300)] for _ in range(2)]
    assert lines[0] == lines[1] and len(set(lines[0])) > 290
    assert json.dumps(ROWS) == before


@pytest.mark.parametrize("kind", [*fuzz.CASES])
def test_some_cases_of_each_kind_end_as_they_should(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in fuzz.NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    outcome = fuzz.Outcome()
    for number in range(20):
        outcome.add(fuzz.run_case(kind, 11, number))
    assert outcome.failures == {} and outcome.endings.total() == 20
