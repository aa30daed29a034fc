"""What an endpoint replies: data or an error, what an error means, and how long to wait after it.

Errors are stored as answers, so the keys and kinds of `EndpointError` are part of every ledger.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypedDict

import orjson

from retort.engines import STATE_OF
from retort.engines._endpoint import Api, Connection
from retort.errors import StageError
from retort.records import JsonObject, Response

# HTTP statuses: the key is refused; the endpoint is busy.
DENIED = (401, 402, 403)
BUSY = (429, 503, 529)
# What reading JSON of an unexpected shape raises.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
# Kinds of errors, besides those with a status, after which another attempt may help.
TRANSIENT = ("timeout", "connection", "not_json", "missing", "expired")
# Codes and phrases in endpoints' errors, and the finish reason of such an answer.
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
LONGEST_BACKOFF_SECONDS = 30.0
# How long a busy endpoint can put off one request.
LONGEST_WAIT_SECONDS = 3600.0


class EndpointError(TypedDict):
    """An error as it is stored; `transient` if another attempt may help."""

    kind: str
    code: str
    message: str
    status: int | None
    transient: bool


@dataclass(frozen=True)
class Reply:
    """The result of one call: data, or an error with the seconds that the endpoint asks to wait.

    `is_relayed`: the error is of whom the endpoint asked, told in a reply of status 200.
    """

    data: Any = b""
    error: EndpointError | None = None
    wait_seconds: float | None = None
    is_relayed: bool = False


def make_error(kind: str, message: str, status: int | None = None, code: str = "") -> EndpointError:
    """Returns an error, its message cut to 500 characters."""
    passes = status is not None and (status >= 500 or status in (408, 429))
    return {
        "kind": kind,
        "code": code,
        "message": message[:500],
        "status": status,
        "transient": passes or kind in TRANSIENT,
    }


def read_error(status: int, body: bytes, connection: Connection) -> EndpointError:
    """Returns the error in a reply, its message found in any of the usual shapes."""
    text, code = body.decode(errors="replace"), ""
    with suppress(ValueError):
        value = orjson.loads(body)
        while isinstance(value, dict) and isinstance(value.get("error"), dict):
            value = value["error"]
        if isinstance(value, dict):
            name = value.get("code")
            code = name if isinstance(name, str) else str(value.get("type") or "")
            text = str(value.get("message") or value.get("error") or value.get("detail") or text)
    message, code = connection.clean(text), connection.clean(code)[:100]
    return make_error(f"http_{status}", message, status, code)


def refusal(status: int, body: bytes, headers: Mapping[str, str], connection: Connection) -> Reply:
    """Returns the reply in an HTTP error. Raises `StageError` if the key is refused."""
    error = read_error(status, body, connection)
    # OpenAI's way to say that a model gives no log-probabilities is the status of a refused key.
    is_denied = status in DENIED and "logprobs" not in error["message"]
    if is_denied or error["code"] == "insufficient_quota":
        raise StageError(
            f"{connection.shown} refused the key in {connection.key_env}: {cause_of(error)}"
        )
    return Reply(error=error, wait_seconds=_retry_after(headers))


def error_in(value: JsonObject, headers: Mapping[str, str], connection: Connection) -> Reply | None:
    """Returns the error in a reply of status 200, as routers send it, or None for an answer.

    Its code is taken for the status. Raises `StageError` if the key is refused.
    """
    error = value.get("error")
    if not error or value.get("choices") or value.get("content"):
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 200
    return replace(refusal(status, orjson.dumps(value), headers, connection), is_relayed=True)


def not_json(text: str, connection: Connection) -> Reply:
    """Returns the reply for a text where JSON was expected."""
    return Reply(error=make_error("not_json", connection.clean(text)))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds an endpoint asks to wait (RFC 9110: a number or a date), if it does."""
    with suppress(ValueError, TypeError, KeyError):
        if "Retry-After-Ms" in headers:
            return float(headers["Retry-After-Ms"]) / 1000
        value = headers["Retry-After"]
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def backoff(num_delays: int) -> float:
    """Returns seconds to wait: doubled each time, and random so that requests do not meet again."""
    longest: float = min(LONGEST_BACKOFF_SECONDS, 0.25 * 2.0 ** min(num_delays, 10))
    return longest * random.uniform(0.5, 1)


def cause_of(error: EndpointError) -> str:
    """Returns an error as one line."""
    return f"{error['kind']}: {error['message']}"


def reason_of(error: EndpointError) -> str | None:
    """Returns the finish reason that an error's code or message means, None for others."""
    text = f"{error.get('code')} {error['message']}".lower()
    return next((reason for phrase, reason in REASON_OF.items() if phrase in text), None)


def read_answer(
    request_id: str, raw: JsonObject, read: Callable[[str, JsonObject], Response]
) -> Response:
    """Returns the response in a raw answer: `read` of its body, or a failed response."""
    reason = "error"
    try:
        if "error" not in raw:
            return read(request_id, raw["body"])
        cause = cause_of(raw["error"])
        if raw["error"]["status"] in (400, 413, 422):
            reason = reason_of(raw["error"]) or reason
    except UNREADABLE as error:
        cause = f"unreadable: {type(error).__name__}: {error}"
    state = STATE_OF.get(reason, "failed")
    return Response(request_id, "", [], reason, 0, 0, state=state, cause=cause)


def wants_other_name(api: Api, error: EndpointError) -> bool:
    """Whether an endpoint refused a field and named the one that it takes instead."""
    if api.rename is None or error["status"] != 400:
        return False
    return all(name in error["message"] for name in api.rename)


def rename_field(api: Api, body: JsonObject) -> JsonObject:
    """Returns a body with the field under its other name."""
    old, new = api.rename or ("", "")
    return {new if name == old else name: value for name, value in body.items()}
