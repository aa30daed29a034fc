"""Intervals, differences and ratios against closed forms and slow bootstraps of plain Python.

How often the intervals hold the truth is measured by benchmarks/intervals.py.
"""

import random

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm

from retort.metrics import difference, examples_needed, interval, ratio, tells, value


def means(scores):
    return {str(i): [float(score), 1.0] for i, score in enumerate(scores)}


def coins(share, n, seed=0):
    return [float(x) for x in np.random.default_rng(seed).random(n) < share]


def slow(rows, of, num=3000, seed=0):
    """The 2.5% and 97.5% quantiles of a function of rows drawn with replacement."""
    chosen = random.Random(seed)
    values = sorted(of(chosen.choices(rows, k=len(rows))) for _ in range(num))
    return values[num // 40], values[-num // 40]


def test_an_interval_is_near_the_closed_form():
    values = np.random.default_rng(0).random(400)
    found = interval("token_f1", means(values), 4000, seed=1)
    half = norm.ppf(0.975) * values.std() / 20
    assert (found["value"], found["n"]) == (pytest.approx(values.mean()), 400)
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.003)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.003)


def test_few_examples_widen_an_interval_as_students_t_does():
    values = np.random.default_rng(3).normal(size=8)
    low, high = slow(values.tolist(), lambda drawn: sum(drawn) / 8)
    found = interval("own:x", means(values), 4000, seed=1)
    # Student's t over normal at 7 degrees of freedom, and n - 1 for n in the spread: 1.29
    assert (found["high"] - found["low"]) / (high - low) == pytest.approx(1.29, abs=0.08)


def test_an_interval_of_a_corpus_metric_is_that_of_its_sums():
    random_ = np.random.default_rng(5)
    expected = random_.choice(3, 150, p=[0.7, 0.2, 0.1])
    given = np.where(random_.random(150) < 0.7, expected, random_.integers(-1, 3, size=150))
    pairs = [(float(e), float(g)) for e, g in zip(expected, given, strict=True)]

    def macro_f1(drawn):
        labels = {e for e, _ in drawn}
        of = [
            2
            * sum(e == g == label for e, g in drawn)
            / sum((e == label) + (g == label) for e, g in drawn)
            for label in labels
        ]
        return sum(of) / len(of)

    found = interval("macro_f1", {str(i): list(p) for i, p in enumerate(pairs)}, 4000, seed=1)
    low, high = slow(pairs, macro_f1, num=1500)
    assert found["value"] == pytest.approx(macro_f1(pairs))
    assert found["low"] == pytest.approx(low, abs=0.012)
    assert found["high"] == pytest.approx(high, abs=0.012)

    lengths = random_.integers(1, 60, size=150)
    nats = [(float(n * random_.gamma(2, 0.5)), float(n)) for n in lengths]

    def perplexity(drawn):
        return np.exp(sum(nat for nat, _ in drawn) / sum(n for _, n in drawn))

    found = interval("perplexity", {str(i): list(p) for i, p in enumerate(nats)}, 4000, seed=1)
    low, high = slow(nats, perplexity)
    assert found["low"] == pytest.approx(low, rel=0.02)
    assert found["high"] == pytest.approx(high, rel=0.02)


def test_the_same_seed_gives_the_same_resamples_whatever_was_asked_between():
    found = interval("accuracy", means(coins(0.7, 90)), 500, seed=3)
    assert interval("accuracy", means(coins(0.7, 90)), 500, seed=4) != found
    for n in range(2, 80):
        interval("accuracy", means(coins(0.5, n)), 100, seed=3)
    assert interval("accuracy", means(coins(0.7, 90)), 500, seed=3) == found


def test_many_examples_are_resampled_block_by_block():
    values = np.random.default_rng(0).random(30_000)
    found = interval("rouge_l", means(values), 200, seed=0)  # 33 resamples to a block
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 173.2, rel=0.25)


@pytest.mark.parametrize("n", [1, 20, 300])
def test_an_interval_of_all_right_or_all_wrong_is_the_exact_binomial_one(n):
    right, wrong = (interval("accuracy", means([x] * n), 10, seed=0) for x in (1, 0))
    assert (right["low"], right["high"]) == (pytest.approx(beta.ppf(0.025, n, 1)), 1.0)
    assert (wrong["low"], wrong["high"]) == (0.0, pytest.approx(beta.ppf(0.975, 1, n)))


def test_examples_all_alike_leave_a_doubt_within_the_metrics_bounds():
    sure = 0.025 ** (1 / 40)
    judged = interval("judge", means([4] * 40), 100, seed=0)
    assert judged["low"] == pytest.approx(4 * sure + 1 - sure)
    assert judged["high"] == pytest.approx(4 * sure + 5 * (1 - sure))
    labels = {str(i): [float(i < 3)] * 2 for i in range(40)}
    rare = interval("macro_f1", labels, 100, seed=0)  # the 3 examples of a label say little
    assert (rare["value"], rare["high"]) == (1.0, 1.0)
    assert rare["low"] == pytest.approx(0.025 ** (1 / 3))
    own = interval("own:seconds", means([70] * 40), 100, seed=0)  # how far it may go nobody knows
    assert (own["low"], own["high"]) == (70, 70)


def test_a_differences_interval_is_a_slow_paired_bootstraps_with_two_undecided_examples():
    chosen = random.Random(0)
    student = coins(0.7, 200)
    # The other is right where the student is, but for some: pairing makes the interval narrow.
    other = [s if chosen.random() < 0.9 else 1 - s for s in student]
    found = difference("accuracy", means(student), means(other), 4000, seed=1)
    pairs = [*zip(student, other, strict=True), (1, 0), (0, 1)]
    low, high = slow(pairs, lambda drawn: sum(a - b for a, b in drawn) / 202)
    assert found["value"] == pytest.approx(np.mean(student) - np.mean(other))
    assert found["low"] == pytest.approx(low, abs=0.006)
    assert found["high"] == pytest.approx(high, abs=0.006)
    assert found["n"] == 200
    apart = chosen.sample(other, 200)
    wide = difference("accuracy", means(student), means(apart), 4000, seed=1)
    assert found["high"] - found["low"] < 0.7 * (wide["high"] - wide["low"])


def test_only_examples_of_both_are_compared_whatever_their_order():
    a = {"x": [1.0, 1.0], "y": [0.0, 1.0], "z": [1.0, 1.0], "only a": [1.0, 1.0]}
    b = {"only b": [0.0, 1.0], "z": [1.0, 1.0], "y": [1.0, 1.0], "x": [0.0, 1.0]}
    found = difference("accuracy", a, b, 100, seed=0)
    assert (found["n"], found["value"]) == (3, 0)
    assert ratio("accuracy", a, b, 100, seed=0)["n"] == 3
    for measure in (difference, ratio):
        with pytest.raises(ValueError, match="accuracy: 1 examples against 1, none in common"):
            measure("accuracy", {"x": [1.0, 1.0]}, {"y": [1.0, 1.0]}, 100, seed=0)


def test_mcnemars_test_is_the_exact_binomial_one_and_only_for_right_or_wrong():
    for seed in range(50):
        a, b = coins(0.8, 60, seed), coins(0.6, 60, seed + 100)
        only_a = sum(x > y for x, y in zip(a, b, strict=True))
        only_b = sum(x < y for x, y in zip(a, b, strict=True))
        found = difference("accuracy", means(a), means(b), 200, seed=0)
        p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert found["mcnemar_p_value"] == pytest.approx(p_value)
    assert difference("accuracy", means(a), means(a), 200, seed=0)["mcnemar_p_value"] == 1.0
    shares = means([*a[1:], 0.5])
    assert "mcnemar_p_value" not in difference("token_f1", means(a), shares, 200, seed=0)


def test_a_p_value_is_below_a_twentieth_where_the_interval_is_clear_of_zero():
    told = {True: 0, False: 0}
    for seed in range(300):
        n = 5 + seed % 60
        noise = np.random.default_rng(seed).normal(0.25, 1, size=n)
        a, b = means(noise), means(np.zeros(n))
        if seed % 3 == 0:
            a, b = means(coins(0.6, n, seed)), means(coins(0.3, n, seed + 1))
        found = difference("own:x", a, b, 999, seed=0)
        assert 0 < found["p_value"] <= 1
        if not 0.04 < found["p_value"] < 0.06:  # there one resample more or less decides
            assert (found["p_value"] < 0.05) == (tells(found) != "unclear"), (seed, found)
            told[found["p_value"] < 0.05] += 1
    assert min(told.values()) > 50


def test_a_p_value_is_never_zero_and_equal_answers_have_one_of_1():
    a, b = means(coins(0.95, 500)), means(coins(0.05, 500, 1))
    assert 2 / 1000 < difference("accuracy", a, b, 999, seed=0)["p_value"] < 3 / 1000
    same = difference("perplexity", {"x": [3.0, 2.0]}, {"x": [3.0, 2.0]}, 100, seed=0)
    assert (same["value"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)


def test_a_p_value_of_a_mean_is_near_the_z_tests():
    gaps = np.random.default_rng(1).normal(size=300)
    gaps += 0.12 - gaps.mean()
    found = difference("own:x", means(gaps), means(np.zeros(300)), 8000, seed=0)
    z = gaps.mean() / (gaps.std(ddof=1) / 300**0.5)
    assert found["p_value"] == pytest.approx(2 * norm.sf(abs(z)), rel=0.25)


def test_equal_scores_leave_a_doubt_that_more_examples_shrink():
    for n in (5, 500):
        found = difference("accuracy", means([1] * n), means([1] * n), 100, seed=0)
        doubt = 1 - 0.025 ** (1 / n)
        assert (found["value"], found["low"], found["high"]) == (0, -doubt, doubt)
    assert difference("accuracy", means([1]), means([0]), 100, seed=0)["low"] < 0
    clear = difference("accuracy", means([1] * 50), means([0] * 50), 100, seed=0)
    assert clear["low"] > 0.8
    assert clear["p_value"] == pytest.approx(2 * 0.5**50)
    one = difference("perplexity", {"x": [9.0, 2.0]}, {"x": [3.0, 2.0]}, 100, seed=0)
    assert (tells(one), one["p_value"]) == ("unclear", 1)


def test_a_ratios_interval_is_a_slow_paired_bootstraps():
    random_ = np.random.default_rng(2)
    b = random_.beta(4, 2, size=150)
    a = np.clip(b - 0.1 * random_.random(150), 0, 1)
    found = ratio("rouge_l", means(a), means(b), 4000, seed=1)
    pairs = [*zip(a.tolist(), b.tolist(), strict=True)]
    low, high = slow(pairs, lambda drawn: sum(x for x, _ in drawn) / sum(y for _, y in drawn))
    assert found["value"] == pytest.approx(a.mean() / b.mean())
    assert found["low"] == pytest.approx(low, abs=0.003)
    assert found["high"] == pytest.approx(high, abs=0.003)
    alone = interval("rouge_l", means(a), 4000, seed=1)
    assert found["high"] - found["low"] < (alone["high"] - alone["low"]) / b.mean()


def test_a_ratio_to_nothing_is_none():
    student = means(coins(0.5, 20))
    assert ratio("accuracy", student, means([0] * 20), 500, seed=0) is None
    # One right answer of the teacher's: a third of the resamples have none.
    assert ratio("token_f1", student, means([0.5, *[0] * 19]), 500, seed=0) is None
    same = ratio("accuracy", means([1] * 20), means([1] * 20), 500, seed=0)
    assert same["low"] < 0.95 < same["value"] < 1.05 < same["high"]
    alike = ratio("rouge_l", means([0.5] * 20), means([0.5] * 20), 500, seed=0)
    assert (alike["value"], alike["low"]) == (1, pytest.approx(0.025 ** (1 / 20)))


def test_a_difference_is_above_below_or_unclear_and_so_many_examples_would_tell():
    low, high = coins(0.5, 1000, 1), coins(0.6, 1000, 2)
    found = difference("accuracy", means(high), means(low), 1000, seed=0)
    other = difference("accuracy", means(low), means(high), 1000, seed=0)
    assert (tells(found), tells(other)) == ("above", "below")
    high, low = coins(0.6, 100, 5), coins(0.5, 100, 6)
    few = difference("accuracy", means(high), means(low), 4000, seed=0)
    assert tells(few) == "unclear"
    needed = examples_needed(few)
    # As many examples of the very same kind: just below the number they do not tell, above they do.
    for share, outcome in ((0.7, "unclear"), (1.4, "above")):
        times = round(needed * share / 100)
        more = difference("accuracy", means(high * times), means(low * times), 4000, seed=0)
        assert tells(more) == outcome, (needed, times, more)
    assert examples_needed(difference("accuracy", means(low), means(low), 100, seed=0)) is None


def test_statistics_that_mean_nothing_are_refused_by_metric_and_example():
    for found, reason in (
        ({}, "accuracy: 0 examples with no statistics each; give at least one example, and 2"),
        ({"x": [1.0]}, r"accuracy: 1 examples with \[1\] statistics each"),
        ({"x": [1.0, 1.0], "y": [1.0, 2.0, 3.0]}, r"2 examples with \[2, 3\] statistics each"),
        ({"x": [1.0, 1.0], "y": [float("nan"), 1.0]}, "of example 'y' are not finite numbers"),
        ({"x": [1.0, 0.0]}, r"accuracy: the sums \[1.0, 0.0\] have no value"),
    ):
        with pytest.raises(ValueError, match=reason):
            interval("accuracy", found, 100, seed=0)


def test_the_statistics_of_one_example_have_a_value_too():
    assert value("accuracy", [0.0, 1.0]) == 0
    assert value("length_ratio", [6.0, 4.0]) == 1.5
    assert value("perplexity", [2.0, 2.0]) == pytest.approx(np.e)
    assert (value("macro_f1", [2.0, 2.0]), value("macro_f1", [2.0, -1.0])) == (1, 0)
    assert value("bleu", [4, 4, 4, 3, 2, 1, 4, 3, 2, 1]) == pytest.approx(100)
    with pytest.raises(ValueError, match="have no value"):
        value("perplexity", [0.0, 0.0])
