"""One logged call of a chat model: what was asked, what was answered, and what is known of it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from retort.data.formats._chat import SKIPPED_PARTS, TEXT_PARTS, unquoted
from retort.data.formats._replies import reply_of, request_of
from retort.records import JsonObject

Turn = JsonObject
# What proxies write in place of a text that they were told not to keep.
REDACTED = ("redacted-by-litellm", "redacted by litellm. 'litellm.turn_off_message_logging=True'")
# LangChain's names of its messages' kinds.
KINDS = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
# The names under which an object holds nothing but the text of a reply.
TEXTS = ("content", "text", "completion", "response", "answer")
# Without one of these, a text in JSON is what the model answered.
WHOLE = {"role", "choices", "generations"}
READ_PARTS = {*TEXT_PARTS, *SKIPPED_PARTS, "tool_use", "tool_result", "tool_call"}
NOT_RECORDED = "a call whose messages were not recorded"
FAILED, EMBEDDINGS = "a call that failed", "an embeddings call"
# Times of logs are in seconds, or in a thousandth, a millionth or a billionth of them.
SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


class LeftOut(Exception):  # noqa: N818 (always caught; the message becomes a row's reason)
    """A record that is no answered call of a chat model; the message says what it is."""


@dataclass(frozen=True)
class Call:
    """A call of a chat model; `seconds` since 1970 says when, `more` holds further metadata.

    Calls of one `conversation` belong together; of a call outside any it is the trace's id.
    """

    turns: list[Any]
    reply: list[Any]
    conversation: str | None = None
    seconds: float | None = None
    model: str | None = None
    service: str | None = None
    request: str | None = None
    tools: Any = None
    more: JsonObject = field(default_factory=dict)

    def value(self) -> JsonObject:
        """Returns the call as a row of `messages`, its reply the last turn."""
        when = None
        if self.seconds is not None:
            when = datetime.fromtimestamp(self.seconds, UTC).isoformat(timespec="milliseconds")
        known = {
            "time": when,
            "model": self.model,
            "conversation": self.conversation,
            "service": self.service,
            "request": self.request,
        }
        metadata = self.more | {name: text for name, text in known.items() if text}
        row: JsonObject = {"messages": [*self.turns, *self.reply], "metadata": metadata}
        return row | {"tools": self.tools} if self.tools else row

    def check(self) -> None:
        """Raises `LeftOut` for a call without a question, or with more than text in it."""
        if not self.turns:
            raise LeftOut(NOT_RECORDED)
        for turn in self.turns:
            content = turn.get("content") if isinstance(turn, dict) else None
            if isinstance(content, str) and content in REDACTED:
                raise LeftOut(NOT_RECORDED)
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(kind, str) and kind not in READ_PARTS:
                    raise LeftOut(f"a call with a part of kind {kind}")


def seconds_of(value: Any) -> float | None:
    """Returns a time in seconds since 1970: a number in whatever unit, or a text as ISO 8601 has
    it, in UTC where it names no zone. None for anything else."""
    if isinstance(value, str):
        if not value.isdigit():
            try:
                when = datetime.fromisoformat(value.replace(" UTC", "Z"))
                return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
            except ValueError:
                return None
        value = int(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e20:
        return None
    scale = next((scale for least, scale in SCALES if value > least), 1)
    return round(value / scale, 6)  # a datetime has microseconds, too


def scalars(values: Any) -> JsonObject:
    """Returns the texts, numbers and truth values of an object, by which rows can be chosen."""
    values = unquoted(values)
    if not isinstance(values, dict):
        return {}
    return {k: v for k, v in values.items() if isinstance(v, str | int | float) and v != ""}


def asked(value: Any) -> tuple[list[Any], Any]:
    """Returns the turns of a logged request, and the tools that it names.

    It is a text, a list of turns, one turn, or the body of a request; each may be written as JSON.
    Raises `LeftOut` for anything else.
    """
    value = unquoted(value)
    if value in (None, "", [], {}):
        raise LeftOut(NOT_RECORDED)
    if isinstance(value, str):
        return [{"role": "user", "content": value}], None
    if isinstance(value, list):
        inner = value[0] if len(value) == 1 and isinstance(value[0], list) else value
        return _of_langchain(request_of({"messages": inner})[0]), None
    if isinstance(value, dict) and ("role" in value or value.get("type") in KINDS):
        return _of_langchain([value]), None
    if isinstance(value, dict) and isinstance(value.get("kwargs"), dict):
        value = value["kwargs"]
    try:
        turns, system = request_of(value)
    except (ValueError, AttributeError):
        raise LeftOut("a call whose input is no chat") from None
    if turns and isinstance(turns[0], list):
        turns = turns[0]
    own = [{"role": "system", "content": system}] if system else []
    return [*own, *_of_langchain(turns)], value.get("tools") or value.get("functions")


def replied(value: Any) -> list[Any]:
    """Returns the turns of a logged reply: a text, a turn, a completion, or nothing.

    An object that is none of these is an answer in JSON, and its text is that.
    """
    found = unquoted(value)
    if found in (None, "", [], {}):
        return []
    if isinstance(value, str) and isinstance(found, dict) and WHOLE.isdisjoint(found):
        return [{"role": "assistant", "content": value}]
    if isinstance(found, dict) and isinstance(found.get("generations"), list):  # LangChain's
        found = found["generations"]
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list | dict):
        found = found[0]
    if isinstance(found, dict) and isinstance(found.get("message"), dict):
        found = found["message"]
    turns = _reply_in(found)
    if turns is None:
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        return [{"role": "assistant", "content": text}]
    return turns


def _reply_in(found: Any) -> list[Any] | None:
    """Returns the turns that a value holds, None where it holds none."""
    if isinstance(found, list):
        are_turns = all(isinstance(turn, dict) for turn in found) and "role" in found[-1]
        return _of_langchain(found) if are_turns else None
    if not isinstance(found, dict):
        return None
    if "role" in found or found.get("type") in KINDS:
        return _of_langchain([found])
    try:
        return [turn for turn in reply_of(found) if turn]
    except ValueError:
        only = next(iter(found)) if len(found) == 1 else "content"
        text = found.get(only) if only in TEXTS else None
        return [{"role": "assistant", "content": text}] if isinstance(text, str) else None


def _of_langchain(turns: list[Any]) -> list[Any]:
    """Returns turns in which those that name only their kind, as LangChain's do, have a role."""
    return [
        {"role": KINDS[turn["type"]], "content": turn.get("content"), **_calls(turn)}
        if isinstance(turn, dict) and "role" not in turn and turn.get("type") in KINDS
        else turn
        for turn in turns
    ]


def _calls(turn: Turn) -> Turn:
    calls = [
        {
            "id": call.get("id"),
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("args", {})},
        }
        for call in turn.get("tool_calls") or ()
        if isinstance(call, dict) and "name" in call
    ]
    known = {"tool_call_id": turn["tool_call_id"]} if turn.get("tool_call_id") else {}
    return {**known, **({"tool_calls": calls} if calls else {})}
