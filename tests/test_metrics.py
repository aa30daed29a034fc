"""Metrics against their sources: SQuAD's own script, rouge-score, and closed forms."""

import collections
import random
import re
import string
import sys
from types import ModuleType

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import beta, norm

from retort.errors import SpecError
from retort.metrics import accuracy, agreement, difference, interval, rouge_l, scores, token_f1
from retort.records import Example
from retort.task_types import conversation, math, nli, qa, summarization


def example(expected=None, name="a", **known):
    return Example(name, "test", [{"role": "user", "content": "?"}], expected, **known)


# SQuAD's evaluate-v1.1.py, as published


def normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def f1_score(prediction, ground_truth):
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


WORDS = ["The", "a", "Eiffel", "tower,", "tower", "in", "Paris", "paris.", "1889", "an", "o'clock"]


def random_texts(num):
    chosen = random.Random(0)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(1, 8))) for _ in range(num)]


def test_words_in_common_and_equality_are_squads():
    num_partial = 0
    for given, wanted in zip(random_texts(600), random_texts(900)[300:], strict=True):
        if not normalize_answer(given) or not normalize_answer(wanted):
            continue  # articles alone: SQuAD compares nothing with nothing, ours the articles
        asked = example(qa.normal(wanted), reference=wanted)
        value = f1_score(given, wanted)
        assert token_f1(asked, given, qa) == pytest.approx(value)
        exact = normalize_answer(given) == normalize_answer(wanted)
        assert accuracy(asked, given, qa) == float(exact)
        num_partial += 0 < value < 1
    assert num_partial > 100


def test_a_text_without_an_answer_has_nothing_in_common():
    assert token_f1(example("paris"), " ", qa) == 0.0
    assert token_f1(example("paris"), "Not Rome.\nAnswer: Paris", qa) == 1.0
    assert rouge_l(example("Paris"), "<think>Paris", summarization) == 0.0
    assert accuracy(example("7"), "no number", math) == 0.0


def test_rouge_l_is_rouge_scores_own_with_stemming():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for given, wanted in zip(random_texts(40), random_texts(80)[40:], strict=True):
        value = scorer.score(wanted, given)["rougeL"].fmeasure
        assert rouge_l(example(wanted), given, summarization) == pytest.approx(value)
        assert rouge_l(example(reference=wanted), given, summarization) == pytest.approx(value)
    assert rouge_l(example("It rained"), "it rains", summarization) == 1.0


def test_without_a_known_answer_there_is_no_score():
    assert accuracy(example(), "7", math) is None
    assert token_f1(example(), "Paris", qa) is None
    assert token_f1(example("A", options={"A": "x", "B": "y"}), "A", qa) is None
    assert rouge_l(example(), "It rained.", summarization) is None


def test_answers_agree_by_the_task_types_own_measure():
    assert agreement(example("9"), "It is 1,234.", "#### 1234", math) == 1.0
    assert agreement(example("9"), "9", "8", math) == 0.0
    assert agreement(example("9"), "none", "none", math) == 0.0
    options = {"A": "Paris", "B": "Rome"}
    assert agreement(example(options=options), "(B)", "The answer is B.", qa) == 1.0
    assert agreement(example(), "Neutral", "Answer: neutral", nli) == 1.0
    assert agreement(example(), "Hi  there", "Hi there", conversation) == 1.0
    teacher, student = "Heavy rain fell in Bern on Monday.", "Rain fell in Bern."
    value = RougeScorer(["rougeL"], use_stemmer=True).score(teacher, student)["rougeL"].fmeasure
    asked = example("Something else.", reference="Something else.")
    drafted = f"1. Rain.\n\nAnswer: {teacher}"
    assert agreement(asked, student, drafted, summarization) == pytest.approx(value)
    assert 0.5 < value < 1


def test_scores_are_those_that_apply_in_the_types_order_and_agreement():
    examples = [example("paris", "a"), example(None, "b"), example("rome lazio", "c")]
    answers = {"c": "Rome", "b": "Bern", "a": "Paris."}
    teacher = {"a": "paris", "b": "Basel", "c": "Rome"}
    found = scores(qa, examples, answers, teacher)
    assert list(found) == ["accuracy", "token_f1", "agreement"]
    assert found["accuracy"] == {"a": 1.0, "c": 0.0}
    assert found["token_f1"] == {"a": 1.0, "c": pytest.approx(2 / 3)}
    assert found["agreement"] == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert list(scores(qa, examples[1:2], answers, teacher)) == ["agreement"]
    assert list(scores(conversation, examples, answers, teacher)) == ["agreement"]
    assert list(scores(summarization, examples, answers, teacher)) == ["rouge_l", "agreement"]


def test_a_type_of_ones_own_may_bring_its_own_metric(monkeypatch):
    own = ModuleType("own_type")
    own.answer, own.equal = math.answer, math.equal
    monkeypatch.setitem(sys.modules, "own_type", own)
    answers = {"a": "7"}
    right = {"a": 1.0}
    assert scores(own, [example("7")], answers, answers) == {"accuracy": right, "agreement": right}
    own.half = lambda example, text, task_type: 0.5
    own.METRICS = ("own_type:half",)
    assert scores(own, [example("7")], answers, answers) == {
        "own_type:half": {"a": 0.5},
        "agreement": {"a": 0.5},
    }
    own.METRICS = ("acuracy",)
    with pytest.raises(SpecError, match=r"unknown metric 'acuracy'.*did you mean 'accuracy'"):
        scores(own, [example("7")], answers, answers)


def test_an_interval_is_near_the_closed_form():
    values = np.random.default_rng(0).random(400)
    found = interval(values.tolist(), 2000, seed=1)
    half = norm.ppf(0.975) * values.std() / 20
    assert (found["value"], found["n"]) == (pytest.approx(values.mean()), 400)
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.004)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.004)


@pytest.mark.parametrize("n", [1, 20, 300])
def test_an_interval_of_all_right_or_all_wrong_is_the_exact_binomial_one(n):
    right, wrong = interval([1.0] * n, 10, seed=0), interval([0.0] * n, 10, seed=0)
    assert (right["low"], right["high"]) == (pytest.approx(beta.ppf(0.025, n, 1)), 1.0)
    assert (wrong["low"], wrong["high"]) == (0.0, pytest.approx(beta.ppf(0.975, 1, n)))


def test_a_differences_interval_is_an_independent_slow_paired_bootstraps():
    chosen = random.Random(0)
    student = [float(chosen.random() < 0.7) for _ in range(200)]
    # The other is right where the student is, but for some: pairing makes the interval narrow.
    other = [s if chosen.random() < 0.9 else 1 - s for s in student]
    found = difference(student, other, 4000, seed=1)
    means = []
    for _ in range(4000):
        drawn = chosen.choices(range(200), k=200)
        means.append(sum(student[i] for i in drawn) / 200 - sum(other[i] for i in drawn) / 200)
    means.sort()
    assert found["value"] == pytest.approx(np.mean(student) - np.mean(other))
    assert found["low"] == pytest.approx(means[100], abs=0.006)
    assert found["high"] == pytest.approx(means[3900], abs=0.006)
    assert found["n"] == 200
    apart = difference(student, chosen.sample(other, 200), 4000, seed=1)
    assert found["high"] - found["low"] < 0.7 * (apart["high"] - apart["low"])


def test_equal_scores_leave_a_doubt_that_more_examples_shrink():
    for n in (5, 500):
        found = difference([1.0] * n, [1.0] * n, 100, seed=0)
        doubt = 1 - 0.025 ** (1 / n)
        assert (found["value"], found["low"], found["high"]) == (0, -doubt, doubt)
    assert difference([1.0], [0.0], 100, seed=0)["low"] < 0
    assert difference([1.0] * 50, [0.0] * 50, 100, seed=0)["low"] > 0.8
    with pytest.raises(ValueError, match="2 scores against 1"):
        difference([1.0, 0.0], [1.0], 100, seed=0)
