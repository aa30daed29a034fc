"""Chats answered by an endpoint, many in flight at once; each is answered or fails alone.

The event loop runs in a thread of its own, so that `generate` stays a plain generator. The number
in flight follows the endpoint: it doubles with each round trip until the endpoint is first
overloaded; from then on it grows by one a round trip, and is halved at each overload, as in TCP
(RFC 5681).

Calls are made by aiohttp: the providers' clients take 4 to 12 times its CPU time
(`benchmarks.http_engine`), so they only do what happens now and then (`_official.py`).
"""

import asyncio
import queue
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
import orjson

from retort.engines import Answer, Request, Settings, Timing, take_requests, timed_alone
from retort.engines._endpoint import Api, Connection, facts_of, open_connection
from retort.engines._replies import (
    BUSY,
    LONGEST_WAIT_SECONDS,
    UNREADABLE,
    EndpointError,
    Reply,
    backoff,
    error_in,
    make_error,
    not_json,
    refusal,
    rename_field,
    wants_other_name,
)
from retort.errors import StageError
from retort.records import JsonObject

FIRST_LIMIT = 32
# Answers that come together are handed over together: each wake-up of a thread costs CPU time.
HANDOVER_SECONDS = 0.005


class HttpEngine:
    """An endpoint that answers chats."""

    def __init__(self, settings: Settings, api: Api):
        self._settings, self._api = settings, api
        self._connection = open_connection(settings, api)
        self._streams = True  # until a stream fails
        self.facts = facts_of(self._connection, api)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields answers in the order in which they finish. Raises `StageError` for a bad key."""
        max_in_flight = self._settings.runtime["max_concurrency"]
        source, more, num_outstanding = iter(requests), True, 0
        pool = RequestPool(self._settings, self._api, self._connection)
        try:
            while more or num_outstanding:
                # As many are queued as are in flight: the loop never waits for the caller.
                room = 2 * max_in_flight - num_outstanding
                if more and room >= max(1, max_in_flight // 2):
                    batch, more = take_requests(source, room)
                    pool.submit(batch)
                    num_outstanding += len(batch)
                assert num_outstanding or not more, "None came while no answer is outstanding"
                if num_outstanding:
                    answer = pool.next_answer()
                    num_outstanding -= 1
                    yield answer
        finally:
            pool.close()

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields what the endpoint says of existing answers, each with the text that it scored."""
        texts: JsonObject = {}

        def noted() -> Iterator[Request | None]:
            for request in requests:
                if request:
                    texts[request.id] = request.response
                yield request

        for answer in self.generate(noted()):
            yield Answer(answer.id, {**answer.raw, "scored": texts.pop(answer.id)})

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one request; no first token if the endpoint does not stream."""
        from retort.engines._official import timed_stream

        timing = None
        if self._streams:
            timing = timed_stream(self._settings, self._api, self._connection, request)
        self._streams = timing is not None
        return timing or timed_alone(self.generate, request)

    def forget(self) -> None:
        """Does nothing: an endpoint's cache cannot be dropped from here."""


@dataclass
class AimdLimiter:
    """The number of requests that may be in flight: additive increase, multiplicative decrease."""

    max_in_flight: int
    limit: float = FIRST_LIMIT
    halved_at: float | None = None

    def __post_init__(self) -> None:
        self.limit = min(self.limit, self.max_in_flight)

    def on_success(self) -> None:
        """Doubles the limit in a round trip, or adds one after the first overload."""
        step = 1.0 if self.halved_at is None else 1 / self.limit
        self.limit = min(self.max_in_flight, self.limit + step)

    def on_overload(self, sent_at: float) -> None:
        """Halves the limit, once for all requests that were sent before it was last halved."""
        if self.halved_at is None or sent_at > self.halved_at:
            self.limit, self.halved_at = max(1.0, self.limit / 2), time.monotonic()


@dataclass(eq=False)
class _PendingRequest:
    request: Request
    is_renamed: bool = False
    num_attempts: int = 0
    num_delays: int = 0
    waited_seconds: float = 0.0


class RequestPool:
    """Requests in flight at one endpoint. The caller uses the public methods, the loop the others.

    A request that must wait is queued again, and meanwhile not in flight.
    """

    def __init__(self, settings: Settings, api: Api, connection: Connection):
        self._settings, self._api, self._connection = settings, api, connection
        self._limiter = AimdLimiter(settings.runtime["max_concurrency"])
        self._queue: deque[_PendingRequest] = deque()
        self._finished: list[Answer] = []  # in the loop
        self._handovers: queue.SimpleQueue[list[Answer] | BaseException] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()  # on the caller's side
        self._num_in_flight, self._paused_until = 0, 0.0
        self._renames = self._is_denied = False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retort-http", daemon=True)
        self._thread.start()
        self._started.wait()

    def submit(self, requests: list[Request]) -> None:
        """Queues requests."""
        with suppress(RuntimeError):  # the loop has ended; `next_answer` raises why
            self._loop.call_soon_threadsafe(self._enqueue, requests)

    def next_answer(self) -> Answer:
        """Waits for the next answer and returns it. Raises the error that ended the loop."""
        if not self._answers:
            answers = self._handovers.get()
            if isinstance(answers, BaseException):
                raise answers
            self._answers.extend(answers)
        return self._answers.popleft()

    def close(self) -> None:
        """Ends the loop, its connections and its thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            self._fail(group.exceptions[0])
        except BaseException as error:
            self._fail(error)
        finally:
            self._started.set()

    def _fail(self, error: BaseException) -> None:
        """Has the caller raise an error, after the answers that came before it."""
        self._hand_over()
        self._handovers.put(error)

    async def _serve(self) -> None:
        runtime, task = self._settings.runtime, asyncio.current_task()
        assert task
        self._main, self._loop = task, asyncio.get_running_loop()
        self._url = self._connection.url(self._api.path)
        async with (
            _open_session(
                self._connection, runtime["max_concurrency"], runtime["request_timeout_seconds"]
            ) as self._session,
            asyncio.TaskGroup() as self._tasks,
        ):
            self._started.set()
            await self._loop.create_future()

    def _enqueue(self, requests: list[Request]) -> None:
        self._queue.extend(map(_PendingRequest, requests))
        self._send_next()

    def _send_next(self) -> None:
        """Sends the requests that the limit allows now."""
        if self._loop.time() < self._paused_until:
            self._loop.call_at(self._paused_until, self._send_next)
            return
        while self._queue and self._num_in_flight < int(self._limiter.limit):
            if self._is_denied or self._main.cancelling():
                return
            self._num_in_flight += 1
            self._tasks.create_task(self._answer(self._queue.popleft()))

    async def _answer(self, pending: _PendingRequest) -> None:
        """Makes one attempt, and finishes the request or queues it again."""
        sent_at = time.monotonic()
        try:
            reply = await self._attempt(pending)
        except StageError:
            self._is_denied = True
            raise
        self._num_in_flight -= 1
        if reply.error is None:
            self._limiter.on_success()
            self._finish(pending, {"body": reply.data, "seconds": time.monotonic() - sent_at})
        elif wants_other_name(self._api, reply.error) and not pending.is_renamed:
            self._renames = True
            self._queue.appendleft(pending)
        else:
            if reply.error["kind"] == "timeout" or reply.error["status"] in BUSY:
                self._limiter.on_overload(sent_at)
            self._retry_or_fail(pending, reply, reply.error)
        self._send_next()

    async def _attempt(self, pending: _PendingRequest) -> Reply:
        pending.is_renamed = self._renames
        try:
            body = self._api.body(self._settings, pending.request)
            payload = orjson.dumps(rename_field(self._api, body) if self._renames else body)
        except UNREADABLE as error:
            return Reply(error=make_error("unsendable", f"{type(error).__name__}: {error}"))
        return await _post(self._session, self._connection, self._url, payload)

    def _retry_or_fail(self, pending: _PendingRequest, reply: Reply, error: EndpointError) -> None:
        """Queues a request again after a while, or finishes it if its error is final.

        A wait that the endpoint asks for uses up no attempt, and holds back all requests. A relayed
        limit is not the endpoint's own, and may be of one request alone.
        """
        is_limit = error["status"] == 429 and not reply.is_relayed
        is_asked = is_limit or (error["status"] in BUSY and reply.wait_seconds is not None)
        pending.num_delays += 1
        pending.num_attempts += not is_asked
        seconds = (is_asked and reply.wait_seconds) or backoff(pending.num_delays)
        pending.waited_seconds += seconds
        is_late = pending.waited_seconds > LONGEST_WAIT_SECONDS
        is_last = pending.num_attempts >= self._settings.runtime["max_attempts"]
        if not error["transient"] or is_late or is_last:
            self._finish(pending, {"error": error})
        elif is_asked:
            self._queue.appendleft(pending)
            self._paused_until = max(self._paused_until, self._loop.time() + seconds)
        else:
            self._loop.call_later(seconds, self._requeue, pending)

    def _requeue(self, pending: _PendingRequest) -> None:
        self._queue.appendleft(pending)
        self._send_next()

    def _finish(self, pending: _PendingRequest, raw: JsonObject) -> None:
        if not self._finished:
            self._loop.call_later(HANDOVER_SECONDS, self._hand_over)
        self._finished.append(Answer(pending.request.id, raw))

    def _hand_over(self) -> None:
        if self._finished:
            self._handovers.put(self._finished)
            self._finished = []


def _open_session(
    connection: Connection, max_connections: int, timeout_seconds: float
) -> aiohttp.ClientSession:
    """Returns a session of the running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections, ssl=_trust(connection)),
        headers={**connection.headers, "Content-Type": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        proxy=connection.proxy,
    )


def _trust(connection: Connection) -> ssl.SSLContext | bool:
    """Returns the certificates that the providers' clients trust, SSL_CERT_FILE included."""
    if not connection.base.startswith("https:"):
        return True
    import httpx2

    return httpx2.create_ssl_context()


async def _post(
    session: aiohttp.ClientSession, connection: Connection, url: str, payload: bytes
) -> Reply:
    """Returns the reply to a JSON body. Raises `StageError` if the key is refused."""
    try:
        # Redirects are not followed: they would carry the key to another host.
        async with session.post(url, data=payload, allow_redirects=False) as response:
            body = await response.read()
    except TimeoutError:
        return Reply(error=make_error("timeout", "no answer within request_timeout_seconds"))
    except (aiohttp.ClientError, OSError) as error:
        return Reply(error=make_error("connection", f"{type(error).__name__}: {error}"))
    if response.status >= 300:
        return refusal(response.status, body, response.headers, connection)
    try:
        value = orjson.loads(body)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return error_in(value, response.headers, connection) or Reply(value)
    return not_json(body.decode(errors="replace"), connection)
