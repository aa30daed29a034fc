"""The comparison's numbers and words: by hand, in percent and in numbers, known and unknown."""

import copy
from typing import Any

import pytest

from retort.metrics.comparison import (
    caption,
    compare,
    details,
    headlines,
    table,
    too_few,
    unsure,
    verdict,
)
from retort.metrics.comparison.formatting import count, count_bytes, duration, gap, number, score
from tests.support import report_content


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return report_content.content(report_content.answered())


def cells(rows: list[list[str]], name: str) -> dict[str, str]:
    """A row of a table, by model."""
    (found,) = [row for row in rows if row[0] == name]
    return dict(zip(rows[0][1:], found[1:], strict=True))


def without(content: dict[str, Any], role: str, *measures: str) -> dict[str, Any]:
    """The content where these are known of one model no more, compared anew."""
    found = copy.deepcopy(content)
    found["models"][role] |= dict.fromkeys(measures)
    evaluated = {"models": found["models"], "differences": found["all_differences"]}
    evaluated["retention"] = {"accuracy": found["comparison"]["retention_interval"]}
    return found | {"comparison": compare(evaluated)}


def test_ratios_are_those_of_the_case_study_by_hand(whole):
    teacher, student = whole["models"]["teacher"], whole["models"]["student"]
    found = whole["comparison"]
    assert found["metric"] == "accuracy"
    accuracies = [model["metrics"]["accuracy"]["value"] for model in (student, teacher)]
    assert found["retention"] == pytest.approx(accuracies[0] / accuracies[1])
    assert found["retention_interval"]["value"] == pytest.approx(found["retention"])
    seconds = [model["latency_seconds"]["p50"] for model in (student, teacher)]
    assert found["latency_reduction"] == pytest.approx(1 - seconds[0] / seconds[1])
    assert found["memory_reduction"] == pytest.approx(1 - 124 / 1540)
    costs = [model["cost_per_1000_requests"] for model in (student, teacher)]
    assert found["cost_reduction"] == pytest.approx(1 - costs[0] / costs[1])
    rates = [model["tokens_per_second"] for model in (student, teacher)]
    assert found["throughput_ratio"] == pytest.approx(rates[0] / rates[1])


def test_the_first_table_is_the_case_studys_and_the_second_holds_the_rest(whole):
    first, second = table(whole), details(whole)
    names = ["parameters", "memory usage (weights)", "inference time", "accuracy"]
    assert [row[0] for row in first[1:]] == [*names, "throughput (tokens/s)"]
    assert first[0] == second[0] == ["", "teacher", "base", "student", "fine_tuning"]
    assert cells(first, "parameters")["teacher"] == "1.54B"
    assert cells(first, "memory usage (weights)")["student"] == "248 MB"
    assert cells(second, "student minus it")["student"] == ""
    assert cells(second, "student minus it")["base"].startswith("+")
    assert cells(second, "perplexity")["student"] == "3.20 (3.00 to 3.40)"
    assert "peak memory of the GPU" not in {row[0] for row in second}
    assert "the bound: 900 ms" in caption(whole)


def test_unknown_is_said_as_unknown_and_never_as_zero(whole):
    unknown = ("weights_bytes", "parameters", "latency_seconds", "tokens_per_second")
    found = without(whole, "teacher", *unknown, "cost_per_1000_requests", "requests_per_second")
    assert [row[1] for row in table(found)[1:]] == [*["unknown"] * 3, "100.0%", "unknown"]
    figures = {each["label"]: each["figure"] for each in headlines(found)[1:]}
    assert set(figures.values()) == {"unknown"}
    said = verdict(found | {"gate": {"passed": True}})
    assert "unknown" not in said and "less" not in said and "; it passed the gate." in said
    nothing = found["comparison"] | {"retention": None, "retention_interval": None}
    assert "keeps no known share" in verdict(found | {"comparison": nothing})


def test_a_rate_never_within_the_bound_is_none_and_not_unknown(whole):
    found = without(whole, "student", "within_bound")
    rates = cells(details(found), "requests a second within the bound")
    assert rates["student"] == "none" and rates["base"].endswith("(16 at once)")


def test_a_student_that_is_slower_and_dearer_is_said_to_be(whole):
    found = copy.deepcopy(whole)
    found["comparison"] |= {"latency_reduction": -0.5, "cost_reduction": -0.25}
    found["comparison"] |= {"throughput_ratio": 0.5}
    assert "50.0% more inference time" in verdict(found)
    assert "25.0% more cost" in verdict(found)
    told = {each["label"]: (each["figure"], each["good"]) for each in headlines(found)}
    assert told["more inference time"] == ("50.0%", False)
    assert told["the throughput"] == ("0.50\N{MULTIPLICATION SIGN}", False)


@pytest.mark.parametrize(("least", "is_unsure"), [(0.90, False), (0.915, True), (0.95, False)])
def test_the_verdict_says_when_the_interval_reaches_below_what_is_required(whole, least, is_unsure):
    found = copy.deepcopy(whole)
    sure = {"value": 0.928, "low": 0.904, "high": 0.948, "n": 500}
    found["comparison"] |= {"required_retention": least, "retention_interval": sure}
    found["comparison"]["retention"] = 0.928
    said = verdict(found)
    assert said.startswith("The student keeps 92.8% (90.4% to 94.8%) of the teacher's accuracy, ")
    assert ("though the 91.5% asked for is within the interval" in said) == is_unsure
    assert bool(unsure(found["comparison"])) == is_unsure


def test_too_few_examples_to_tell_is_said_in_words_with_how_many_would_do():
    near = {"value": 0.01, "low": -0.03, "high": 0.05, "n": 100, "outcome": "unclear"}
    far = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 100, "outcome": "above"}
    same = {"value": 0.0, "low": -0.03, "high": 0.03, "n": 100, "outcome": "unclear"}
    gaps = {"base": far, "fine_tuning": near, "champion": same}
    (said,) = too_few({"metric": "accuracy", "differences": gaps})
    assert said.startswith("100 examples are too few to tell the student from plain fine-tuning")
    assert "(-3.0 to +5.0 points)" in said and "about 1,600 would" in said


def test_a_champion_has_a_sentence_of_its_own(whole):
    found = copy.deepcopy(whole)
    gap_of = {"value": -0.02, "low": -0.03, "high": -0.01, "n": 500, "outcome": "below"}
    found["comparison"]["differences"]["champion"] = gap_of
    assert "It is 2.0 points (1.0 to 3.0) below the champion of its name." in verdict(found)


def test_numbers_are_written_in_as_few_digits_as_matter():
    assert [number(n) for n in (8.7719, 120.4, 12_345.6, 0.0001234, 0)] == [
        *("8.77", "120", "12,346", "0.000123", "0.00")
    ]
    assert [count(n) for n in (91_200, 1_945_536, 1_540_000_000)] == ["91,200", "1.95M", "1.54B"]
    assert [count_bytes(n) for n in (999, 182_400, 3_882_624, 2.1e9)] == [
        *("999 B", "182 kB", "3.88 MB", "2.10 GB")
    ]
    assert [duration(n) for n in (0.0349, 1.5, 431)] == ["34.9 ms", "1.50 s", "431 s"]
    assert (score(0.958, "accuracy"), gap(-0.042, "accuracy")) == ("95.8%", "-4.2")
    assert (score(12.345, "bleu"), gap(1.5, "bleu")) == ("12.3", "+1.50")
