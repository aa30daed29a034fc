"""Metrics of answers, and how sure we are of them: values with 95% bootstrap intervals."""

from collections.abc import Sequence

import numpy as np

from retort.records import Example
from retort.task_types import TaskType


def accuracy(
    examples: Sequence[Example], answers: dict[str, str], task_type: TaskType
) -> list[float]:
    """Returns 1.0 or 0.0 for each example with an expected answer: right or not."""
    scores = []
    for example in examples:
        if example.expected is None:
            continue
        given = task_type.answer(answers[example.id])
        right = given is not None and task_type.equal(given, example.expected)
        scores.append(float(right))
    return scores


def agreement(
    examples: Sequence[Example],
    answers: dict[str, str],
    teacher: dict[str, str],
    task_type: TaskType,
) -> list[float]:
    """Returns 1.0 or 0.0 for each example: the same answer as the teacher's, or not."""
    scores = []
    for example in examples:
        given = task_type.answer(answers[example.id])
        wanted = task_type.answer(teacher[example.id])
        same = given is not None and wanted is not None and task_type.equal(given, wanted)
        scores.append(float(same))
    return scores


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
        random = np.random.default_rng(seed)
        means = np.array(
            [values[random.integers(0, n, size=n)].mean() for _ in range(num_bootstrap)]
        )
        low, high = (float(q) for q in np.quantile(means, [0.025, 0.975]))
    return {"value": value, "low": low, "high": high, "n": n}
