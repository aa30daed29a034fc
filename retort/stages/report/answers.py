"""What the models were asked and what each answered, joined by the examples' ids."""

from dataclasses import dataclass
from typing import Any

import orjson

from retort import metrics
from retort.errors import DataError
from retort.metrics.comparison import main_metric
from retort.metrics.comparison.content import Models
from retort.records import Example
from retort.stages.report.measurements import answers_of, statistics_of
from retort.stages.stage import Stage, held_out_split, read_examples

Vectors = dict[str, list[float]]  # one metric's statistics by example's id
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Answered:
    """The examples that all models were asked, and by role each one's answers and statistics.

    `vectors` are the statistics of `metric`, the main one; an example that it says nothing about
    has none. `columns` are the metadata columns that the job is sliced by.
    """

    metric: str
    examples: list[Example]
    texts: dict[str, dict[str, str]]
    vectors: dict[str, Vectors]
    columns: tuple[str, ...]

    def score(self, role: str, example: Example) -> float | None:
        """Returns the main metric of one answer; None where it says nothing about it."""
        vector = self.vectors[role].get(example.id)
        return None if vector is None else metrics.value(self.metric, vector)

    def slices_of(self, example: Example) -> dict[str, str]:
        """Returns an example's value in each column, as text."""
        return {column: _text(example.metadata.get(column)) for column in self.columns}


def read_answered(stage: Stage, models: Models) -> Answered:
    """Returns what the `models` of the report were asked, and what each answered.

    Raises `DataError` where answers of the student belong to no held-out example.
    """
    metric = main_metric(models)
    texts = {role: answers_of(stage, role) for role in models}
    vectors = {role: statistics_of(stage, role).get(metric, {}) for role in models}
    held_out = read_examples(stage.input("prepare"), held_out_split(stage.spec))
    examples = [example for example in held_out if example.id in texts["student"]]
    if lost := len(texts["student"]) - len(examples):
        raise DataError(
            f"report: {lost:,} answers of the student belong to no held-out example; prepare was "
            "made again since: use --force evaluate"
        )
    return Answered(metric, examples, texts, vectors, stage.spec.report.slices)


def _text(value: Any) -> str:
    if value is None:
        return NO_VALUE
    return value if isinstance(value, str) else orjson.dumps(value).decode()
