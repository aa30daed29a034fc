"""The results of `Models`: versions of registered models, and the scores of any model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retort.records import JsonObject

TestData = str | Path | list[str] | JsonObject


@dataclass(frozen=True)
class Score:
    """A metric's value with its 95% interval, over `n` rows; None where no row tells it.

    Of `inference_time` it is the median in seconds of rows answered one at a time, with `p95`.
    `meaning` says what the value is where the metric's name alone does not.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    p95: float | None = None
    meaning: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, float]):
    """The model that was evaluated, on how many rows, and its scores by the metrics' names.

    As a mapping it gives each metric's value, NaN where no row tells it: `found["accuracy"]` is the
    number, `found.metrics["accuracy"].low` the lower end of its interval.
    """

    model: str
    n: int
    metrics: dict[str, Score]

    def __getitem__(self, name: str) -> float:
        value = self.metrics[name].value
        return math.nan if value is None else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    `gate` is "passed" or "refused". `score` is the student's in its job's main `metric`; None where
    the folder of the release (`source`) is gone.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    gate: str
    source: str
    metric: str | None = None
    score: float | None = None
