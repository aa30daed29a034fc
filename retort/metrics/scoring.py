"""From answers to statistics: a short vector an example and metric, of which only sums matter.

A metric says nothing about an example by None; one that says nothing about any is left out.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from retort.data.task_types import TaskType, metrics_of
from retort.errors import SpecError
from retort.plugins import find_function
from retort.records import Example

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
    """Returns the statistics by metric and example, those of the metric that decides first.

    That is the first of the task type's metrics that applies, else agreement with the teacher; the
    further `names` never decide. `answers` and `teacher` are texts by the examples' ids. Raises
    `SpecError` for a metric that there is not, and for one of the user's own that gives anything
    but a finite number or None.
    """
    own, labels = metrics_of(task_type), labels_of(task_type, examples)
    by = deciding(task_type)
    found: Statistics = {}
    for name in dict.fromkeys([*own, *names, AGREEMENT]):
        metric = find(name)
        known: dict[str, list[float]] = {}
        for example in examples:
            text = answers[example.id]
            if name == AGREEMENT:
                score = metric(example, text, teacher[example.id], task_type, by)
            elif name == MACRO_F1:
                score = metric(example, text, task_type, labels)
            else:
                score = metric(example, text, task_type)
            if score is not None:
                known[example.id] = _vector(name, example, score)
        if known:
            found[name] = known
    decides = next((name for name in own if name in found), AGREEMENT)
    return {name: found[name] for name in (decides, *found) if name in found}


def deciding(task_type: TaskType) -> list[Metric]:
    """Returns the metrics that may say how far an answer is the teacher's: the first that applies.

    Where the task type's first is agreement itself, it is accuracy: the same answer, or not.
    """
    names = ["accuracy" if name == AGREEMENT else name for name in metrics_of(task_type)]
    return [find(name) for name in [*names, "accuracy"]]


def find(name: str) -> Any:
    """Returns the metric of a name. Raises `SpecError` where there is none or it is no function."""
    found = find_function("metric", name, __package__)
    if not callable(found):
        raise SpecError(f"metric {name} is no function; write (example, text, task_type) -> score")
    return found


def labels_of(task_type: TaskType, examples: Sequence[Example]) -> list[str]:
    """Returns the labels of examples with a closed set of answers and an expected one."""
    closed = [e for e in examples if e.options and e.expected is not None]
    labels = list(dict.fromkeys(label for e in closed for label in e.options or ()))
    for example in closed:
        if place(task_type, labels, example.expected) < 0:
            labels.append(str(example.expected))
    return labels


def place(task_type: TaskType, labels: Sequence[str], answer: str | None) -> int:
    """Returns where an answer stands among labels; -1 for none."""
    if answer is None:
        return -1
    if answer in labels:
        return labels.index(answer)
    return next((i for i, label in enumerate(labels) if task_type.equal(answer, label)), -1)


def confusion(
    task_type: TaskType, examples: Sequence[Example], answers: dict[str, str]
) -> dict[str, Any] | None:
    """Returns `labels`, and `counts` with a row an expected label and a column a given one.

    The last column counts texts without an answer. None where answers are no closed set.
    """
    labels = labels_of(task_type, examples)
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for example in examples:
        if example.options and example.expected is not None:
            given = task_type.answer(answers[example.id], example)
            counts[place(task_type, labels, example.expected)][place(task_type, labels, given)] += 1
    return {"labels": labels, "counts": counts} if labels else None


def _vector(name: str, example: Example, score: Any) -> list[float]:
    """Returns the statistics of a metric that is a mean: its score, and 1."""
    if isinstance(score, list) and ":" not in name:
        return score
    if not isinstance(score, Real) or not math.isfinite(score):
        raise SpecError(
            f"metric {name} gives {score!r:.60} for example '{example.id}'; "
            "give a finite number, or None where it says nothing"
        )
    return [float(score), 1.0]
