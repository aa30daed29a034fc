"""How an error falls with the number of examples, e(n) = e_inf + a (n + m)^-b, and how sure that
is.

What a student knows before counts as m examples more; it is 0 for one that begins with nothing, and
the plain power law then. Of a student that knows something the error hardly falls at first, and
each doubling gains more than the one before until n is as large as m. Its end, e_inf, is looked for
around the teacher's own error, rather above than below.

All sizes are resampled on the same validation examples, so that their errors are paired. To each
resample a curve is drawn of many, each as probable as its prior and its distance from the errors
make it; few sizes tell little, and then the draws differ much. `benchmarks/plan.py` measures how
often the bands hold what came. Source of the form: Cortes et al., "Learning Curves: Asymptotic
Values and Rate of Convergence" (1993); of m: Hernandez et al., "Scaling Laws for Transfer"
(arXiv:2102.01293), in whose words it is data that was transferred; that a curve is drawn for each
resample: Newton & Raftery, "Approximate Bayesian Inference with the Weighted Likelihood Bootstrap"
(1994).
"""

# R resamples, P sizes, G curves of the grid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retort.metrics.bootstrap import ExampleStatistics, resampled
from retort.metrics.kinds import Array, kind, lower_is_better

NUM_DRAWS = 1000
# Of m, as a share of the largest number of examples; each is as probable as the others.
KNOWN = np.array([0.0, 0.3, 1.0, 4.0])
# Of b: what is measured of learners that begin with nothing lies around a half, and seldom below a
# tenth or above one; of students that know something the error falls faster, once it falls.
EXPONENTS, USUAL = np.geomspace(0.05, 4.0, 16), np.where(KNOWN == 0, 0.5, 1.0)
# Each m with each b, and what is known of them before.
SHAPES = np.stack([each.ravel() for each in np.meshgrid(KNOWN, EXPONENTS, indexing="ij")])
SHAPE_PRIOR = (-0.5 * (np.log(EXPONENTS / USUAL[:, None]) / 0.7) ** 2).ravel()
# Of e_inf, as a share of the lowest error, and how fast it is less probable above and below the
# share that the teacher's error is.
FLOORS, ABOVE, BELOW = np.linspace(0.0, 1.0, 13), 0.3, 0.5
# What two trainings of the same size differ by, as a share of the metric's range (standard
# deviations), around one in a hundred.
NOISES = np.geomspace(0.0025, 0.04, 5)
NOISE_PRIOR = -0.5 * (np.log(NOISES / 0.01) / 0.7) ** 2
# How far a curve of this form is off, for each doubling between a size and the largest, within what
# was measured and beyond.
MISFIT_WITHIN, MISFIT = 0.003, 0.01
BAND = (0.1, 0.9)


@dataclass(frozen=True)
class Band:
    """A value, the median of draws, and the ends between which 80% of them lie."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Array) -> "Band":
        """Returns the band of draws."""
        low, value, high = np.quantile(draws, [BAND[0], 0.5, BAND[1]])
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class LearningCurve:
    """Curves that fit, one for each resample: e(n) = floor + drop ((x + m) / (1 + m))^-exponent of
    x = n / size, where m is `known`.

    `size` is the largest number of examples that was measured; `noise` what trainings of a size
    differ by, and `scale` the metric's range.
    """

    size: int
    floor_R: Array
    drop_R: Array
    exponent_R: Array
    known_R: Array
    noise_R: Array
    scale: float

    def errors(self, number: float) -> Array:
        """Returns the error at a number of examples, of each draw."""
        more_R = (number / self.size + self.known_R) / (1 + self.known_R)
        found: Array = self.floor_R + self.drop_R * more_R**-self.exponent_R
        return found

    def gain(self, number: float, since: float | None = None) -> Band:
        """Returns how much lower the error is expected to be than at `since` examples, the largest
        number that was measured if not given. It is of a mean over trainings."""
        gains = self.errors(since or self.size) - self.errors(number)
        return Band.of(gains + self._misfit(number, since or self.size))

    def error(self, number: float) -> Band:
        """Returns the error that one training with so many examples is expected to have."""
        random = np.random.default_rng(2)
        noise = self.noise_R * random.standard_normal(len(self.noise_R))
        return Band.of(self.errors(number) + noise + self._misfit(number, self.size))

    def _misfit(self, number: float, since: float) -> Array:
        """Returns how far draws may be off for the form's own sake."""
        doublings = abs(np.log2(number / since))
        random = np.random.default_rng(1)
        off: Array = MISFIT * self.scale * doublings * random.standard_normal(len(self.floor_R))
        return off


def errors_of(metric: str, statistics: Sequence[ExampleStatistics], seed: int) -> Array:
    """Returns the errors of students in the same resamples of the examples that all have, one
    column for each: how far a metric is from its best, or its negative where it has no bounds."""
    both = set.intersection(*map(set, statistics))
    shared = [{key: own[key] for key in own if key in both} for own in statistics]
    values = [resampled(metric, own, NUM_DRAWS, seed) for own in shared]
    return error_of(metric, np.stack(values, axis=1))


def error_of(metric: str, values: Array) -> Array:
    """Returns the errors of a metric's values."""
    bounds = kind(metric).bounds
    if lower_is_better(metric):
        return values - (bounds[0] if bounds else 0.0)
    return (bounds[1] if bounds else 0.0) - values


def speeds_up(sizes: Sequence[int], errors: Sequence[float]) -> bool:
    """Whether later doublings of the size lowered the error clearly more than earlier ones."""
    drops = -np.diff(errors) / np.diff(np.log2(sizes))
    half = len(drops) // 2
    return half > 0 and float(drops[-half:].mean()) > 1.5 * max(float(drops[:half].mean()), MISFIT)


def fit(
    metric: str,
    sizes: Sequence[int],
    errors_RP: Array,
    seed: int = 0,
    teacher_R: Array | None = None,
) -> LearningCurve:
    """Returns the curves that fit the resampled errors of so many examples each. Their floor is
    between the metric's best value and the lowest error, and where the teacher's errors are given
    rather near them; none rises.

    Raises `ValueError` for fewer than two sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError("a curve needs two sizes or more")
    scale = _scale(metric, errors_RP)
    lowest_R = errors_RP.min(axis=1)
    least = 0.0 if kind(metric).bounds or lower_is_better(metric) else None
    least_R = np.zeros_like(lowest_R) if least is not None else lowest_R - 2 * scale
    floor_prior = _floor_prior(least_R, lowest_R, teacher_R)
    x_P = np.asarray(sizes, dtype=np.float64) / max(sizes)
    doublings_P = np.abs(np.log2(x_P))
    scores, drops, spreads = [], [], []
    for noise, prior in zip(NOISES * scale, NOISE_PRIOR, strict=True):
        weights_P = 1 / (noise**2 + (MISFIT_WITHIN * scale * doublings_P) ** 2)
        for share, floor in zip(FLOORS, floor_prior, strict=True):
            y_RP = errors_RP - (least_R + share * (lowest_R - least_R))[:, None]
            score, drop, spread = _amplitudes(x_P, y_RP, weights_P)
            scores.append(score + prior + floor)
            drops.append(drop)
            spreads.append(np.broadcast_to(spread, drop.shape))
    random = np.random.default_rng(seed)
    score_RG = np.concatenate(scores, axis=1)
    chosen_R = (score_RG + random.gumbel(size=score_RG.shape)).argmax(axis=1)
    rows = np.arange(len(chosen_R))
    drop_R = np.concatenate(drops, axis=1)[rows, chosen_R]
    spread_R = np.concatenate(spreads, axis=1)[rows, chosen_R]
    noise, rest = np.divmod(chosen_R, len(FLOORS) * len(SHAPE_PRIOR))
    floor, shape = np.divmod(rest, len(SHAPE_PRIOR))
    known_R, exponent_R = SHAPES[:, shape]
    return LearningCurve(
        max(sizes),
        least_R + FLOORS[floor] * (lowest_R - least_R),
        np.maximum(0.0, drop_R + spread_R * random.standard_normal(len(rows))),
        exponent_R,
        known_R,
        NOISES[noise] * scale,
        scale,
    )


def _floor_prior(least_R: Array, lowest_R: Array, teacher_R: Array | None) -> Array:
    """Returns the log-probability of each floor, up to a constant: all are the same without a
    teacher."""
    if teacher_R is None:
        return np.zeros(len(FLOORS))
    room = max(float((lowest_R - least_R).mean()), 1e-9)
    beyond = FLOORS - np.clip(float((teacher_R - least_R).mean()) / room, 0.0, 1.0)
    return np.where(beyond > 0, -beyond / ABOVE, beyond / BELOW)


def _amplitudes(x_P: Array, y_RP: Array, weights_P: Array) -> tuple[Array, Array, Array]:
    """Returns for each resample and shape the log-probability, the drop that fits best, 0 or more,
    and its standard deviation."""
    known_G, exponents_G = SHAPES
    powers_PG = ((x_P[:, None] + known_G) / (1 + known_G)) ** -exponents_G
    squared_G = weights_P @ powers_PG**2
    product_RG = (y_RP * weights_P) @ powers_PG
    drop_RG = np.maximum(0.0, product_RG / squared_G)
    rest_RG = (y_RP**2) @ weights_P[:, None] - 2 * drop_RG * product_RG + drop_RG**2 * squared_G
    score_RG = -0.5 * rest_RG + 0.5 * np.log(weights_P).sum() - 0.5 * np.log(squared_G)
    return score_RG + SHAPE_PRIOR, drop_RG, squared_G**-0.5


def _scale(metric: str, errors_RP: Array) -> float:
    """Returns the metric's range, or where it has none that of the errors."""
    bounds = kind(metric).bounds
    return bounds[1] - bounds[0] if bounds else max(float(np.ptp(errors_RP.mean(axis=0))), 1e-9)
