"""The comparison's numbers and words: by hand, in percent and in numbers, known and unknown."""

import json
from dataclasses import replace
from typing import Any

import pytest

from retort.metrics.comparison import (
    ReportContent,
    as_json,
    caption,
    compare,
    details,
    headlines,
    read_content,
    table,
    too_few,
    unsure,
    verdict,
)
from retort.metrics.comparison.formatting import count, count_bytes, duration, gap, number, score
from retort.metrics.comparison.pages import markdown_table
from retort.metrics.comparison.shapes import (
    Comparison,
    Difference,
    Estimate,
    Evaluated,
    GateOutcome,
)
from tests.support import report_content


@pytest.fixture(scope="module")
def whole() -> ReportContent:
    return report_content.content(report_content.answered())


@pytest.fixture(scope="module")
def first(whole) -> list[list[str]]:
    return table(whole.models, "accuracy")


def second(content: ReportContent) -> list[list[str]]:
    return details(content.models, "accuracy", content.comparison.differences)


def cells(rows: list[list[str]], name: str) -> dict[str, str]:
    """A row of a table, by model."""
    (found,) = [row for row in rows if row[0] == name]
    return dict(zip(rows[0][1:], found[1:], strict=True))


def without(content: ReportContent, role: str, *measures: str) -> ReportContent:
    """The content where these are known of one model no more, compared anew."""
    model = replace(content.models[role], **dict.fromkeys(measures))
    models = {**content.models, role: model}
    retention = {"accuracy": content.comparison.retention_interval}
    evaluated = Evaluated(models, content.all_differences, retention)
    return replace(content, models=models, comparison=compare(evaluated, 0.9))


def otherwise(content: ReportContent, **changed: Any) -> ReportContent:
    """The content with another comparison."""
    return replace(content, comparison=replace(content.comparison, **changed))


def said(content: ReportContent) -> str:
    return verdict(content.comparison, content.gate)


def test_ratios_are_those_of_the_case_study_by_hand(whole):
    teacher, student = whole.models["teacher"], whole.models["student"]
    found = whole.comparison
    assert found.metric == "accuracy"
    accuracies = [model.metrics["accuracy"].value for model in (student, teacher)]
    assert found.retention == pytest.approx(accuracies[0] / accuracies[1])
    assert found.retention_interval.value == pytest.approx(found.retention)
    seconds = [model.latency_seconds.p50 for model in (student, teacher)]
    assert found.latency_reduction == pytest.approx(1 - seconds[0] / seconds[1])
    assert found.memory_reduction == pytest.approx(1 - 124 / 1540)
    costs = [model.cost_per_1000_requests for model in (student, teacher)]
    assert found.cost_reduction == pytest.approx(1 - costs[0] / costs[1])
    rates = [model.tokens_per_second for model in (student, teacher)]
    assert found.throughput_ratio == pytest.approx(rates[0] / rates[1])


def test_the_first_table_is_the_case_studys_and_the_second_holds_the_rest(whole, first):
    names = ["parameters", "memory usage (weights)", "inference time", "accuracy"]
    assert [row[0] for row in first[1:]] == [*names, "throughput (tokens/s)"]
    rest = second(whole)
    assert first[0] == rest[0] == ["", "teacher", "base", "student", "fine_tuning"]
    assert cells(first, "parameters")["teacher"] == "1.54B"
    assert cells(first, "memory usage (weights)")["student"] == "248 MB"
    assert cells(rest, "student minus it")["student"] == ""
    assert cells(rest, "student minus it")["base"].startswith("+")
    assert cells(rest, "perplexity")["student"] == "3.20 (3.00 to 3.40)"
    assert "peak memory of the GPU" not in {row[0] for row in rest}
    assert "the bound: 900 ms" in caption(whole)


def test_unknown_is_said_as_unknown_and_never_as_zero(whole):
    unknown = ("weights_bytes", "parameters", "latency_seconds", "tokens_per_second")
    found = without(whole, "teacher", *unknown, "cost_per_1000_requests", "requests_per_second")
    rows = table(found.models, "accuracy")[1:]
    assert [row[1] for row in rows] == [*["unknown"] * 3, "100.0%", "unknown"]
    assert {each.figure for each in headlines(found)[1:]} == {"unknown"}
    passed = verdict(found.comparison, GateOutcome(True, []))
    assert "unknown" not in passed and "less" not in passed and "; it passed the gate" in passed
    nothing = otherwise(found, retention=None, retention_interval=None)
    assert "keeps no known share" in said(nothing)


def test_a_rate_never_within_the_bound_is_none_and_not_unknown(whole):
    found = without(whole, "student", "within_bound")
    rates = cells(second(found), "requests a second within the bound")
    assert rates["student"] == "none" and rates["base"].endswith("(16 at once)")


def test_a_student_that_is_slower_and_dearer_is_said_to_be(whole):
    found = otherwise(whole, latency_reduction=-0.5, cost_reduction=-0.25, throughput_ratio=0.5)
    assert "50.0% more inference time" in said(found)
    assert "25.0% more cost" in said(found)
    figures = {each.label: (each.figure, each.good) for each in headlines(found)}
    assert figures["more inference time"] == ("50.0%", False)
    assert figures["the throughput"] == ("0.50\N{MULTIPLICATION SIGN}", False)


@pytest.mark.parametrize(("least", "is_unsure"), [(0.90, False), (0.915, True), (0.95, False)])
def test_the_verdict_says_when_the_interval_reaches_below_what_is_required(whole, least, is_unsure):
    kept = Estimate(0.928, 0.904, 0.948, 500)
    found = otherwise(whole, required_retention=least, retention=0.928, retention_interval=kept)
    words = said(found)
    assert words.startswith("The student keeps 92.8% (90.4% to 94.8%) of the teacher's accuracy, ")
    assert ("though the required 91.5% is within the interval" in words) == is_unsure
    assert bool(unsure(found.comparison)) == is_unsure


def test_too_few_examples_to_tell_is_said_in_words_with_how_many_would_do():
    near, far = Difference(0.01, -0.03, 0.05, 100), Difference(0.2, 0.1, 0.3, 100)
    gaps = {"base": far, "fine_tuning": near, "champion": Difference(0.0, -0.03, 0.03, 100)}
    (words,) = too_few(Comparison("accuracy", 0.9, 0.2, differences=gaps))
    assert words.startswith("100 examples are too few to tell the student from plain fine-tuning")
    assert "(-3.0 to +5.0 points)" in words and "about 1,600 would" in words


def test_a_champion_has_a_sentence_of_its_own(whole):
    differences = whole.comparison.differences | {"champion": Difference(-0.02, -0.03, -0.01, 500)}
    found = otherwise(whole, differences=differences)
    assert "It is 2.0 points (1.0 to 3.0) below the champion of its name." in said(found)


def test_a_report_is_its_json_and_what_an_engine_says_beyond_the_known_stays_in_it(whole):
    teacher = replace(whole.models["teacher"], others={"vocabulary": 140, "levels": [{"n": 1}]})
    found = replace(whole, models=whole.models | {"teacher": teacher})
    raw = json.loads(json.dumps(as_json(found)))
    assert raw["models"]["teacher"]["vocabulary"] == 140
    assert "others" not in raw["models"]["teacher"]
    assert not {"fingerprints", "registered", "benchmarks"} & {*raw}
    assert read_content(raw) == found
    of_a_run = replace(found, fingerprints={"train": "feed"}, prefect={"flow_run_id": None})
    assert read_content(as_json(of_a_run)) == of_a_run


def test_a_report_of_an_earlier_version_is_read(whole):
    raw = as_json(whole)
    for found in raw["all_differences"].values():
        for each in found.values():
            del each["outcome"]
    for check in raw["gate"]["checks"]:
        del check["reason"]
    raw["training"]["num_more"] = 3
    assert read_content(raw) == whole


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


def test_a_markdown_table_aligns_numbers_and_no_text_breaks_out_of_a_cell():
    rows = [["what", "number"], ["a|b\n<script>", "1,024"], ["x" * 200, "unknown"]]
    heading, rule, first, second = markdown_table(rows).splitlines()
    assert (heading, rule) == ("| what | number |", "| --- | ---: |")
    assert first == r"| a\|b &lt;script> | 1,024 |"
    assert second == f"| {'x' * 119}… | unknown |"
    assert markdown_table([["a heading", "alone"]]) == ""
