"""The records that stages exchange, each one JSON line, joined by id and never by position."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# An object of JSON, as it is read or about to be written: what it holds is known to who reads it.
JsonObject = dict[str, Any]
# {role, content}, both texts; an assistant's turn may have tool_calls, a tool's turn tool_call_id
Message = JsonObject
Record = TypeVar("Record")

State = Literal["accepted", "truncated", "refused", "filtered", "too_long", "failed"]
STATES: tuple[State, ...] = ("accepted", "truncated", "refused", "filtered", "too_long", "failed")


@dataclass(frozen=True)
class Example:
    """One prompt, prepared: the chat up to the answer, and what is known of the answer.

    `expected` is the right answer in normal form, `reference` the row's own answer unchanged.
    `options` is the closed set of answers, if there is one: from what is written (a label, a
    letter) to its meaning. `answers` are all right answers in normal form, the expected one first,
    if there are several.
    """

    id: str
    split: Split
    messages: list[Message]
    expected: str | None = None
    reference: str | None = None
    tools: list[JsonObject] | None = None
    metadata: JsonObject = field(default_factory=dict)
    options: dict[str, str] | None = None
    answers: list[str] | None = None


@dataclass(frozen=True)
class Row:
    """A row of the user's data, in the one form that task types read.

    `messages` is the whole chat, replies included, if the row is a chat; otherwise `fields` holds
    its columns under the names of `retort.data.formats`.
    """

    messages: list[Message] | None = None
    fields: JsonObject = field(default_factory=dict)
    id: str | None = None
    tools: list[JsonObject] | None = None
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What a task type makes of a row: the chat to send, and what is known of the answer.

    `asked` are the parts of the chat that are the row's own, by which rows are compared; None if
    the whole chat is.
    """

    messages: list[Message]
    expected: str | None = None
    reference: str | None = None
    options: dict[str, str] | None = None
    answers: list[str] | None = None
    asked: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Quarantined:
    """A bad row: its place, the reason, and the row itself.

    `raw` is the row unchanged; its bytes in base64 if they are not UTF-8 (see `encoding`).
    """

    file: str
    line: int
    reason: str
    raw: str
    encoding: Literal["utf-8", "base64"] = "utf-8"


@dataclass(frozen=True)
class Removed:
    """A good row that was removed, and why; `other` is the row it is a copy or a leak of.

    `similarity` is the share of word sequences in common, from 0 to 1.
    """

    file: str
    line: int
    reason: str
    example: JsonObject
    other: str | None = None
    other_text: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Response:
    """One teacher answer, as read from the engine's result.

    `token_ids` are exactly the sampled ids, empty if the engine does not give them; `num_tokens`
    and `num_prompt_tokens` are the engine's counts. An example may have several responses, told
    apart by `sample` and `turn`; `messages` is the chat that was answered if it is not the
    example's own. `cause` says why a response is not accepted. `teacher` is the name of the one who
    wrote it, where there are several.
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
    tool_calls: list[JsonObject] | None = None
    example_id: str = ""
    sample: int = 0
    turn: int = 0
    messages: list[Message] | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Decision:
    """Curation's decision on one response: kept, or rejected by a filter for a reason.

    `target_text` is the text that the student learns if it is not the response's own, `rationale`
    the reasoning that was removed from it, `weight` how often an epoch shows it, `score` the
    judge's score.
    """

    id: str
    kept: bool
    filter: str | None = None
    reason: str | None = None
    target_text: str | None = None
    rationale: str | None = None
    weight: float = 1.0
    score: float | None = None


EXPANDED = "expanded"


def is_expanded(example: Example) -> bool:
    """Whether a model wrote the example's prompt: then its metadata say how, and from which."""
    return example.metadata.get("origin") == EXPANDED


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
    """Returns a 16-character id of a JSON value, the same in every process."""
    return sha256_of(value)[:16]


def sha256_of(value: Any) -> str:
    """Returns the sha256 of a JSON value, the same for the same content in any key order."""
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()


def ids_sha256(token_ids: list[int]) -> str:
    """Returns the first 16 hex digits of the sha256 of token ids."""
    return hashlib.sha256(orjson.dumps(token_ids)).hexdigest()[:16]
