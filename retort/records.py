"""The shapes data takes between stages. Each is one JSON line; ids join them, never positions."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Message = dict[str, str]
Record = TypeVar("Record")


@dataclass(frozen=True)
class Example:
    """One prepared thing to ask: the chat up to the answer, and what is known of the answer."""

    id: str
    split: Split
    messages: list[Message]
    expected: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quarantined:
    """A row that did not become an example: where it stood, why, and the row itself.

    A second copy of a row is set aside too, but it is not bad.
    """

    file: str
    line: int
    reason: str
    raw: str
    bad: bool = True


@dataclass(frozen=True)
class Response:
    """One teacher answer, raw. `token_ids` are exactly what the engine sampled."""

    id: str
    text: str
    token_ids: list[int]
    finish_reason: str
    num_prompt_tokens: int
    prompt_sha256: str


@dataclass(frozen=True)
class Decision:
    """What curation made of one response: kept, or rejected by the first filter that says why."""

    id: str
    kept: bool
    filter: str | None = None
    reason: str | None = None


def to_json(record: Any) -> str:
    """Returns a record as one compact JSON line, without the line end."""
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))


def write_lines(records: list[Any]) -> bytes:
    """Returns records as JSON lines."""
    return "".join(to_json(record) + "\n" for record in records).encode()


def read_lines(shape: type[Record], data: bytes) -> list[Record]:
    """Returns the records of a JSON-lines file that `write_lines` wrote."""
    return [shape(**json.loads(line)) for line in data.splitlines() if line]


def content_id(value: Any) -> str:
    """Returns a stable 16-character id of a JSON value; never Python's salted hash()."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ids_sha256(token_ids: list[int]) -> str:
    """Returns the first 16 hex digits of the sha256 of token ids."""
    return hashlib.sha256(json.dumps(token_ids).encode()).hexdigest()[:16]
