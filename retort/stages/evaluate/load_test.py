"""What a model can bear: the latency of requests alone, the rate at saturation, and the highest
rate at which answers still come in time.

An engine takes requests as it has room; None says "nothing now". So the number under way is held
here, by when the next request is given, and no engine knows of it.
"""

# S samples, R resamples
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

import numpy as np

from retort.engines import Answer, Engine, Request
from retort.errors import StageError
from retort.events import Reporter

# How long a level of load lasts, unless there are answers enough; and how many it has at least of
# each place under way.
LEVEL_SECONDS = 0.75
LEVEL_ANSWERS = 512
LEVEL_ROUNDS = 3
STEP = 4  # from one level to the next
SAID_EVERY = 100


@dataclass(frozen=True)
class Level:
    """What held while `concurrency` requests were always under way."""

    concurrency: int
    requests_per_second: float
    p95_seconds: float
    num_requests: int


def alone(engine: Engine, requests: Sequence[Request]) -> dict[str, list[float]]:
    """Returns the seconds of requests one at a time: `whole` answers, and their `first_token`.

    Nothing is kept of earlier prompts: each is as new. Where the engine does not see single tokens
    the second list is empty.
    """
    found = []
    for request in requests:
        engine.forget()
        found.append(engine.timed(request))
    first = [timing.first_token_seconds for timing in found]
    return {
        "whole": [timing.whole_seconds for timing in found],
        "first_token": [seconds for seconds in first if seconds is not None],
    }


def saturated(
    engine: Engine, requests: Sequence[Request], report: Reporter
) -> tuple[dict[str, Answer], float]:
    """Returns the answers by request's id, and the seconds that all took, asked at once.

    Raises `StageError` for a request without an answer.
    """
    engine.forget()
    found: dict[str, Answer] = {}
    started = time.monotonic()
    for answer in engine.generate(requests):
        found[answer.id] = answer
        if len(found) % SAID_EVERY == 0:
            report.progress(len(found), len(requests), "answers")
    seconds = time.monotonic() - started
    if set(found) != {request.id for request in requests}:
        raise StageError(f"{len(requests) - len(found)} examples were left unanswered")
    report.progress(len(requests), len(requests), "answers")
    return found, seconds


def rates(
    engine: Engine, requests: Sequence[Request], whole: Sequence[float], limits: tuple[float, int]
) -> list[Level]:
    """Returns levels of rising load: up to the first whose p95 is beyond the bound, then one more
    between it and the last within.

    `whole` are the latencies of requests alone, the level of 1; `limits` the bound in seconds and
    the most requests that may be under way.
    """
    bound_seconds, most = limits
    mean, p95 = float(np.mean(whole)), float(np.quantile(whole, 0.95))
    found = [Level(1, 1 / mean, p95, len(whole))]
    for concurrency in _steps(most):
        if found[-1].p95_seconds > bound_seconds:
            break
        found.append(closed_loop(engine, requests, concurrency, LEVEL_SECONDS))
    for low, high in pairwise(list(found)):
        between = round((low.concurrency * high.concurrency) ** 0.5)
        if low.p95_seconds <= bound_seconds < high.p95_seconds and between > low.concurrency:
            found.append(closed_loop(engine, requests, between, LEVEL_SECONDS))
    return sorted(found, key=lambda level: level.concurrency)


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
    engine: Engine, requests: Sequence[Request], concurrency: int, seconds: float
) -> Level:
    """Returns what held while as many requests were always under way, each answered one followed
    by another, the requests over and over.

    It ends with the first answer that makes a whole number of rounds, `LEVEL_ROUNDS` at least,
    after `seconds` or `LEVEL_ANSWERS`; what is under way then is waited for, but not counted. Whole
    rounds, because answers begun together end together.
    """
    engine.forget()
    begun: dict[str, float] = {}
    took: list[float] = []
    ended: list[float] = []

    def source() -> Iterator[Request | None]:
        for number in count():
            while len(begun) >= concurrency and not ended:
                yield None
            if ended:
                return
            request = replace(requests[number % len(requests)], id=str(number))
            begun[request.id] = time.monotonic()
            yield request

    started = time.monotonic()
    for answer in engine.generate(source()):
        now = time.monotonic()
        latency = now - begun.pop(answer.id)
        if not ended:
            took.append(latency)
            rounds, rest = divmod(len(took), concurrency)
            enough = now - started >= seconds or len(took) >= LEVEL_ANSWERS
            if rest == 0 and rounds >= LEVEL_ROUNDS and enough:
                ended.append(now)
    lasted = ended[0] - started
    return Level(concurrency, len(took) / lasted, float(np.quantile(took, 0.95)), len(took))


def summary(seconds: Sequence[float], num_bootstrap: int, seed: int) -> dict[str, Any] | None:
    """Returns p50 and p95 of samples, each with its 95% percentile bootstrap interval, and n.

    `low` and `high` are p50's. None where there are no samples. Source: Efron & Tibshirani, "An
    Introduction to the Bootstrap" (1993), chapter 13.
    """
    if not seconds:
        return None
    values_S, random = np.asarray(seconds, dtype=np.float64), np.random.default_rng(seed)
    resampled = [random.choice(values_S, size=len(values_S)) for _ in range(num_bootstrap)]
    medians_R, tails_R = np.quantile(np.stack(resampled, axis=1), (0.5, 0.95), axis=0)
    return {
        "p50": float(np.quantile(values_S, 0.5)),
        "p95": float(np.quantile(values_S, 0.95)),
        "low": float(np.quantile(medians_R, 0.025)),
        "high": float(np.quantile(medians_R, 0.975)),
        "p95_low": float(np.quantile(tails_R, 0.025)),
        "p95_high": float(np.quantile(tails_R, 0.975)),
        "n": len(values_S),
    }
