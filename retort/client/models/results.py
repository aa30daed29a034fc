"""What asking about models returns: versions of registered models, and scores of any model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

TestData = str | Path | list[str] | dict[str, Any]


class Score(TypedDict):
    """A metric's value with its 95% interval, over `n` rows; None where no row tells it.

    Of `inference_time` it is the median in seconds of rows answered one at a time, with `p95`.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    p95: NotRequired[float]


class Evaluation(TypedDict):
    """Which model was asked, how many rows, and its scores by the metrics' names."""

    model: str
    n: int
    metrics: dict[str, Score]


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
