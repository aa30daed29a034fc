"""From answers to statistics: one short vector for each example and metric, to be summed.

A metric returns None for an example that it cannot score, and is left out if it scores none.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from retort.data.task_types import TaskType, metrics_of
from retort.errors import SpecError
from retort.plugins import find_function
from retort.records import Example, JsonObject

ScoreValue = float | list[float] | None
Metric = Callable[[Example, str, TaskType], ScoreValue]
Statistics = dict[str, dict[str, list[float]]]  # by metric and example's id
AGREEMENT, MACRO_F1 = "agreement", "macro_f1"


def statistics(
    task_type: TaskType,
    examples: Sequence[Example],
    answers: dict[str, str],
    teacher: dict[str, str],
    names: Sequence[str] = (),
) -> Statistics:
    """Returns the statistics by metric and example; the deciding metric comes first.

    It is the first of the task type's metrics that applies, else agreement with the teacher; the
    further `names` never decide. `answers` and `teacher` are texts by the examples' ids. Raises
    `SpecError` for an unknown metric, and for a user's metric that returns anything but a finite
    number or None.
    """
    own, every = metrics_of(task_type), (task_type, examples, answers, teacher)
    found = {name: scored(name, *every) for name in dict.fromkeys([*own, *names, AGREEMENT])}
    decides = next((name for name in own if found[name]), AGREEMENT)
    return {name: found[name] for name in (decides, *found) if found[name]}


def decided(
    task_type: TaskType,
    examples: Sequence[Example],
    answers: dict[str, str],
    teacher: dict[str, str],
) -> tuple[str, dict[str, list[float]]]:
    """Returns the deciding metric and its statistics alone, as `statistics` does."""
    found: dict[str, list[float]] = {}
    for name in (*metrics_of(task_type), AGREEMENT):
        if found := scored(name, task_type, examples, answers, teacher):
            break
    return name, found


def scored(
    name: str,
    task_type: TaskType,
    examples: Sequence[Example],
    answers: dict[str, str],
    teacher: dict[str, str],
) -> dict[str, list[float]]:
    """Returns one metric's statistics by the example's id."""
    metric, further = find(name), tuple[Any, ...]()
    if name == AGREEMENT:
        further = (deciding(task_type),)
    elif name == MACRO_F1:
        further = (labels_of(task_type, examples),)
    scores: dict[str, list[float]] = {}
    for example in examples:
        own = (teacher[example.id],) if name == AGREEMENT else ()
        score = metric(example, answers[example.id], *own, task_type, *further)
        if score is not None:
            scores[example.id] = _vector(name, example, score)
    return scores


def deciding(task_type: TaskType) -> list[Metric]:
    """Returns the metrics of which the first that applies measures agreement with the teacher.

    For a task type whose first metric is agreement itself, that is accuracy.
    """
    names = ["accuracy" if name == AGREEMENT else name for name in metrics_of(task_type)]
    return [find(name) for name in [*names, "accuracy"]]


def find(name: str) -> Any:
    """Returns the metric of a name. Raises `SpecError` if it is unknown or no function."""
    metric = find_function("metric", name, __package__)
    if not callable(metric):
        raise SpecError(f"metric {name} is no function; write (example, text, task_type) -> score")
    return metric


def labels_of(task_type: TaskType, examples: Sequence[Example]) -> list[str]:
    """Returns the labels of examples with a closed set of answers and an expected one."""
    closed = [e for e in examples if e.options and e.expected is not None]
    labels = list(dict.fromkeys(label for e in closed for label in e.options or ()))
    for example in closed:
        if place(task_type, labels, example.expected) < 0:
            labels.append(str(example.expected))
    return labels


def place(task_type: TaskType, labels: Sequence[str], answer: str | None) -> int:
    """Returns the index of an answer among labels, or -1."""
    if answer is None:
        return -1
    if answer in labels:
        return labels.index(answer)
    return next((i for i, label in enumerate(labels) if task_type.equal(answer, label)), -1)


def confusion(
    task_type: TaskType, examples: Sequence[Example], answers: dict[str, str]
) -> JsonObject | None:
    """Returns `labels`, and `counts` by expected label (row) and predicted label (column).

    The last column counts texts without an answer. None if the answers are no closed set.
    """
    labels = labels_of(task_type, examples)
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for example in examples:
        if example.options and example.expected is not None:
            row = place(task_type, labels, example.expected)
            answer = task_type.answer(answers[example.id], example)
            counts[row][place(task_type, labels, answer)] += 1
    return {"labels": labels, "counts": counts} if labels else None


def _vector(name: str, example: Example, score: Any) -> list[float]:
    """Returns the statistics of a metric that is a mean: its score, and 1."""
    if isinstance(score, list) and ":" not in name:
        return score
    if not isinstance(score, Real) or not math.isfinite(score):
        raise SpecError(
            f"metric {name} returned {score!r:.60} for example '{example.id}'; "
            "return a finite number, or None for an example that it cannot score"
        )
    return [float(score), 1.0]
