"""How fast a model is: the latency of single requests, the rate of all at once, and the highest
rate at which answers still come in time.

An engine takes requests when it has room, and None means "nothing now". So the concurrency is held
here, by when the next request is given, and no engine knows of it.
"""

# S samples, R resamples
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np

from retort.engines import Answer, Engine, Request, Timing
from retort.errors import StageError
from retort.metrics.comparison.shapes import Latency

# A level of load ends after so many seconds or answers, with this many rounds at least.
LEVEL_SECONDS = 0.75
LEVEL_ANSWERS = 512
LEVEL_ROUNDS = 3
STEP = 4  # the factor from one level to the next
# The fewest requests that are timed alone, whatever the time they take.
FEWEST_SAMPLES = 4

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Level:
    """What was measured while `concurrency` requests were always under way."""

    concurrency: int
    requests_per_second: float
    p95_seconds: float
    num_requests: int


@dataclass(frozen=True)
class Limits:
    """What bounds the levels of load: the longest p95 in seconds, the most requests under way, the
    time at which measuring ends (monotonic clock), and the highest rate that the model can have."""

    bound_seconds: float
    concurrency: int
    deadline: float = float("inf")
    requests_per_second: float = float("inf")

    def has_time_for(self, concurrency: int) -> bool:
        """Whether a level could fill its places twice before the deadline, at the highest rate."""
        return time.monotonic() + 2 * concurrency / self.requests_per_second <= self.deadline


def alone(
    engine: Engine, requests: Sequence[Request], deadline: float, tell: Progress
) -> dict[str, list[float]]:
    """Returns the seconds of requests one at a time: `whole` answers, and their `first_token`.

    No prompt is cached from an earlier one. After the deadline (monotonic clock) no further request
    is timed, except that there are `FEWEST_SAMPLES`. Where the engine does not show single tokens
    the second list is empty.
    """
    timings: list[Timing] = []
    for request in requests:
        if len(timings) >= FEWEST_SAMPLES and time.monotonic() > deadline:
            break
        engine.forget()
        timings.append(engine.timed(request))
        tell(f"latency, {len(timings)} of {len(requests)} requests")
    first = [timing.first_token_seconds for timing in timings]
    return {
        "whole": [timing.whole_seconds for timing in timings],
        "first_token": [seconds for seconds in first if seconds is not None],
    }


def saturated(
    engine: Engine, requests: Sequence[Request], tell: Callable[[int], None]
) -> tuple[dict[str, Answer], float]:
    """Returns the answers by request id, and the seconds that all took, requested at once.

    `tell` is called with the number of answers so far. Raises `StageError` for a request without
    an answer.
    """
    engine.forget()
    answers: dict[str, Answer] = {}
    started = time.monotonic()
    for answer in engine.generate(requests):
        answers[answer.id] = answer
        tell(len(answers))
    seconds = time.monotonic() - started
    if set(answers) != {request.id for request in requests}:
        raise StageError(f"the engine gave no answer to {len(requests) - len(answers)} requests")
    return answers, seconds


def rates(
    engine: Engine,
    requests: Sequence[Request],
    whole: Sequence[float],
    limits: Limits,
    tell: Progress,
) -> tuple[list[Level], int | None]:
    """Returns levels of rising load, and the concurrency of the level that there was no time for.

    Load rises up to the first level whose p95 is beyond the bound; one more lies between it and the
    last within. `whole` are the latencies of requests alone, the level of 1.
    """
    mean, p95 = float(np.mean(whole)), float(np.quantile(whole, 0.95))
    levels = [Level(1, 1 / mean, p95, len(whole))]
    for concurrency in _steps(limits.concurrency):
        if levels[-1].p95_seconds > limits.bound_seconds:
            break
        level = _level(engine, requests, concurrency, limits, tell)
        if level is None:
            return levels, concurrency
        levels.append(level)
    for low, high in pairwise(list(levels)):
        between = round((low.concurrency * high.concurrency) ** 0.5)
        is_last = low.p95_seconds <= limits.bound_seconds < high.p95_seconds
        if is_last and between > low.concurrency:
            level = _level(engine, requests, between, limits, tell)
            if level is None:
                return levels, between
            levels.append(level)
    return sorted(levels, key=lambda level: level.concurrency), None


def _level(
    engine: Engine, requests: Sequence[Request], concurrency: int, limits: Limits, tell: Progress
) -> Level | None:
    """Returns a level; None where there is no time for it."""
    if not limits.has_time_for(concurrency):
        return None
    return closed_loop(engine, requests, concurrency, tell, limits.deadline)


def within(levels: Sequence[Level], bound_seconds: float) -> Level | None:
    """Returns the level of the highest rate among those whose p95 is within the bound."""
    good = [level for level in levels if level.p95_seconds <= bound_seconds]
    return max(good, key=lambda level: level.requests_per_second, default=None)


def _steps(most: int) -> Iterator[int]:
    """Yields 4, 16, 64 ... below `most`, then `most`, where that is more than one."""
    step = STEP
    while step < most:
        yield step
        step *= STEP
    if most > 1:
        yield most


def closed_loop(
    engine: Engine,
    requests: Sequence[Request],
    concurrency: int,
    tell: Progress,
    deadline: float = float("inf"),
) -> Level | None:
    """Returns what was measured while as many requests were always under way, each answer followed
    by a next request, the requests over and over.

    It ends with the first answer that makes a whole number of rounds, `LEVEL_ROUNDS` at least,
    after `LEVEL_SECONDS` or `LEVEL_ANSWERS`; what is under way then is waited for, but not counted.
    Whole rounds, because answers begun together end together. After the deadline no request is
    given any more, and the whole rounds so far count; None without any.
    """
    engine.forget()
    begun: dict[str, float] = {}
    latencies: list[float] = []
    ended: list[float] = []  # when each whole round ended
    enough = False

    def source() -> Iterator[Request | None]:
        for number in count():
            while len(begun) >= concurrency and not enough:
                yield None
            if enough or time.monotonic() > deadline:
                return
            request = replace(requests[number % len(requests)], id=str(number))
            begun[request.id] = time.monotonic()
            yield request

    started = time.monotonic()
    for answer in engine.generate(source()):
        now = time.monotonic()
        latency = now - begun.pop(answer.id)
        if enough or now > deadline:
            continue
        latencies.append(latency)
        if len(latencies) % concurrency == 0:
            ended.append(now)
            tell(f"load, {concurrency} requests at once")
            is_long = now - started >= LEVEL_SECONDS or len(latencies) >= LEVEL_ANSWERS
            enough = is_long and len(ended) >= LEVEL_ROUNDS
    if not ended:
        return None
    counted = latencies[: len(ended) * concurrency]
    rate = len(counted) / (ended[-1] - started)
    return Level(concurrency, rate, float(np.quantile(counted, 0.95)), len(counted))


def summary(seconds: Sequence[float], num_bootstrap: int, seed: int) -> Latency | None:
    """Returns p50 and p95 of samples, each with its 95% percentile bootstrap interval.

    None without samples. Source: Efron & Tibshirani, "An
    Introduction to the Bootstrap" (1993), chapter 13.
    """
    if not seconds:
        return None
    values_S, random = np.asarray(seconds, dtype=np.float64), np.random.default_rng(seed)
    resampled = [random.choice(values_S, size=len(values_S)) for _ in range(num_bootstrap)]
    medians_R, tails_R = np.quantile(np.stack(resampled, axis=1), (0.5, 0.95), axis=0)
    return Latency(
        p50=float(np.quantile(values_S, 0.5)),
        p95=float(np.quantile(values_S, 0.95)),
        low=float(np.quantile(medians_R, 0.025)),
        high=float(np.quantile(medians_R, 0.975)),
        p95_low=float(np.quantile(tails_R, 0.025)),
        p95_high=float(np.quantile(tails_R, 0.975)),
        n=len(values_S),
    )
