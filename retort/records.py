"""The shapes data takes between stages. Each is one JSON line; ids join them, never positions."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# role and content as text; an assistant's turn may carry tool_calls, a tool's turn tool_call_id
Message = dict[str, Any]
Record = TypeVar("Record")

State = Literal["accepted", "truncated", "refused", "filtered", "too_long", "failed"]
STATES: tuple[State, ...] = ("accepted", "truncated", "refused", "filtered", "too_long", "failed")


@dataclass(frozen=True)
class Example:
    """One prepared thing to ask: the chat up to the answer, and what is known of the answer.

    `expected` is the right answer in normal form, `reference` the row's own answer as it stood.
    `options` are the answers there are, where they are a closed set: what is written (a label, a
    letter) to what it stands for. `answers` are all right answers in normal form, the expected one
    first, where there are several.
    """

    id: str
    split: Split
    messages: list[Message]
    expected: str | None = None
    reference: str | None = None
    tools: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] | None = None
    answers: list[str] | None = None


@dataclass(frozen=True)
class Row:
    """A row of the user's in the one form that task types read, whatever format it came in.

    `messages` is the whole chat where the row is one, its own replies included; otherwise `fields`
    holds its columns under the names of `retort.data.formats`.
    """

    messages: list[Message] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    tools: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What a task type makes of a row: the chat that asks it, and what is known of the answer."""

    messages: list[Message]
    expected: str | None = None
    reference: str | None = None
    options: dict[str, str] | None = None
    answers: list[str] | None = None


@dataclass(frozen=True)
class Quarantined:
    """A row that is bad: where it stood, why, and the row itself.

    `raw` is the row as it stood; where that is no UTF-8, its bytes in base64, as `encoding` says.
    """

    file: str
    line: int
    reason: str
    raw: str
    encoding: Literal["utf-8", "base64"] = "utf-8"


@dataclass(frozen=True)
class Removed:
    """A good row that is not asked, and why; `other` is the row it is a copy or a leak of.

    `similarity` is the share of word sequences in common, from 0 to 1.
    """

    file: str
    line: int
    reason: str
    example: dict[str, Any]
    other: str | None = None
    other_text: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Response:
    """One teacher answer, as read from what the engine gave.

    `token_ids` are exactly what the engine sampled, empty where it tells no ids; `num_tokens` and
    `num_prompt_tokens` are what it counted. An example may have several responses: `sample` and
    `turn` tell them apart, and `messages` is the chat that was answered where that is not the
    example's own. `cause` says why a response is not accepted.
    """

    id: str
    text: str
    token_ids: list[int]
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int
    prompt_sha256: str = ""
    state: State = "accepted"
    cause: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    example_id: str = ""
    sample: int = 0
    turn: int = 0
    messages: list[Message] | None = None


@dataclass(frozen=True)
class Decision:
    """What curation made of one response: kept, or rejected by the first filter that says why.

    `target_text` is what the student learns where that is not the response's text, `rationale` what
    was taken from it, `weight` how often a pass over the data shows it, `score` the judge's.
    """

    id: str
    kept: bool
    filter: str | None = None
    reason: str | None = None
    target_text: str | None = None
    rationale: str | None = None
    weight: float = 1.0
    score: float | None = None


def chat_text(
    turns: Iterable[Message], *, with_roles: bool = False, with_calls: bool = False
) -> str:
    """Returns what the turns of a chat say, a line after the other.

    Roles are written before their turns where wanted, a blank line between these; the tools that a
    turn calls follow it as JSON.
    """
    texts = [(str(turn.get("role")), _turn_text(turn, with_calls)) for turn in turns]
    if with_roles:
        return "\n\n".join(f"{role}: {text}" for role, text in texts)
    return "\n".join(text for _, text in texts)


def question_text(messages: list[Message]) -> str:
    """Returns the question that a chat asks: the user's words, or all turns with their roles where
    there are several. The system prompt is left out."""
    turns = [message for message in messages if message.get("role") != "system"] or messages
    return chat_text(turns, with_roles=len(turns) > 1, with_calls=True)


def _turn_text(turn: Message, with_calls: bool) -> str:
    text, calls = turn.get("content") or "", turn.get("tool_calls")
    text = text if isinstance(text, str) else orjson.dumps(text).decode()
    return f"{text}\n{orjson.dumps(calls).decode()}".strip() if calls and with_calls else text


def write_lines(records: list[Any]) -> bytes:
    """Returns records as JSON lines."""
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def read_lines(shape: type[Record], data: bytes) -> list[Record]:
    """Returns the records of a JSON-lines file that `write_lines` wrote."""
    return [shape(**orjson.loads(line)) for line in data.split(b"\n") if line]


def content_id(value: Any) -> str:
    """Returns a stable 16-character id of a JSON value; never Python's salted hash()."""
    return sha256_of(value)[:16]


def sha256_of(value: Any) -> str:
    """Returns the sha256 of a JSON value, the same for the same content in any key order."""
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()


def ids_sha256(token_ids: list[int]) -> str:
    """Returns the first 16 hex digits of the sha256 of token ids."""
    return hashlib.sha256(orjson.dumps(token_ids)).hexdigest()[:16]
