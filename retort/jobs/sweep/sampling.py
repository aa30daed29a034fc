"""Where a sweep's trials come from: a sampler of Optuna, told what earlier trials scored.

The study lives in memory. A sweep that was killed asks a new one the same questions and tells it
the same scores, which are stored, so that the same trials are drawn.
"""

import json
import math
import warnings
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from retort.records import JsonObject
from retort.spec import JobSpec
from retort.spec.sweep import Range, Sweep
from retort.spec.variants import is_whole, sweep_of, value_of, variant

# Significant digits of a drawn number: what a person can read back.
DIGITS = 3
# How often in a row a sampler may draw what it has drawn before; then all has been tried.
MOST_REPEATED = 100


class Sampler:
    """Draws values of the knobs of a job's sweep, none of them twice."""

    def __init__(self, spec: JobSpec):
        self._sweep = sweep_of(spec)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings(action="ignore"):  # that a sampler is experimental
            self._study = optuna.create_study(sampler=_sampler(self._sweep), direction="maximize")
        self._space = {path: _distribution(path, v) for path, v in self._sweep.over.items()}
        self._own = {path: _own(spec, path) for path in self._space}
        self._waiting: dict[str, Any] = {}
        self._seen = {_key(self._own)}

    def draw(self, number: int) -> list[JsonObject]:
        """Returns up to so many trials, as values by knob; fewer once all have been tried."""
        found: list[JsonObject] = []
        repeated = 0
        while len(found) < number and repeated < MOST_REPEATED:
            trial = self._study.ask(self._space)
            values = {path: self._value(path, drawn) for path, drawn in trial.params.items()}
            if _key(values) in self._seen:
                self._study.tell(trial, state=TrialState.FAIL)
                repeated += 1
                continue
            self._seen.add(_key(values))
            self._waiting[_key(values)] = trial
            found.append(values)
        return found

    def tell(self, values: JsonObject, score: float | None) -> None:
        """Takes what a trial scored, the job as it is too (no values); None where it failed."""
        if not values:
            self._tell_own(score)
        elif score is None:
            self._study.tell(self._waiting.pop(_key(values)), state=TrialState.FAIL)
        else:
            self._study.tell(self._waiting.pop(_key(values)), score)

    def _tell_own(self, score: float | None) -> None:
        """Tells the score of the job as it is, where its values are among those to try."""
        params: JsonObject = {}
        for path, value in self._own.items():
            tried = self._sweep.over[path]
            params[path] = value if isinstance(tried, Range) else _place(tried, value)
        if score is not None and None not in params.values():
            self._study.add_trial(
                optuna.create_trial(params=params, distributions=self._space, value=score)
            )

    def _value(self, path: str, drawn: Any) -> Any:
        tried = self._sweep.over[path]
        if not isinstance(tried, Range):
            return tried[drawn]
        if isinstance(drawn, int):
            return drawn
        return min(max(float(f"{drawn:.{DIGITS}g}"), tried.low), tried.high)


def _own(spec: JobSpec, path: str) -> Any:
    """Returns the value that a knob has in the job, as it is written among those to try; None where
    it is none of them."""
    tried, own = sweep_of(spec).over[path], value_of(spec, path)
    if isinstance(tried, Range):
        is_inside = isinstance(own, int | float) and tried.low <= own <= tried.high
        return own if is_inside else None
    same = (each for each in tried if value_of(variant(spec, {path: each}), path) == own)
    return next(same, None)


def _place(tried: tuple[Any, ...], value: Any) -> int | None:
    return next((place for place, each in enumerate(tried) if each == value), None)


def _sampler(sweep: Sweep) -> optuna.samplers.BaseSampler:
    first = max(sweep.drawn_together, sweep.trials // 2)
    known, seed = optuna.samplers, sweep.seed
    if sweep.sampler == "tpe":
        return known.TPESampler(seed=seed, n_startup_trials=first, constant_liar=True)
    if sweep.sampler == "qmc":
        return known.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    return known.RandomSampler(seed=seed)


def _distribution(path: str, values: Any) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(range(len(values)))
    if is_whole(path):
        low, high = math.ceil(values.low), math.floor(values.high)
        return IntDistribution(low, high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _key(values: JsonObject) -> str:
    return json.dumps(values, sort_keys=True)
