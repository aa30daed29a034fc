"""How sure we are of a metric: examples are drawn anew, sums weighted, the value taken of them.

The same number of examples and seed give the same resamples, so all models of a comparison are
resampled alike. Note: right or wrong scores are resampled with two made-up examples added.
Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 15;
benchmarks/intervals.py measures how often the intervals hold the truth.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from retort.metrics.kinds import Array, kind, matrix, value_of
from retort.records import JsonObject

ExampleStatistics = dict[str, list[float]]  # statistics by example's id
TAIL = 0.025
# A block of resamples takes 2 MB, and those kept at most 128 MB.
BLOCK, MOST_BLOCKS = 1_000_000, 64
# Without these an interval is too narrow where few answers are wrong, or few tell two models apart.
# A right and a wrong answer, after Agresti & Coull, "Approximate Is Better than Exact for Interval
# Estimation of Binomial Proportions" (1998).
RIGHT_AND_WRONG = np.array([[1.0, 1.0], [0.0, 1.0]])
# One that only the first gets right, one that only the second does: Bonett & Price, "Adjusted Wald
# Confidence Interval for a Difference of Binomial Proportions Based on Paired Data" (2012).
ONE_FOR_EACH = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])


def interval(
    metric: str, found: ExampleStatistics, num_bootstrap: int, seed: int
) -> dict[str, float]:
    """Returns a metric's value with its 95% bootstrap interval: value, low, high, n.

    The interval is the expanded percentile one: Hesterberg, "What Teachers Should Know About the
    Bootstrap" (2015), section 5.3; scores of 0 and 1 are resampled with RIGHT_AND_WRONG added.
    Where resamples cannot vary, since all examples are alike, the exact (Clopper-Pearson) bound
    says which share of examples is vouched for; the others could be anything within the metric's
    bounds. Raises `ValueError` as `matrix` does.
    """
    rows = matrix(metric, found)
    value = value_of(metric, rows.sum(axis=0))
    more = RIGHT_AND_WRONG if _are_binary(rows) and not _are_alike(rows) else None
    values = _finite(kind(metric).value(_sums(rows, more, num_bootstrap, seed)))
    bounds = _bounds(metric, rows)
    if _varies(values) or not bounds:
        low, high = _percentiles(values, value, len(rows))
    else:
        sure = _vouched(metric, rows)
        low, high = (sure * value + (1 - sure) * bound for bound in bounds)
    return {"value": value, "low": low, "high": high, "n": len(rows)}


def difference(
    metric: str, a: ExampleStatistics, b: ExampleStatistics, num_bootstrap: int, seed: int
) -> dict[str, float]:
    """Returns a - b on the examples of both: value, low, high, n, p_value, and for right or wrong
    scores mcnemar_p_value.

    Each example is resampled with both its statistics: Koehn, "Statistical Significance Tests for
    Machine Translation Evaluation" (2004), section 4; scores of 0 and 1 with ONE_FOR_EACH added.
    `p_value` is two-sided: the level at which the interval would touch zero, never 0 (Davison &
    Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2). `mcnemar_p_value` is
    the exact test's. Where all examples differ alike the interval is as in `interval`, and the
    p-value that of the sign test.
    """
    rows_a, rows_b = _paired(metric, a, b)
    n, value = len(rows_a), value_of(metric, rows_a.sum(axis=0))
    value -= value_of(metric, rows_b.sum(axis=0))
    values_a, values_b = _resampled(metric, rows_a, rows_b, (num_bootstrap, seed))
    values, found = _finite(values_a - values_b), {"value": value}
    if _varies(values):
        found["low"], found["high"] = _percentiles(values, value, n)
        p_value = _p_value(values, n)
    else:
        bounds, sure = _bounds(metric, np.concatenate([rows_a, rows_b])), _vouched(metric, rows_a)
        reach = (1 - sure) * (bounds[1] - bounds[0] if bounds else abs(value))
        found |= {"low": sure * value - reach, "high": sure * value + reach}
        p_value = min(1.0, 2 * 0.5**n) if value else 1.0
    found |= {"n": n, "p_value": p_value}
    if _are_binary(rows_a) and _are_binary(rows_b):
        found["mcnemar_p_value"] = _mcnemar(rows_a[:, 0], rows_b[:, 0])
    return found


def ratio(
    metric: str, a: ExampleStatistics, b: ExampleStatistics, num_bootstrap: int, seed: int
) -> dict[str, float] | None:
    """Returns a / b on the examples of both, resampled as in `difference`: value, low, high, n.

    None where b is 0, or so near that resamples of it are. Where all resamples give the same, the
    share of examples that the exact bound vouches for bounds it.
    """
    rows_a, rows_b = _paired(metric, a, b)
    above, below = (value_of(metric, rows.sum(axis=0)) for rows in (rows_a, rows_b))
    if not below:
        return None
    value, n = above / below, len(rows_a)
    values_a, values_b = _resampled(metric, rows_a, rows_b, (num_bootstrap, seed))
    if (values_b == 0).mean() > TAIL / 2:
        return None
    values = _finite(values_a[values_b != 0] / values_b[values_b != 0])
    if _varies(values):
        low, high = _percentiles(values, value, n)
    else:
        sure = _vouched(metric, rows_a)
        low, high = value * sure, value / sure
    return {"value": value, "low": low, "high": high, "n": n}


def resampled(metric: str, found: ExampleStatistics, num_bootstrap: int, seed: int) -> Array:
    """Returns a metric's value in each resample. Models with the same examples, in whatever order,
    are resampled alike. Raises `ValueError` as `matrix` does."""
    rows = matrix(metric, {key: found[key] for key in sorted(found)})
    values: Array = kind(metric).value(_sums(rows, None, num_bootstrap, seed))
    return values


def tells(difference: JsonObject) -> str:
    """Returns above or below where the 95% interval of a difference is on one side of zero, else
    unclear: so many examples cannot tell. For a metric of which less is better, below is better.
    """
    if difference["low"] > 0:
        return "above"
    return "below" if difference["high"] < 0 else "unclear"


def examples_needed(difference: JsonObject) -> int | None:
    """Returns how many examples it would take for a difference as large as the one measured to
    stand clear of zero by 1.96 standard errors; None where none was measured.

    The standard error is half the interval over 1.96 and shrinks with the root of the examples. Of
    many such tests with so many examples half would tell; twice as many tell in 8 of 10.
    """
    half = (difference["high"] - difference["low"]) / 2
    value = abs(difference["value"])
    return math.ceil(difference["n"] * (half / value) ** 2) if value > half * 1e-6 else None


def _paired(metric: str, a: ExampleStatistics, b: ExampleStatistics) -> tuple[Array, Array]:
    """Returns the statistics of the examples of both, in one order."""
    both = [key for key in a if key in b]
    if not both:
        raise ValueError(f"{metric}: {len(a)} examples against {len(b)}, none in common")
    one, other = (matrix(metric, {key: found[key] for key in both}) for found in (a, b))
    return one, other


def _resampled(
    metric: str, rows_a: Array, rows_b: Array, how: tuple[int, int]
) -> tuple[Array, Array]:
    """Returns the values of two models in the same resamples; `how` is their number and seed."""
    binary = _are_binary(rows_a) and _are_binary(rows_b) and not _are_alike(rows_a - rows_b)
    both, width = np.concatenate([rows_a, rows_b], axis=1), rows_a.shape[1]
    sums = _sums(both, ONE_FOR_EACH if binary else None, *how)
    value = kind(metric).value
    return value(sums[:, :width]), value(sums[:, width:])


def _sums(rows: Array, more: Array | None, num_resamples: int, seed: int) -> Array:
    """Returns the sums of the statistics of each resample, of the rows with `more` among them."""
    drawn = rows if more is None else np.concatenate([rows, more])
    blocks = _weights(len(drawn), num_resamples, seed)
    sums: Array = np.concatenate([weights.astype(np.float64) @ drawn for weights in blocks])
    return sums[:num_resamples]


def _weights(n: int, num_resamples: int, seed: int) -> Iterator[Any]:
    """Yields how often each example is in each resample, some resamples at a time."""
    height = max(1, BLOCK // n)
    for block in range(-(-num_resamples // height)):
        yield _block(n, min(height, num_resamples), (seed, n, block))


@lru_cache(maxsize=MOST_BLOCKS)
def _block(n: int, height: int, seed: tuple[int, ...]) -> Any:
    random = np.random.default_rng(seed)
    weights = np.empty((height, n), dtype=np.uint16 if n < 2**16 else np.uint32)
    for row in weights:
        row[:] = np.bincount(random.integers(0, n, size=n), minlength=n)
    return weights


def _percentiles(values: Array, value: float, n: int) -> tuple[float, float]:
    """Returns the expanded 2.5% and 97.5% quantiles: as far out as Student's t is from normal."""
    if not _varies(values):
        return value, value
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, TAIL)))
    low, high = (float(bound) for bound in np.quantile(values, [tail, 1 - tail]))
    return min(low, value), max(high, value)


def _p_value(values: Array, n: int) -> float:
    """Returns the two-sided p-value of no difference: the inverse of `_percentiles`."""
    beyond = min(int((values <= 0).sum()), int((values >= 0).sum()))
    tail = (beyond + 1) / (len(values) + 1)
    from scipy.special import ndtri, stdtr

    return min(1.0, 2 * float(stdtr(n - 1, ndtri(min(tail, 0.5)) * math.sqrt((n - 1) / n))))


def _mcnemar(a: Array, b: Array) -> float:
    """Returns the exact two-sided p-value of McNemar's test.

    Source: McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or
    Percentages" (1947), with the binomial in place of chi-squared.
    """
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _are_alike(rows: Array) -> bool:
    """Whether all rows are the same: drawn anew they cannot differ."""
    return not np.ptp(rows, axis=0).any()


def _finite(values: Array) -> Array:
    """Returns the values of resamples that drew anything to divide by."""
    found: Array = values[np.isfinite(values)]
    return found


def _varies(values: Array) -> bool:
    """Whether resamples differ by more than the rounding of their sums."""
    return bool(np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max())))


def _are_binary(rows: Array) -> bool:
    """Whether the statistics are those of right or wrong answers."""
    return _are_scores(rows) and bool(np.isin(rows[:, 0], (0, 1)).all())


def _are_scores(rows: Array) -> bool:
    """Whether the statistics are a score of each example, and 1."""
    return rows.shape[1] == 2 and bool((rows[:, 1] == 1).all())


def _bounds(metric: str, rows: Array) -> tuple[float, float] | None:
    """Returns the least and the most a metric can be; an unknown one may look like a share."""
    known = kind(metric).bounds
    if known or not _are_scores(rows) or rows[:, 0].min() < 0 or rows[:, 0].max() > 1:
        return known
    return 0.0, 1.0


def _vouched(metric: str, rows: Array) -> float:
    """Returns the share of examples that the exact bound vouches for when all are alike.

    Of macro-F1 the rarest label decides: the others say nothing about it.
    """
    n = len(rows)
    if metric == "macro_f1":
        expected = rows[:, 2::3].sum(axis=0)
        n = int(expected[expected > 0].min())
    return float(TAIL ** (1 / n))
