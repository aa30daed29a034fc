"""The knobs of a search: which knobs are tried, over which values, and how losers end early."""

import math
from typing import Any, Literal

from pydantic import field_validator

from retort.spec.section import MAX_SEED, Section, knob

Values = tuple[Any, ...]


class Range(Section):
    """Numbers between two bounds, whole ones where the knob takes no others."""

    low: float = knob(..., "unit of the knob", "The smallest value.")
    high: float = knob(..., "unit of the knob", "The largest value.")
    log: bool = knob(
        False, "yes or no", "Each factor of ten is as likely as any other: for learning rates."
    )


class Sweep(Section):
    """`retort sweep` tries other knobs of the training on stored answers, and never asks a teacher.

    Successive halving: Jamieson & Talwalkar 2016 (arXiv:1502.07943), algorithm 1.
    """

    over: dict[str, Values | Range] = knob(
        ...,
        "knobs",
        "Each knob that is tried, such as train.learning_rate, train.losses.0.temperature or "
        "curate.filters, with a list of its values or a range {low, high, log}.",
    )
    trials: int = knob(
        16, "trials", "Configurations that are tried; the first is the job as it is.", ge=2
    )
    rungs: int = knob(
        3, "rungs", "How often the trials are compared, the last time fully trained.", ge=1, le=8
    )
    reduction_factor: int = knob(
        3,
        "1",
        "From rung to rung one in so many trials goes on, and trains so many times as long.",
        ge=2,
    )
    sampler: Literal["tpe", "qmc", "random"] = knob(
        "tpe", "name", "Which of Optuna's samplers draws the trials."
    )
    drawn_together: int = knob(
        4,
        "trials",
        "Trials that the sampler draws from the scores of all before; as many can train at once.",
        ge=1,
    )
    seed: int = knob(0, "1", "Seed of the sampler.", ge=0, le=MAX_SEED)

    @field_validator("over")
    @classmethod
    def _tries_something(cls, over: dict[str, Values | Range]) -> dict[str, Values | Range]:
        if not over:
            raise ValueError("names no knob; name one, such as train.learning_rate")
        for path, values in over.items():
            if values == ():
                raise ValueError(f"{path} has no value; list those to try")
            if isinstance(values, Range) and values.low >= values.high:
                raise ValueError(
                    f"{path} has an empty range: low {values.low:g} is not below {values.high:g}"
                )
            if isinstance(values, Range) and values.log and values.low <= 0:
                raise ValueError(f"{path}: log: true needs a low above 0, not {values.low:g}")
            if beside := next((other for other in over if other.startswith(f"{path}.")), None):
                raise ValueError(f"{path} holds {beside}; name one of the two")
        return over

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Which share of its steps a trial has made at each rung; None is all of them."""
        parts = (self.reduction_factor**left for left in range(self.rungs - 1, 0, -1))
        return (*(1 / part for part in parts), None)

    def num_at(self, rung: int, drawn: int) -> int:
        """Returns how many of the trials that were drawn reach a rung, counted from 0."""
        return math.ceil(drawn / float(self.reduction_factor) ** rung)
