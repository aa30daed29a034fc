"""The report's content: costs by hand, slices against a recount, the worst examples first."""

from dataclasses import replace

import pytest

from retort import metrics
from retort.metrics.comparison.shapes import Difference, Estimate, MeasuredModel
from retort.records import Example, question_text
from retort.spec import Price, build
from retort.stages.report.content import MOST_POINTS, _public, _spread
from retort.stages.report.examples import MOST_CHARACTERS, cut, embedded, side_by_side
from retort.stages.report.measurements import Answered, per_1000_requests, price_of
from retort.stages.report.slices import MOST_VALUES, slices, warnings
from retort.store import urls
from tests.support import report_content
from tests.support.report_content import KNOBS


@pytest.fixture(scope="module")
def answered() -> Answered:
    return report_content.answered(200)


def vectors(scores: dict[str, list[float]]) -> Answered:
    """Answers whose scores are given by role."""
    num = len(scores["student"])
    examples = [
        Example(f"e{n}", "test", [{"role": "user", "content": f"q{n}"}]) for n in range(num)
    ]
    texts = {role: {f"e{n}": f"{role} {n}" for n in range(num)} for role in scores}
    found = {role: {f"e{n}": [s, 1.0] for n, s in enumerate(own)} for role, own in scores.items()}
    return Answered("accuracy", examples, texts, found, ())


def measured(**numbers: float | None) -> MeasuredModel:
    return MeasuredModel("model", "echo", {}, **numbers)


def test_costs_follow_from_speed_and_tokens_by_hand():
    model = measured(requests_per_second=5.0, num_prompt_tokens=40_000, num_tokens=10_000)
    by_hour = Price(price_per_hour=3.6)
    assert per_1000_requests(model, by_hour, 200) == pytest.approx(3.6 / 3600 / 5 * 1000)
    by_token = Price(price_per_million_input_tokens=2.5, price_per_million_output_tokens=10)
    # 200 prompt tokens and 50 of the answer a request
    assert per_1000_requests(model, by_token, 200) == pytest.approx(0.2 * 2.5 + 0.05 * 10)
    both = Price(price_per_hour=3.6, price_per_million_output_tokens=10)
    assert per_1000_requests(model, both, 200) == pytest.approx(0.2 + 0.5)


def test_a_cost_without_a_price_or_a_measured_number_is_unknown():
    model = measured(requests_per_second=None, num_prompt_tokens=0, num_tokens=10)
    assert per_1000_requests(model, None, 1) is None
    assert per_1000_requests(model, Price(), 1) is None
    assert per_1000_requests(model, Price(price_per_hour=1), 1) is None
    assert per_1000_requests(model, Price(price_per_million_input_tokens=1), 1) is None
    assert per_1000_requests(model, Price(price_per_million_output_tokens=1), 1) is not None


def test_the_teachers_price_is_what_its_answers_cost_unless_another_is_given():
    raw = {"name": "n", "prepare": {"train": "t", "test": "t"}, "train": {"student": "s"}}
    raw["generate"] = {"teacher": "t", "spending": {"price_per_hour": 4.0}}
    assert price_of(build(raw), "teacher") == Price(price_per_hour=4.0)
    assert price_of(build(raw), "student") is None
    prices = {"teacher": {"price_per_hour": 9.0}, "student": {"price_per_hour": 1.0}}
    given = build(raw | {"report": {"prices": prices}})
    roles = ("teacher", "student", "base", "fine_tuning")
    assert [price_of(given, r).price_per_hour for r in roles] == [9.0, 1.0, 1.0, 1.0]


def test_a_slice_is_a_recount_of_its_examples(answered):
    topics, lengths = slices(answered, KNOBS)
    assert [each.column for each in (topics, lengths)] == ["topic", "length"]
    for value in topics.values:
        ids = [e.id for e in answered.examples if e.metadata["topic"] == value.value]
        assert value.n == len(ids)
        for role, found in value.metrics.items():
            right = [answered.vectors[role][name][0] for name in ids]
            assert found.value == pytest.approx(sum(right) / len(ids))
        own = {r: {i: answered.vectors[r][i] for i in ids} for r in ("student", "teacher")}
        apart = metrics.difference("accuracy", own["student"], own["teacher"], 200, 0)
        assert value.difference == Difference.of(apart)
    assert [value.n for value in topics.values] == sorted(
        (value.n for value in topics.values), reverse=True
    )


def test_of_many_values_the_largest_are_shown_and_the_others_counted(answered):
    examples = [
        replace(e, metadata={"page": n // 2 if n < 60 else [n], "rare": None})
        for n, e in enumerate(answered.examples)
    ]
    found = replace(answered, examples=examples, columns=("page", "rare"))
    pages, rare = slices(found, KNOBS)
    assert len(pages.values) == MOST_VALUES
    shown = sum(value.n for value in pages.values)
    assert pages.others == {"values": 30 + 140 - MOST_VALUES, "n": 200 - shown}
    assert {value.difference.outcome for value in pages.values} == {"unclear"}
    assert [(value.value, value.n) for value in rare.values] == [("(none)", 200)]


def test_a_slice_of_which_clearly_less_is_kept_is_a_warning():
    found = report_content.answered(600)
    overall = metrics.ratio("accuracy", found.vectors["student"], found.vectors["teacher"], 200, 0)
    (warning,) = warnings(slices(found, KNOBS), Estimate.of(overall))
    assert warning.startswith("where length is long (")
    assert warnings(slices(found, KNOBS), None) == []


def test_the_worst_come_first_and_what_is_right_last():
    found = side_by_side(
        vectors({"teacher": [1, 0, 1, 0, 1], "student": [1, 0, 0, 1, 1], "base": [0] * 5})
    )
    assert [row.id for row in found.rows] == ["e2", "e1", "e3", "e0", "e4"]
    assert [row.kind for row in found.rows] == ["lost", "neither", "won", "both", "both"]
    assert found.counts == {"lost": 1, "neither": 1, "won": 1, "both": 2}
    assert found.rows[0].scores == {"teacher": 1.0, "student": 0.0, "base": 0.0}


def test_scores_between_0_and_1_are_better_or_worse_and_not_right_or_wrong():
    found = side_by_side(vectors({"teacher": [0.5, 0.9, 0.2, 0.0], "student": [0.5, 0.1, 0.3, 0]}))
    assert [row.id for row in found.rows] == ["e1", "e2", "e3", "e0"]
    assert found.kinds == {"lost": "teacher better", "won": "student better", "both": "equal"}


def test_an_example_that_no_metric_scores_is_shown_as_such():
    found = vectors({"teacher": [1, 1], "student": [1, 1]})
    del found.vectors["student"]["e0"]
    rows = side_by_side(found)
    assert [(row.id, row.kind) for row in rows.rows] == [
        ("e0", "unscored"),
        ("e1", "both"),
    ]
    assert rows.kinds == {"both": "both right", "unscored": "not scored"}


def test_what_does_not_fit_is_left_out_from_the_end_and_counted(answered):
    whole = side_by_side(answered)
    sizes = [len(embedded(row)) + 1 for row in whole.rows]
    some = side_by_side(answered, sum(sizes[:70]))
    assert some.rows == whole.rows[:70]
    assert (some.num_left_out, whole.num_left_out) == (130, 0)
    assert some.counts == whole.counts


def test_a_question_is_the_users_words_or_the_whole_chat():
    system, user = {"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}
    reply = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert question_text([system, user]) == "why?"
    assert question_text([system]) == "be brief"
    assert (
        question_text([user, reply, user]) == 'user: why?\n\nassistant: [{"id":"1"}]\n\nuser: why?'
    )
    long = "x" * (MOST_CHARACTERS + 1_200)
    assert cut(long).endswith("x … (1,200 more characters)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/v1", "https://host/v1"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("https://h/x.jsonl?sig=abc#part", "https://h/x.jsonl"),
        ("2 files: https://a@h/x?sig=1 ...", "2 files: https://h/x ..."),
        ("http://[a:b@h?sig=1", "http://h"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://me:with/slash@h:80/x", "http://h:80/x"),
        ("http://me:with?mark@h/x", "http://h/x"),
        ("http://h:80/@someone/x", "http://h:80/@someone/x"),
        ("s3://b/part-*.jsonl", "s3://b/part-*.jsonl"),
        ("What is 2 + 2? {text}", "What is 2 + 2? {text}"),
    ],
)
def test_an_address_is_shown_without_what_is_secret_in_it(text, shown):
    assert urls.public(text) == shown
    assert _public({"a": [text, 1, None]}) == {"a": [shown, 1, None]}


def test_of_a_long_training_the_validated_records_and_as_many_others_are_kept():
    records = [{"step": float(step)} for step in range(5_001)]
    found = _spread(records)
    assert len(found) <= MOST_POINTS + 1
    assert (found[0]["step"], found[-1]["step"]) == (0, 5_000)
    assert _spread(records[:3]) == records[:3] and _spread([]) == []
