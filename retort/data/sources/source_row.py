"""One row as it stands in the user's file, parsed or with the reason why it cannot be.

orjson reads integers beyond 64 bits as floats; rows that may hold one are read a second time.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

# What is kept of a row that is too long to be read.
KEPT_BYTES = 64 << 10
# The smallest integers beyond 64 bits have 19 digits.
MANY_DIGITS = re.compile(rb"\d{19}")
WORDS = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}
# A row's bytes and, where they are known to be no whole row, why.
Piece = tuple[bytes, str | None]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a source: where it stands, its bytes, and its value or why there is none.

    `line` counts from 1: the line of the file where the row starts or, where rows are no lines
    (JSON, Parquet, datasets), the row. `raw` is then the row's JSON, and at most 64 KiB of a row
    that is too long.
    """

    file: str
    line: int
    raw: bytes
    value: dict[str, Any] | None
    error: str | None


class Torn(Exception):  # noqa: N818 (it is caught where it matters, and is no error of ours)
    """The bytes of a file end before their end; the message says how."""


def too_long(most: int) -> str:
    """Returns why a row of more than `most` bytes is bad."""
    return f"longer than prepare.max_row_bytes={most}"


def parsed(raw: bytes) -> Any:
    """Returns the value of JSON. Raises ValueError or RecursionError where it is none."""
    value = orjson.loads(raw)
    return json.loads(raw) if MANY_DIGITS.search(raw) else value


def dumped(value: Any) -> bytes:
    """Returns a value as JSON, with integers of any size."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False).encode()


def bad(file: str, line: int, raw: bytes, error: str | None) -> SourceRow:
    """Returns a row that is none, with the beginning of its bytes."""
    return SourceRow(file, line, raw[:KEPT_BYTES], None, error)


def json_row(file: str, line: int, raw: bytes) -> SourceRow:
    """Returns the row in the bytes of a JSON object, a bad one where they are none."""
    try:
        value = parsed(raw)
    except (ValueError, RecursionError) as error:
        return SourceRow(file, line, raw, None, _reason(raw, error))
    if type(value) is not dict:
        kind = WORDS.get(type(value), "null")
        return SourceRow(file, line, raw, None, f"a row must be a JSON object, this is a {kind}")
    return SourceRow(file, line, raw, value, None)


def _reason(raw: bytes, error: Exception) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as found:
        return not_utf8(found)
    return f"not JSON: {error}"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Returns why bytes are no text."""
    return f"not UTF-8: {error.reason} at byte {error.start + 1} of the row"
