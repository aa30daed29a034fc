"""Metrics of answers, one score an example, and how sure we are of their mean.

A task type names its metrics by the functions' names. A score of None means that the metric says
nothing about the example: no answer is known that it could be held against.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from retort.records import Example
from retort.registry import find_function
from retort.task_types import TaskType, metrics_of
from retort.task_types.qa import normal

Metric = Callable[[Example, str, TaskType], float | None]


def accuracy(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns 1.0 or 0.0: the expected answer, or not."""
    if example.expected is None:
        return None
    given = task_type.answer(text, example)
    return float(given is not None and task_type.equal(given, example.expected))


def token_f1(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F1 of the words in common with the expected answer, from 0 to 1.

    Of a choice among options there is no half: None. Source: SQuAD's evaluation (Rajpurkar et al.,
    2016), with its normalisation.
    """
    if example.expected is None or example.options:
        return None
    given = normal(task_type.answer(text, example) or "").split()
    wanted = normal(example.expected).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def rouge_l(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of ROUGE-L with the expected text, else the reference; from 0 to 1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as Google's
    rouge-score computes it, with stemming.
    """
    wanted = example.expected or example.reference
    if wanted is None:
        return None
    given = task_type.answer(text, example) or ""
    return float(_rouge().score(wanted, given)["rougeL"].fmeasure)


def agreement(example: Example, text: str, teacher_text: str, task_type: TaskType) -> float:
    """Returns how far an answer is the teacher's, from 0 to 1.

    It is the task type's first metric that applies, with the teacher's answer as the right one:
    for `accuracy` 1.0 or 0.0 by the task type's `equal`, for `rouge_l` a share.
    """
    wanted = task_type.answer(teacher_text, example)
    if wanted is None:
        return 0.0
    as_expected = replace(example, expected=wanted, reference=teacher_text)
    for name in (*metrics_of(task_type), "accuracy"):
        score = _metric(name)(as_expected, text, task_type)
        if score is not None:
            return score
    return 0.0


def scores(
    task_type: TaskType,
    examples: Sequence[Example],
    answers: dict[str, str],
    teacher: dict[str, str],
) -> dict[str, dict[str, float]]:
    """Returns the scores by metric and example: the metrics of the task type that apply, in its
    order, and agreement.

    `answers` and `teacher` are texts by the examples' ids. Raises `SpecError` for a metric of the
    task type that there is not.
    """
    found: dict[str, dict[str, float]] = {}
    for name in metrics_of(task_type):
        metric = _metric(name)
        values = {e.id: metric(e, answers[e.id], task_type) for e in examples}
        if known := {key: value for key, value in values.items() if value is not None}:
            found[name] = known
    found["agreement"] = {
        e.id: agreement(e, answers[e.id], teacher[e.id], task_type) for e in examples
    }
    return found


def _metric(name: str) -> Metric:
    found: Metric = find_function("metric", name, __name__)
    return found


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def interval(scores: Sequence[float], num_bootstrap: int, seed: int) -> dict[str, float]:
    """Returns the mean of scores with its 95% percentile bootstrap interval: value, low, high, n.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. When every
    score is the same the resamples cannot vary; then the exact (Clopper-Pearson) bound is given.
    """
    values = np.asarray(scores, dtype=np.float64)
    n, value = len(values), float(values.mean())
    if n and np.ptp(values) == 0 and value in (0.0, 1.0):
        bound = 0.025 ** (1 / n)
        low, high = (bound, 1.0) if value == 1.0 else (0.0, 1 - bound)
    else:
        low, high = _bootstrap(values, num_bootstrap, seed)
    return {"value": value, "low": low, "high": high, "n": n}


def difference(
    values_a: Sequence[float], values_b: Sequence[float], num_resamples: int, seed: int
) -> dict[str, float]:
    """Returns mean(a) - mean(b) with its 95% interval by paired bootstrap: value, low, high, n.

    The two are scores of the same examples in the same order; examples are resampled, each with
    both its scores. Source: Koehn, "Statistical Significance Tests for Machine Translation
    Evaluation" (2004), section 4. Where every example differs by the same, resamples cannot vary:
    then all but the share of examples that the exact (Clopper-Pearson) bound vouches for could
    differ by as much as scores from 0 to 1 can.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"{len(a)} scores against {len(b)}; give both on the same examples")
    gaps, n = a - b, len(a)
    value = float(gaps.mean())
    are_shares = min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1
    if np.ptp(gaps) == 0 and are_shares:
        bound = 0.025 ** (1 / n)
        low, high = bound * value - (1 - bound), bound * value + (1 - bound)
    else:
        low, high = _bootstrap(gaps, num_resamples, seed)
    return {"value": value, "low": low, "high": high, "n": n}


def _bootstrap(values: Any, num_resamples: int, seed: int) -> tuple[float, float]:
    """Returns the 2.5% and 97.5% quantiles of the means of resamples."""
    random, n = np.random.default_rng(seed), len(values)
    means = np.array([values[random.integers(0, n, size=n)].mean() for _ in range(num_resamples)])
    low, high = (float(q) for q in np.quantile(means, [0.025, 0.975]))
    return low, high
