"""Calls to an endpoint one after another, for what happens now and then: files, batches, lists."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from retort.engines._endpoint import Connection, Payload, Reply, attempt, cause_of, connect
from retort.engines._request_pool import LONGEST_WAIT_SECONDS, backoff
from retort.errors import StageError

# Files of hundreds of megabytes pass in one call.
TRANSFER_SECONDS = 900.0


class GoneError(StageError):
    """The provider no longer has a batch, or its results."""


@dataclass(frozen=True)
class Caller:
    """Makes one call after another to paths below an endpoint."""

    door: Connection

    def once(self, method: str, path: str, data: Payload = None, query: str = "") -> Reply:
        """Returns what came of one call."""

        async def call() -> Reply:
            async with connect(self.door, 1, TRANSFER_SECONDS) as session:
                return await attempt(session, self.door, method, self.door.url(path, query), data)

        return asyncio.run(call())

    def call(self, method: str, path: str, data: Payload = None, query: str = "") -> bytes:
        """Returns what came of a call that may be made twice.

        Raises `GoneError`, or `StageError` when an hour of trying gave nothing.
        """
        started, num_calls = time.monotonic(), 0
        while (reply := self.once(method, path, data, query)).error is not None:
            num_calls += 1
            self.wait(reply, num_calls, started)
        return bytes(reply.data)

    def wait(self, reply: Reply, num_calls: int, started: float) -> None:
        """Returns when it is time for another call; raises where none will help."""
        assert reply.error
        seconds = reply.wait_seconds or backoff(num_calls)
        late = time.monotonic() + seconds > started + LONGEST_WAIT_SECONDS
        if late or not reply.error["transient"]:
            kind = GoneError if reply.error["status"] in (404, 410) else StageError
            raise kind(f"{self.door.shown}: batch: {cause_of(reply.error)}")
        time.sleep(seconds)


def lines_of(data: bytes) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file of results; one that cannot be read is missing."""
    for line in filter(None, data.splitlines()):
        with suppress(ValueError):
            yield orjson.loads(line)
