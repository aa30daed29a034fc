"""Calls through the providers' own clients, `openai` and `anthropic`: files, batches and streams.

They build the URLs and forms, follow pages, read events and classify errors. Retries are Retort's,
as for single chats, and so are the headers: the clients add what they find in environment variables
and in their own files, and send the key under names that not every server of the protocol reads.
"""

import importlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

import orjson

from retort.engines import Request, Settings, Timing
from retort.engines._endpoint import Api, Connection
from retort.engines._replies import (
    LONGEST_WAIT_SECONDS,
    UNREADABLE,
    Reply,
    backoff,
    cause_of,
    make_error,
    not_json,
    refusal,
    rename_field,
    wants_other_name,
)
from retort.errors import StageError
from retort.records import JsonObject

# All that a client sends besides the connection's own headers.
HTTP_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type"}
HTTP_HEADERS |= {"host", "user-agent"}
# Where OpenAI, and servers that follow it, put what the model wrote.
WRITTEN = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")
# One call may transfer a file of hundreds of megabytes.
TRANSFER_SECONDS = 900.0


class GoneError(StageError):
    """The provider no longer has a batch, or its results."""


@dataclass(frozen=True)
class Caller:
    """Makes calls to an endpoint, one after another; a call is a function of the client."""

    api: Api
    connection: Connection
    timeout_seconds: float = TRANSFER_SECONDS

    @cached_property
    def package(self) -> Any:
        """The provider's package, openai or anthropic."""
        return importlib.import_module(self.api.name)

    @cached_property
    def client(self) -> Any:
        """The provider's client."""
        connection = self.connection

        def use_own_headers(request: Any) -> None:
            for name in set(request.headers) - HTTP_HEADERS:
                del request.headers[name]
            request.headers.update(connection.headers)

        return getattr(self.package, self.api.client_class)(
            base_url=connection.base.removesuffix(self.api.version),
            api_key="unused",
            default_query=dict(parse_qsl(connection.query, keep_blank_values=True)),
            timeout=self.timeout_seconds,
            max_retries=0,
            http_client=self.package.DefaultHttpxClient(
                event_hooks={"request": [use_own_headers]},
                follow_redirects=False,  # they would carry the key to another host
            ),
        )

    def once(self, call: Callable[[Any], Any]) -> Reply:
        """Returns the reply to one call. Raises `StageError` if the key is refused."""
        import httpx2

        package = self.package
        try:
            data = call(self.client)
        except package.APIStatusError as error:
            response = error.response
            return refusal(
                response.status_code, response.content, response.headers, self.connection
            )
        except (package.APITimeoutError, httpx2.TimeoutException):
            return Reply(error=make_error("timeout", f"no reply in {self.timeout_seconds:g} s"))
        except (package.APIError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            message = self.connection.clean(f"{type(cause).__name__}: {cause}")
            return Reply(error=make_error("connection", message))
        except json.JSONDecodeError as error:
            return not_json(str(error), self.connection)
        # The clients return the text of a reply that does not declare itself JSON.
        return not_json(data, self.connection) if isinstance(data, str) else Reply(data)

    def call(self, call: Callable[[Any], Any]) -> Any:
        """Returns the data of a call that may be repeated.

        Raises `GoneError`, or `StageError` if no attempt of an hour succeeded.
        """
        started, num_calls = time.monotonic(), 0
        while (reply := self.once(call)).error is not None:
            num_calls += 1
            self.wait(reply, num_calls, started)
        return reply.data

    def wait(self, reply: Reply, num_calls: int, started: float) -> None:
        """Waits until it is time for another call. Raises `StageError` if none can help."""
        assert reply.error
        seconds = reply.wait_seconds or backoff(num_calls)
        is_late = time.monotonic() + seconds > started + LONGEST_WAIT_SECONDS
        if is_late or not reply.error["transient"]:
            kind = GoneError if reply.error["status"] in (404, 410) else StageError
            raise kind(f"{self.connection.shown}: batch: {cause_of(reply.error)}")
        time.sleep(seconds)


def read_lines(data: bytes) -> Iterator[JsonObject]:
    """Yields the rows of a file of results; unreadable ones are left out."""
    for line in filter(None, data.splitlines()):
        with suppress(ValueError):
            yield orjson.loads(line)


def timed_stream(
    settings: Settings, api: Api, connection: Connection, request: Request
) -> Timing | None:
    """Returns the latency of a streamed answer; None if the endpoint does not stream."""
    caller = Caller(api, connection, settings.runtime["request_timeout_seconds"])
    try:
        body = {**api.body(settings, request), "stream": True}
        reply = _time_events(caller, body)
        if reply.error and wants_other_name(api, reply.error):
            reply = _time_events(caller, rename_field(api, body))
    except UNREADABLE:
        return None
    finally:
        caller.client.close()
    return reply.data if isinstance(reply.data, Timing) else None


def _time_events(caller: Caller, body: JsonObject) -> Reply:
    """Returns the Timing of a stream as the reply, or None if no event came."""
    stream_class = caller.package.Stream[object]

    def call(client: Any) -> Timing | None:
        started, first_at, num_events = time.monotonic(), None, 0
        path = caller.api.version + caller.api.path
        # Not by the clients' `create`: Anthropic's no longer takes a temperature.
        for event in client.post(
            path, body=body, cast_to=object, stream=True, stream_cls=stream_class
        ):
            num_events += 1
            if first_at is None and _has_text(event):
                first_at = time.monotonic()
        whole_seconds = time.monotonic() - started
        first_seconds = None if first_at is None else first_at - started
        return Timing(whole_seconds, first_seconds) if num_events else None

    return caller.once(call)


def _has_text(event: JsonObject) -> bool:
    """Whether an event carries a part of the answer."""
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return event.get("type") == "content_block_delta" or any(delta.get(name) for name in WRITTEN)
