"""How often the 95% intervals of metrics hold the truth, and how long one comparison takes.

`python -m benchmarks.intervals` takes a minute or two on two cores. Answers are drawn from models
whose true scores are known; a cell of the table is the share of tests whose interval holds the
truth. Where next to no answers are wrong, or next to none tell two models apart, an interval is
too wide rather than too narrow. Of 50 examples perplexity's and token F1's are a little narrow:
the longest answers weigh most, and 50 may have none of the longest.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.stats import bootstrap

from benchmarks import Measure, show
from retort import metrics

Statistics = dict[str, list[float]]
NUM_RESAMPLES, NUM_SEEDS = 1000, 16
# Tests by number of examples. Of 4,000 the share found is within 0.7 points of the true one.
NUM_TESTS = {50: 4000, 100: 4000, 200: 3000, 500: 1500, 1000: 1500}
SIZES = tuple(NUM_TESTS)
LABELS = np.array([0.8, 0.15, 0.05])
# How often each label is given for each expected one.
GIVEN = np.array([[0.9, 0.07, 0.03], [0.25, 0.7, 0.05], [0.3, 0.1, 0.6]])
LEAST, MOST = 0.93, 0.97


def of_each(*columns: Any) -> Statistics:
    """Returns statistics by example's id."""
    return {str(i): row for i, row in enumerate(np.stack(columns, axis=1).tolist())}


def scores(values: Any) -> Statistics:
    """Returns the statistics of a mean."""
    return of_each(values, np.ones(len(values)))


def shares(random: Generator, n: int) -> Any:
    """Returns scores like token F1, of mean 0.65: many right, some wrong, some in part."""
    kind = random.random(n)
    return np.where(kind < 0.55, 1.0, np.where(kind < 0.8, 0.0, random.beta(2, 2, n)) + 0.0)


def labels(random: Generator, n: int) -> Statistics:
    """Returns expected and given labels of three classes, of which one is in 20."""
    expected = random.choice(3, n, p=LABELS)
    given = (random.random((n, 1)) > GIVEN.cumsum(axis=1)[expected]).sum(axis=1)
    return of_each(expected.astype(float), given.astype(float))


def nats(random: Generator, n: int) -> Statistics:
    """Returns summed nats and tokens of answers of 60 tokens, half as many more or fewer."""
    tokens = np.ceil(random.gamma(4, 15, n)) + 1
    return of_each(tokens * (random.gamma(2, 0.25, n) + 0.1), tokens)


def pair(random: Generator, n: int, right: tuple[float, float], alike: float) -> list[Statistics]:
    """Returns two models' right and wrong answers, of which a share is decided by the same luck."""
    luck = random.random(n)
    other = np.where(random.random(n) < alike, luck, random.random(n))
    return [scores((luck < right[0]) * 1.0), scores((other < right[1]) * 1.0)]


def share_pair(random: Generator, n: int) -> list[Statistics]:
    """Returns scores like token F1 of two models: most equal, some a little lower."""
    ours, new = shares(random, n), shares(random, n)
    theirs = np.where(random.random(n) < 0.7, ours, new)
    return [scores(np.where(random.random(n) < 0.1, theirs * 0.8, theirs)), scores(ours)]


def true_macro_f1() -> float:
    """Returns the macro-F1 of endlessly many examples of `labels`."""
    both = LABELS[:, None] * GIVEN
    return float((2 * both.diagonal() / (both.sum(axis=0) + both.sum(axis=1))).mean())


def interval(metric: str, drawn: Statistics, seed: int) -> Any:
    """Returns the interval of one model."""
    return metrics.interval(metric, drawn, NUM_RESAMPLES, seed)


def paired(measure: Callable[..., Any], metric: str, drawn: list[Statistics], seed: int) -> Any:
    """Returns the interval of a comparison of two models."""
    return measure(metric, *drawn, NUM_RESAMPLES, seed)


# A row: how answers are drawn, how they are measured, and the true value.
Row = tuple[Callable[..., Any], Callable[..., Any], float]
ROWS: dict[str, Row] = {
    **{
        f"accuracy {p}": (
            lambda random, n, p=p: scores((random.random(n) < p) * 1.0),
            partial(interval, "accuracy"),
            p,
        )
        for p in (0.5, 0.8, 0.95)
    },
    "token F1 0.65": (
        lambda random, n: scores(shares(random, n)),
        partial(interval, "token_f1"),
        0.65,
    ),
    "macro-F1, 80:15:5": (labels, partial(interval, "macro_f1"), true_macro_f1()),
    "perplexity": (nats, partial(interval, "perplexity"), float(np.exp(0.6))),
    "accuracy 0.80 - 0.75": (
        partial(pair, right=(0.8, 0.75), alike=0.8),
        partial(paired, metrics.difference, "accuracy"),
        0.05,
    ),
    "token F1, paired": (
        share_pair,
        partial(paired, metrics.difference, "token_f1"),
        0.65 * (0.9 + 0.1 * 0.8) - 0.65,
    ),
    "retention 0.80 / 0.90": (
        partial(pair, right=(0.8, 0.9), alike=0.8),
        partial(paired, metrics.ratio, "accuracy"),
        0.8 / 0.9,
    ),
}
# So alike that of 100 examples one or two tell them apart: there only too narrow is wrong.
NEAR: dict[str, Row] = {
    "accuracy 0.95 - 0.93": (
        partial(pair, right=(0.95, 0.93), alike=0.9),
        partial(paired, metrics.difference, "accuracy"),
        0.02,
    ),
    "retention 0.93 / 0.95": (
        partial(pair, right=(0.93, 0.95), alike=0.9),
        partial(paired, metrics.ratio, "accuracy"),
        0.93 / 0.95,
    ),
}


def coverage(cell: tuple[str, int]) -> float:
    """Returns the share of tests of so many examples whose interval holds the truth."""
    name, n = cell
    draw, measure, truth = (ROWS | NEAR)[name]
    random, num_held = np.random.default_rng(n), 0
    for test in range(NUM_TESTS[n]):
        found = measure(draw(random, n), seed=test % NUM_SEEDS)
        num_held += found["low"] <= truth <= found["high"]
    return num_held / NUM_TESTS[n]


def false_alarms(n: int) -> tuple[float, float]:
    """Returns how often two models that are equally good are told apart: by the interval, and by
    McNemar's exact test."""
    random, alarms = np.random.default_rng(0), np.zeros(2)
    for test in range(NUM_TESTS[n]):
        one, other = pair(random, n, (0.8, 0.8), 0.7)
        found = metrics.difference("accuracy", one, other, NUM_RESAMPLES, test % NUM_SEEDS)
        alarms += (metrics.tells(found) != "unclear", found["mcnemar_p_value"] < 0.05)
    by_interval, by_test = (alarms / NUM_TESTS[n]).tolist()
    return by_interval, by_test


def seconds_of(run: Callable[[], Any]) -> float:
    """Returns how long a function takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def theirs(columns: list[Any], seed: int) -> Any:
    """Returns what scipy makes of the difference of two means."""
    return bootstrap(
        columns,
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=2000,
        batch=100,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )


def time_ratio() -> tuple[float, float]:
    """Returns the seconds of a comparison of 10,000 examples by 2,000 resamples, and their ratio to
    those of scipy's paired, vectorised percentile bootstrap; the best of five, in turn."""
    one, other = pair(np.random.default_rng(0), 10_000, (0.8, 0.75), 0.8)
    columns = [np.array([score for score, _ in each.values()]) for each in (one, other)]
    rounds = []
    for seed in range(5):  # a new seed each: nothing is remembered from the round before
        own = seconds_of(partial(metrics.difference, "accuracy", one, other, 2000, seed))
        rounds.append((own, seconds_of(partial(theirs, columns, seed))))
    ours, peers = (min(column) for column in zip(*rounds, strict=True))
    return ours, ours / peers


def main() -> None:
    """Prints the share of intervals that hold the truth by row and size, then the measures."""
    seconds, ratio = time_ratio()
    cells = [(name, n) for n in reversed(SIZES) for name in ROWS | NEAR]
    with ProcessPoolExecutor(2) as pool:
        found = dict(zip(cells, pool.map(coverage, cells), strict=True))
        alarms = dict(zip(SIZES, pool.map(false_alarms, SIZES), strict=True))
    print(f"{'examples':24}" + "".join(f"{n:>8}" for n in SIZES))
    for name in ROWS | NEAR:
        print(f"{name:24}" + "".join(f"{found[name, n]:8.1%}" for n in SIZES))
    for place, name in enumerate(("false alarms", "of McNemar's test")):
        print(f"{name:24}" + "".join(f"{alarms[n][place]:8.1%}" for n in SIZES))
    print(f"a comparison of 10,000 examples, 2,000 resamples: {seconds:.2f} s", flush=True)
    judged = [found[name, n] for name in ROWS for n in SIZES if n >= 100]
    near = min(found[name, n] for name in NEAR for n in SIZES if n >= 100)
    few = min(found[name, 50] for name in ROWS | NEAR)
    alarm = max(share for n in SIZES for share in alarms[n])
    measures: list[Measure] = [
        ("intervals.lowest_coverage", min(judged), LEAST, min(judged) >= LEAST),
        ("intervals.highest_coverage", max(judged), MOST, max(judged) <= MOST),
        ("intervals.lowest_coverage_near", near, LEAST, near >= LEAST),
        ("intervals.lowest_coverage_of_50", few, 0.9, few >= 0.9),
        ("intervals.false_alarms", alarm, 0.07, alarm <= 0.07),
        ("intervals.time_ratio", ratio, 1.0, ratio < 1.0),
    ]
    show(measures)


if __name__ == "__main__":
    main()
