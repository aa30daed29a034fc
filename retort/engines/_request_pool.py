"""Chats answered by an endpoint, many in flight at once, each answered or failed alone.

The loop runs in a thread of its own, so that `generate` stays a plain generator. The surprise: the
number in flight follows the endpoint. It doubles with each round trip until the endpoint first
pushes back; from then on it grows by one and is halved, as in TCP (RFC 5681).
"""

import asyncio
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from retort.engines import Answer, Request, Settings, Timing, timed_whole
from retort.engines._endpoint import (
    BUSY,
    UNREADABLE,
    Api,
    Connection,
    Error,
    Reply,
    as_json,
    attempt,
    connect,
    facts_of,
    fault,
    names_another,
    open_door,
    renamed,
    streamed,
)

FIRST_LIMIT = 32
LONGEST_BACKOFF_SECONDS = 30.0
# How long one request may be put off by an endpoint that is busy.
LONGEST_WAIT_SECONDS = 3600.0
# Answers that come together are handed over together: waking a thread for each costs the server.
HANDOVER_SECONDS = 0.005


class HttpEngine:
    """An endpoint that answers chats."""

    def __init__(self, settings: Settings, api: Api):
        self._settings, self._api = settings, api
        self._door = open_door(settings, api)
        self._streams = True  # until it once did not
        self.facts = facts_of(self._door, api)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields answers in the order in which they finish. Raises `StageError` for a bad key."""
        most = self._settings.runtime["max_concurrency"]
        source, more, outstanding = iter(requests), True, 0
        flow = RequestPool(self._settings, self._api, self._door)
        try:
            while more or outstanding:
                # As many stand in line as are in flight: the loop never waits for the caller.
                if more and (room := 2 * most - outstanding) >= max(1, most // 2):
                    pulled, more = _pull(source, room)
                    flow.add(pulled)
                    outstanding += len(pulled)
                assert outstanding or not more, "None was given while no answer is outstanding"
                if outstanding:
                    answer = flow.take()
                    outstanding -= 1
                    yield answer
        finally:
            flow.end()

    def timed(self, request: Request) -> Timing:
        """Returns how long one request takes; where nothing is streamed, its whole answer alone."""
        found = streamed(self._settings, self._api, self._door, request) if self._streams else None
        self._streams = found is not None
        return found or timed_whole(self.generate, request)

    def forget(self) -> None:
        """Does nothing: what an endpoint keeps is its own."""


def _pull(source: Iterator[Request | None], room: int) -> tuple[list[Request], bool]:
    """Returns the next requests, at most `room`, and whether there may be more."""
    pulled: list[Request] = []
    for request in islice(source, room):
        if request is None:
            return pulled, True
        pulled.append(request)
    return pulled, len(pulled) == room


@dataclass
class AimdLimiter:
    """How many requests may be in flight, between one and `most`."""

    most: int
    limit: float = FIRST_LIMIT
    halved_at: float | None = None

    def __post_init__(self) -> None:
        self.limit = min(self.limit, self.most)

    def succeeded(self) -> None:
        """Doubles the limit in a round trip, or adds one once it was ever pushed back."""
        step = 1.0 if self.halved_at is None else 1 / self.limit
        self.limit = min(self.most, self.limit + step)

    def pushed_back(self, started: float) -> None:
        """Halves the limit; a request begun before the last halving tells nothing new."""
        if self.halved_at is None or started > self.halved_at:
            self.limit, self.halved_at = max(1.0, self.limit / 2), time.monotonic()


@dataclass(eq=False)
class _PendingRequest:
    request: Request
    renamed: bool = False
    attempts: int = 0
    delays: int = 0
    waited_seconds: float = 0.0


class RequestPool:
    """Requests in flight. `add`, `take` and `end` are the caller's side, the rest is the loop's.

    A request that must wait holds no place in flight: it stands in line again.
    """

    def __init__(self, settings: Settings, api: Api, door: Connection):
        self._settings, self._api, self._door = settings, api, door
        self._pace = AimdLimiter(settings.runtime["max_concurrency"])
        self._line: deque[_PendingRequest] = deque()
        self._answers: queue.SimpleQueue[list[Answer] | BaseException] = queue.SimpleQueue()
        self._finished: list[Answer] = []
        self._taken: deque[Answer] = deque()
        self._num_active, self._resume_at, self._renamed = 0, 0.0, False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retort-http", daemon=True)
        self._thread.start()
        self._ready.wait()

    def add(self, requests: list[Request]) -> None:
        """Puts requests in line."""
        with suppress(RuntimeError):  # the loop has ended; `take` says why
            self._loop.call_soon_threadsafe(self._admit, requests)

    def take(self) -> Answer:
        """Returns the next answer, waiting for it. Raises what ended the loop."""
        if not self._taken:
            answers = self._answers.get()
            if isinstance(answers, BaseException):
                raise answers
            self._taken.extend(answers)
        return self._taken.popleft()

    def end(self) -> None:
        """Ends the loop, its connections and its thread."""
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            self._end_with(group.exceptions[0])
        except BaseException as error:
            self._end_with(error)
        finally:
            self._ready.set()

    def _end_with(self, error: BaseException) -> None:
        """Has an error raised on the caller's side, after all that was answered before."""
        self._hand_over()
        self._answers.put(error)

    async def _serve(self) -> None:
        runtime, task = self._settings.runtime, asyncio.current_task()
        assert task
        self._main, self._loop = task, asyncio.get_running_loop()
        self._url = self._door.url(self._api.path)
        async with (
            connect(
                self._door, runtime["max_concurrency"], runtime["request_timeout_seconds"]
            ) as self._session,
            asyncio.TaskGroup() as self._tasks,
        ):
            self._ready.set()
            await self._loop.create_future()

    def _admit(self, requests: list[Request]) -> None:
        self._line.extend(map(_PendingRequest, requests))
        self._pump()

    def _pump(self) -> None:
        """Sends what may be sent now."""
        if self._loop.time() < self._resume_at:
            self._loop.call_at(self._resume_at, self._pump)
            return
        while self._line and self._num_active < int(self._pace.limit):
            if self._main.cancelling():
                return
            self._num_active += 1
            self._tasks.create_task(self._ask(self._line.popleft()))

    async def _ask(self, job: _PendingRequest) -> None:
        started = time.monotonic()
        reply = await self._call(job)
        self._num_active -= 1
        if reply.error is None:
            self._pace.succeeded()
            self._give(job, {"body": reply.data, "seconds": time.monotonic() - started})
        elif names_another(self._api, reply.error) and not job.renamed:
            self._renamed = True
            self._line.appendleft(job)
        else:
            if reply.error["kind"] == "timeout" or reply.error["status"] in BUSY:
                self._pace.pushed_back(started)
            self._again(job, reply.error, reply.wait_seconds)
        self._pump()

    async def _call(self, job: _PendingRequest) -> Reply:
        job.renamed = self._renamed
        try:
            body = self._api.body(self._settings, job.request)
            payload = orjson.dumps(renamed(self._api, body) if job.renamed else body)
        except UNREADABLE as bad:
            return Reply(error=fault("unsendable", f"{type(bad).__name__}: {bad}"))
        reply = await attempt(self._session, self._door, "POST", self._url, payload)
        return as_json(self._door, reply)

    def _again(self, job: _PendingRequest, error: Error, told_seconds: float | None) -> None:
        """Puts a request in line again after a while, or gives its error where it is final.

        Only what the endpoint did not ask for counts as an attempt. Where it asked to wait,
        nothing at all is sent meanwhile.
        """
        asked = error["status"] == 429 or (error["status"] in BUSY and told_seconds is not None)
        job.delays += 1
        job.attempts += not asked
        seconds = (asked and told_seconds) or backoff(job.delays)
        job.waited_seconds += seconds
        late = job.waited_seconds > LONGEST_WAIT_SECONDS
        if not error["transient"] or late or job.attempts >= self._settings.runtime["max_attempts"]:
            self._give(job, {"error": error})
        elif asked:
            self._line.appendleft(job)
            self._resume_at = max(self._resume_at, self._loop.time() + seconds)
        else:
            self._loop.call_later(seconds, self._return, job)

    def _return(self, job: _PendingRequest) -> None:
        self._line.appendleft(job)
        self._pump()

    def _give(self, job: _PendingRequest, raw: dict[str, Any]) -> None:
        if not self._finished:
            self._loop.call_later(HANDOVER_SECONDS, self._hand_over)
        self._finished.append(Answer(job.request.id, raw))

    def _hand_over(self) -> None:
        if self._finished:
            self._answers.put(self._finished)
            self._finished = []


def backoff(num_delays: int) -> float:
    """Returns seconds to wait: doubled each time, and never the same for all who wait."""
    longest: float = min(LONGEST_BACKOFF_SECONDS, 0.25 * 2.0 ** min(num_delays, 10))
    return longest * random.uniform(0.5, 1)
