"""One endpoint behind HTTP: its address, its key, one call, its time, and what its errors mean.

The only door to aiohttp. The surprise: the key is held here alone, and is cut out of everything
that an endpoint says of an error, because some endpoints repeat it.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from retort.engines import STATE_OF, Request, Settings, Timing
from retort.errors import SpecError, StageError
from retort.records import Response

DENIED = (401, 402, 403)
BUSY = (429, 503, 529)
# What a value of another shape than expected raises.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
# What a connection that does not come about, or breaks, raises.
BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
PASSING = ("timeout", "connection", "not_json", "missing", "expired")
# What endpoints call their errors, in a code or in words, and the finish reason it comes to.
REASON_OF = {
    "context_length_exceeded": "prompt_too_long",
    "maximum context length": "prompt_too_long",
    "maximum model length": "prompt_too_long",
    "exceed context limit": "prompt_too_long",
    "prompt is too long": "prompt_too_long",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "content filtering policy": "content_filter",
}
Error = dict[str, Any]
Payload = bytes | dict[str, str | bytes] | None  # JSON, or the fields of a form


@dataclass(frozen=True)
class Api:
    """What tells one protocol from another.

    `path` is where one chat is answered, below `endpoint`, the default. `rename` is a field's name
    and the one that newer models insist on.
    """

    name: str
    endpoint: str
    key_env: str
    path: str
    headers: Callable[[str, str], dict[str, str]]  # of the host and the key
    body: Callable[[Settings, Request], dict[str, Any]]
    rename: tuple[str, str] | None = None


@dataclass(frozen=True)
class Connection:
    """An endpoint and how to be let in; `shown` is what may be seen of it."""

    shown: str
    key_env: str
    base: str = field(repr=False)
    query: str = field(repr=False)
    key: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)

    def url(self, path: str, query: str = "") -> str:
        """Returns the address of a path below the endpoint."""
        full = "&".join(part for part in (self.query, query) if part)
        return f"{self.base}{path}{'?' if full else ''}{full}"

    def clean(self, text: str) -> str:
        """Returns a text without the key."""
        return text.replace(self.key, "***") if self.key else text


@dataclass(frozen=True)
class Reply:
    """What came of one call: data, or an error; the seconds that the endpoint asks to wait."""

    data: Any = b""
    error: Error | None = None
    wait_seconds: float | None = None


def open_door(settings: Settings, api: Api) -> Connection:
    """Returns the endpoint of the settings. Raises `SpecError` for a bad one, or a missing key."""
    given = settings.endpoint or api.endpoint
    shown = given.rpartition("@")[2].partition("?")[0]
    parts = _split(given)
    if not parts or not parts.hostname or "@" in parts.netloc:
        raise SpecError(
            f"endpoint '{shown}' must be a URL such as {api.endpoint}; "
            "a key goes into the environment variable that api_key_env names"
        )
    key_env, key = _key(settings, api, needed=given.startswith(api.endpoint))
    return Connection(
        shown=shown,
        key_env=key_env,
        base=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix(api.path)}",
        query=parts.query,
        key=key,
        headers=api.headers(parts.hostname, key),
        proxy=None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme),
    )


def _split(url: str) -> SplitResult | None:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.port != 0:
            return parts
    return None


def _key(settings: Settings, api: Api, needed: bool) -> tuple[str, str]:
    """Returns the variable's name and the key in it, empty where none is needed."""
    name = settings.api_key_env or api.key_env
    if not name.isidentifier():
        raise SpecError("api_key_env must be the name of an environment variable, never the key")
    key = os.environ.get(name, "").strip()
    if not key and (needed or settings.api_key_env):
        raise SpecError(f"engine {api.name} needs a key in the environment variable {name}")
    if not (key.isascii() and key.isprintable()):
        raise SpecError(f"the key in {name} holds characters that no HTTP header can carry")
    return name, key


def described(settings: Settings, api: Api) -> str:
    """Returns one line without secrets: who will be asked, and with which key."""
    door = open_door(settings, api)
    return f"{api.name} at {door.shown}, {f'key in {door.key_env}' if door.key else 'no key'}"


def facts_of(door: Connection, api: Api) -> dict[str, Any]:
    """Returns what an artifact says of who answered."""
    return {
        "engine": api.name,
        "engine_version": "1",
        "endpoint": door.shown,
        "dtype": "unknown",
        "logprobs_mode": "none",
    }


def connect(door: Connection, connections: int, timeout_seconds: float) -> aiohttp.ClientSession:
    """Returns a session of the running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        headers=door.headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        proxy=door.proxy,
    )


async def attempt(
    session: aiohttp.ClientSession, door: Connection, method: str, url: str, data: Payload
) -> Reply:
    """Returns what came of one call. Raises `StageError` where the key is not let in."""
    headers = {"Content-Type": "application/json"} if isinstance(data, bytes) else None
    payload = _form(data) if isinstance(data, dict) else data
    try:
        # Redirects are not followed: they would carry the key to another host.
        async with session.request(
            method, url, data=payload, headers=headers, allow_redirects=False
        ) as response:
            body = await response.read()
            if response.status < 300:
                return Reply(body)
            error = fault_of(response.status, body, door)
            wait_seconds = _retry_after(response.headers)
    except TimeoutError:
        return Reply(error=fault("timeout", "no answer within request_timeout_seconds"))
    except (aiohttp.ClientError, OSError) as broken:
        return Reply(error=fault("connection", f"{type(broken).__name__}: {broken}"))
    if error["status"] in DENIED or error["code"] == "insufficient_quota":
        raise StageError(
            f"{door.shown} does not let the key in {door.key_env} in: {cause_of(error)}"
        )
    return Reply(error=error, wait_seconds=wait_seconds)


def _form(fields: dict[str, str | bytes]) -> aiohttp.FormData:
    """Returns a multipart form; bytes are a file."""
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, value, filename="rows.jsonl" if isinstance(value, bytes) else None)
    return form


def as_json(door: Connection, reply: Reply) -> Reply:
    """Returns a reply with its bytes read as a JSON object."""
    if reply.error is None:
        with suppress(ValueError):
            found = orjson.loads(reply.data)
            if isinstance(found, dict):
                return Reply(found)
        return Reply(error=fault("not_json", door.clean(reply.data.decode(errors="replace"))))
    return reply


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds an endpoint asks to wait (RFC 9110: a number or a date), if it does."""
    with suppress(ValueError, TypeError, KeyError):
        if "Retry-After-Ms" in headers:
            return float(headers["Retry-After-Ms"]) / 1000
        given = headers["Retry-After"]
        if given.replace(".", "", 1).isdigit():
            return float(given)
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    return None


def fault(kind: str, message: str, status: int | None = None, code: str = "") -> Error:
    """Returns an error as it is stored; it is transient where asking again may help."""
    again = kind in PASSING or (status is not None and (status >= 500 or status in (408, 429)))
    return {
        "kind": kind,
        "code": code,
        "message": message[:500],
        "status": status,
        "transient": again,
    }


def fault_of(status: int, body: bytes, door: Connection) -> Error:
    """Returns an endpoint's error, its message found in any of the usual shapes."""
    text, code = body.decode(errors="replace"), ""
    with suppress(ValueError):
        found = orjson.loads(body)
        while isinstance(found, dict) and isinstance(found.get("error"), dict):
            found = found["error"]
        if isinstance(found, dict):
            named = found.get("code")
            code = named if isinstance(named, str) else str(found.get("type") or "")
            text = str(found.get("message") or found.get("error") or found.get("detail") or text)
    return fault(f"http_{status}", door.clean(text), status, door.clean(code)[:100])


def cause_of(error: Error) -> str:
    """Returns an error as one line."""
    return f"{error['kind']}: {error['message']}"


def read_answer(
    request_id: str, raw: dict[str, Any], read: Callable[[str, dict[str, Any]], Response]
) -> Response:
    """Returns what a raw answer says: `read` where it has a body, else a failed response."""
    reason = "error"
    try:
        if "error" not in raw:
            return read(request_id, raw["body"])
        error, cause = raw["error"], cause_of(raw["error"])
        said = f"{error.get('code')} {error['message']}".lower()
        if error["status"] in (400, 413, 422):
            reason = next((r for words, r in REASON_OF.items() if words in said), reason)
    except UNREADABLE as bad:
        cause = f"unreadable: {type(bad).__name__}: {bad}"
    state = STATE_OF.get(reason, "failed")
    return Response(request_id, "", [], reason, 0, 0, state=state, cause=cause)


def names_another(api: Api, error: Error) -> bool:
    """Whether an endpoint refused a field and named the one that it takes instead."""
    known = api.rename is not None and error["status"] == 400
    return known and all(name in error["message"] for name in api.rename or ())


def renamed(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    """Returns a body with the field under its other name."""
    old, new = api.rename or ("", "")
    return {new if name == old else name: value for name, value in body.items()}


EVENT = b"data:"
# Where OpenAI's form, and servers that follow it, put what the model wrote.
WRITTEN = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


def streamed(settings: Settings, api: Api, door: Connection, request: Request) -> Timing | None:
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
    settings: Settings, api: Api, door: Connection, body: dict[str, Any]
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
