"""One request at an endpoint, timed to its first token: the answer is streamed, for nothing else.

Both protocols stream events as lines `data: {...}` (server-sent events). The surprise: what cannot
be streamed is no error here; the caller then times the whole answer.
"""

import asyncio
import time
from typing import Any

import orjson

from retort.engines import Request, Settings, Timing
from retort.engines._door import (
    BROKEN,
    UNREADABLE,
    Api,
    Door,
    Error,
    connect,
    fault_of,
    names_another,
    renamed,
)

EVENT = b"data:"
# Where OpenAI's form, and servers that follow it, put what the model wrote.
WRITTEN = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


def streamed(settings: Settings, api: Api, door: Door, request: Request) -> Timing | None:
    """Returns how long a streamed answer took; None where the endpoint streamed none."""
    try:
        body = {**api.body(settings, request), "stream": True}
        found = asyncio.run(_timed(settings, api, door, body))
        if isinstance(found, dict) and names_another(api, found):
            found = asyncio.run(_timed(settings, api, door, renamed(api, body)))
    except (*BROKEN, *UNREADABLE):
        return None
    return found if isinstance(found, Timing) else None


async def _timed(
    settings: Settings, api: Api, door: Door, body: dict[str, Any]
) -> Timing | Error | None:
    """Returns the times, the endpoint's error, or None where nothing came as events."""
    payload, headers = orjson.dumps(body), {"Content-Type": "application/json"}
    started, first_at, num_events = time.monotonic(), None, 0
    async with (
        connect(door, 1, settings.runtime["request_timeout_seconds"]) as session,
        # Redirects are not followed: they would carry the key to another host.
        session.post(
            door.url(api.path), data=payload, headers=headers, allow_redirects=False
        ) as response,
    ):
        if response.status >= 300:
            return fault_of(response.status, await response.read(), door)
        async for line in response.content:
            num_events += line.startswith(EVENT)
            if first_at is None and line.startswith(EVENT) and _is_token(line):
                first_at = time.monotonic()
    if not num_events:
        return None
    whole_seconds = time.monotonic() - started
    return Timing(whole_seconds, None if first_at is None else first_at - started)


def _is_token(line: bytes) -> bool:
    """Whether an event brings a part of the answer."""
    data = line.removeprefix(EVENT).strip()
    if data == b"[DONE]":
        return False
    event = orjson.loads(data)
    if event.get("type") == "content_block_delta":  # Anthropic's
        return True
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return any(delta.get(name) for name in WRITTEN)
