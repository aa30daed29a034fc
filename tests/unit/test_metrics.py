"""What each metric says of an answer, which decide, and what a user's own metric may give.

Agreement with other libraries, to the last digit, stands in test_metrics_parity.py.
"""

import sys

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from retort import metrics
from retort.data.task_types import conversation, math, nli, qa, summarization
from retort.errors import SpecError
from retort.metrics import accuracy, agreement, rouge_l, statistics, token_f1
from retort.plugins import FOLDER, outside
from retort.records import Example, Row, read_lines, write_lines
from retort.spec import Prepare


def example(expected=None, name="a", **known):
    return Example(name, "test", [{"role": "user", "content": "?"}], expected, **known)


def test_a_text_without_an_answer_is_wrong():
    assert token_f1(example("paris"), " ", qa) == 0.0
    assert token_f1(example("paris"), "Not Rome.\nAnswer: Paris", qa) == 1.0
    assert rouge_l(example("Paris"), "<think>Paris", summarization) == 0.0
    assert accuracy(example("7"), "no number", math) == 0.0
    assert metrics.bleu(example("Paris"), "<think>Paris", summarization)[0] == 0
    assert metrics.length_ratio(example("Paris"), " ", summarization) == [0, 1]


def test_without_a_known_answer_there_is_no_score():
    assert accuracy(example(), "7", math) is None
    for metric in (metrics.exact_match, token_f1):
        assert metric(example(), "Paris", qa) is None
        assert metric(example("A", options={"A": "x", "B": "y"}), "A", qa) is None
    assert metrics.macro_f1(example("paris"), "Paris", qa) is None
    for metric in (rouge_l, metrics.rouge_1, metrics.bleu, metrics.length_ratio):
        assert metric(example(), "It rained.", summarization) is None
    for reference in (None, "It rained all day."):
        assert metrics.entity_coverage(example(reference=reference), "x", conversation) is None


def test_an_answer_is_right_if_it_is_any_of_the_right_ones():
    fields = {"question": "Who?", "answer": {"text": ["Ann Lee", "Lee", "ann lee", ""]}}
    asked = qa.prompt(Row(fields=fields), Prepare(train="train.jsonl"))
    assert (asked.expected, asked.answers) == ("ann lee", ["ann lee", "lee"])
    known = example(asked.expected, answers=asked.answers)
    for text, right in (("The Lee!", 1.0), ("Ann Lee", 1.0), ("Ann", 0.0)):
        assert accuracy(known, text, qa) == metrics.exact_match(known, text, qa) == right
    assert token_f1(known, "Ann", qa) == pytest.approx(2 / 3)
    assert read_lines(Example, write_lines([known])) == [known]
    one = qa.prompt(Row(fields={"question": "?", "answer": "x"}), Prepare(train="train.jsonl"))
    assert one.answers is None
    assert agreement(known, "Lee", "Ann Lee", qa) == 0.0


def test_the_reference_is_read_as_an_answer_is():
    known = example(reference="<think>Six words that are not said.</think>It rained.")
    assert metrics.rouge_1(known, "It rained.", conversation) == 1.0
    assert metrics.length_ratio(known, "It rained in Bern.", conversation) == [4, 2]


def test_entities_are_names_and_numbers_wherever_the_answer_has_them():
    known = example("In 2019 the Bank of Bern paid Ms Ann Lee 1,200 francs for seven days.")
    names = "Bank of Bern", "Ms Ann Lee", "2019", "1200"
    for text, held in (
        (f"{names[1]} got {names[3]} from the {names[0]} in {names[2]}.", 4),
        ("ann lee, Ms, 2019", 2),
        ("The Bank.", 0),
        ("", 0),
    ):
        assert metrics.entity_coverage(known, text, summarization) == held / 4
    assert metrics.entity_coverage(example("It took 7 days"), "seven days", summarization) == 1


def test_answers_agree_by_the_task_types_own_measure():
    assert agreement(example("9"), "It is 1,234.", "#### 1234", math) == 1.0
    assert agreement(example("9"), "9", "8", math) == 0.0
    assert agreement(example("9"), "none", "none", math) == 0.0
    options = {"A": "Paris", "B": "Rome"}
    assert agreement(example(options=options), "(B)", "The answer is B.", qa) == 1.0
    assert agreement(example(), "Neutral", "Answer: neutral", nli) == 1.0
    assert agreement(example(), "Hi  there", "Hi there", conversation) == 1.0
    assert agreement(example(), "Hi you", "Hi there", conversation) == 0.0
    teacher, student = "Heavy rain fell in Bern on Monday.", "Rain fell in Bern."
    value = RougeScorer(["rougeL"], use_stemmer=True).score(teacher, student)["rougeL"].fmeasure
    asked = example("Something else.", reference="Something else.")
    drafted = f"1. Rain.\n\nAnswer: {teacher}"
    assert agreement(asked, student, drafted, summarization) == pytest.approx(value)
    assert 0.5 < value < 1


def test_the_metrics_that_apply_come_in_the_types_order_with_agreement():
    examples = [example("paris", "a"), example(None, "b"), example("rome lazio", "c")]
    answers = {"c": "Rome", "b": "Bern", "a": "Paris."}
    teacher = {"a": "paris", "b": "Basel", "c": "Rome"}
    found = statistics(qa, examples, answers, teacher)
    assert list(found) == ["accuracy", "exact_match", "token_f1", "agreement"]
    assert found["accuracy"] == {"a": [1.0, 1.0], "c": [0.0, 1.0]}
    assert found["token_f1"] == {"a": [1.0, 1.0], "c": [pytest.approx(2 / 3), 1.0]}
    assert found["agreement"] == {"a": [1.0, 1.0], "b": [0.0, 1.0], "c": [1.0, 1.0]}
    assert statistics(qa, [], {}, {}) == {}


def test_what_decides_is_the_first_that_applies_and_agreement_where_no_answer_is_known():
    known, bare = example("Rome is old.", reference="Rome is old."), example()
    texts = {"a": "Rome"}
    summary = ["rouge_l", "rouge_1", "rouge_2", "bleu", "length_ratio"]
    for task_type, asked, names, expected in (
        (summarization, known, (), [*summary, "agreement"]),
        (summarization, bare, (), ["agreement"]),
        (summarization, bare, ["token_f1"], ["agreement"]),
        (conversation, example(reference="Rome is old."), (), ["agreement", *summary]),
        (conversation, bare, (), ["agreement"]),
        (math, example("7"), ["rouge_1", "accuracy"], ["accuracy", "rouge_1", "agreement"]),
        (qa, example("A", options={"A": "x", "B": "y"}), (), ["accuracy", "macro_f1", "agreement"]),
    ):
        found = statistics(task_type, [asked], texts, texts, names)
        assert list(found) == expected
        metric, alone = metrics.decided(task_type, [asked], texts, texts)
        assert metric == expected[0]
        assert alone == found[metric]


def test_labels_that_differ_from_row_to_row_are_counted_by_what_they_are():
    choices = {letter: letter for letter in "ABCD"}
    examples = [example("D", "a", options=choices), example("B", "b", options={"B": "B", "A": "A"})]
    texts = {"a": "D", "b": "none"}
    assert metrics.confusion(qa, examples, texts) == {
        "labels": ["A", "B", "C", "D"],
        "counts": [[0] * 5, [0, 0, 0, 0, 1], [0] * 5, [0, 0, 0, 1, 0]],
    }
    found = statistics(qa, examples, texts, texts)["macro_f1"]
    assert metrics.interval("macro_f1", found, 100, 0)["value"] == 0.5
    assert metrics.confusion(qa, [example("paris")], {"a": "Paris"}) is None
    assert metrics.confusion(nli, [example(options={"x": "x"})], {"a": "x"}) is None


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A task type in a file of the user's, to which tests add metrics."""
    (tmp_path / "own_type.py").write_text("from retort.data.task_types.math import answer, equal\n")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_type", raising=False)
    yield outside("own_type:")
    sys.path.remove(str(tmp_path))


def test_a_type_of_ones_own_may_bring_its_own_metric(own):
    answers, right = {"a": "7"}, {"a": [1.0, 1.0]}
    found = statistics(own, [example("7")], answers, answers)
    assert found == {"accuracy": right, "agreement": right}
    own.half = lambda example, text, task_type: 0.5
    own.METRICS = ("own_type:half",)
    half = {"a": [0.5, 1.0]}
    found = statistics(own, [example("7")], answers, answers)
    assert found == {"own_type:half": half, "agreement": half}
    own.METRICS = ("acuracy",)
    with pytest.raises(SpecError, match=r"unknown metric 'acuracy'.*did you mean 'accuracy'"):
        statistics(own, [example("7")], answers, answers)
    own.METRICS = ("own_type:name",)
    own.name = "a text"
    with pytest.raises(SpecError, match=r"metric own_type:name is no function; write \(example"):
        statistics(own, [example("7")], answers, answers)


def test_agreement_passes_over_metrics_that_are_no_mean(own):
    own.METRICS = ("bleu", "macro_f1", "accuracy")
    answers = {"a": "7"}
    found = statistics(own, [example("7")], answers, answers)
    assert list(found) == ["bleu", "accuracy", "agreement"]
    assert found["agreement"] == {"a": [1.0, 1.0]}


def test_a_metric_of_ones_own_that_says_nothing_is_left_out(own):
    own.mute = lambda example, text, task_type: None
    own.once = lambda example, text, task_type: np.float32(3) if example.id == "b" else None
    own.sure = lambda example, text, task_type: True
    examples = [example("7", "a"), example("8", "b")]
    texts = {"a": "7", "b": "7"}
    names = ["own_type:mute", "own_type:once", "own_type:sure"]
    found = statistics(math, examples, texts, texts, names)
    assert list(found) == ["accuracy", "own_type:once", "own_type:sure", "agreement"]
    assert found["own_type:once"] == {"b": [3.0, 1.0]}
    assert metrics.interval("own_type:once", found["own_type:once"], 100, 0)["n"] == 1


@pytest.mark.parametrize("given", [float("nan"), float("inf"), "0.5", [0.5, 1.0], {}, 1j])
def test_a_metric_of_ones_own_that_gives_no_number_is_refused_by_name(own, given):
    own.odd = lambda example, text, task_type: given if example.id == "b" else 0.5
    examples = [example("7", "a"), example("8", "b")]
    texts = {"a": "7", "b": "7"}
    with pytest.raises(
        SpecError, match=r"metric own_type:odd returned .* for example 'b'; return a fin"
    ):
        statistics(math, examples, texts, texts, ["own_type:odd"])


def test_every_metric_says_how_it_is_shown_and_which_way_is_better():
    shares = ["accuracy", "macro_f1", "exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l"]
    for name in [*shares, "entity_coverage", "agreement"]:
        assert (metrics.form(name), metrics.lower_is_better(name)) == ("share", False)
    for name in ("bleu", "length_ratio", "judge", "own_type:half"):
        assert (metrics.form(name), metrics.lower_is_better(name)) == ("number", False)
    for name in ("perplexity", "kl_to_teacher"):
        assert (metrics.form(name), metrics.lower_is_better(name)) == ("number", True)
