"""One row of the user's file: its value, or the reason why it has none.

orjson reads integers beyond 64 bits as floats; rows that may hold one are parsed a second time.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from retort.records import JsonObject

# The part of an overlong row that is kept.
KEPT_BYTES = 64 << 10
# The smallest integers beyond 64 bits have 20 digits, negative ones 19; times have 19, too. Bytes
# are searched for such a run much faster than by a pattern.
AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
LONG_RUNS = (b"0" * 20, b"-" + b"0" * 19)
MANY_DIGITS = re.compile(rb"[:,\[\s](?:-\d{19}|\d{20})")
WORDS = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}
# The bytes of a row, and the reason if they are not a whole row.
Piece = tuple[bytes, str | None]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a source: its place, its bytes, and its value or the reason why it has none.

    `line` counts from 1: the line of the file where the row starts; in formats without lines
    (JSON, Parquet, datasets) the number of the row, and `raw` is its JSON. `raw` holds at most
    64 KiB of a row that is too long. `group` is what a row of logged traffic belongs to: what is
    wrong with such a row is no fault of the file, so that it is left out and counted.
    """

    file: str
    line: int
    raw: bytes
    value: JsonObject | None
    error: str | None
    group: str | None = None


class BrokenFile(Exception):  # noqa: N818 (always caught; the message becomes a row's reason)
    """A file is truncated or corrupt; the message says how."""


def too_long(most: int) -> str:
    """Returns the reason for a row of more than `most` bytes."""
    return f"longer than prepare.max_row_bytes={most}"


def parsed(raw: bytes) -> Any:
    """Returns the value of JSON. Raises ValueError or RecursionError for anything else."""
    value = orjson.loads(raw)
    zeros = raw.translate(AS_ZEROS)
    is_long = any(run in zeros for run in LONG_RUNS) and MANY_DIGITS.search(raw)
    return json.loads(raw) if is_long else value


def dumped(value: Any) -> bytes:
    """Returns a value as JSON, with integers of any size."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False).encode()


def bad(file: str, line: int, raw: bytes, error: str | None) -> SourceRow:
    """Returns a bad row with the beginning of its bytes."""
    return SourceRow(file, line, raw[:KEPT_BYTES], None, error)


def json_row(file: str, line: int, raw: bytes) -> SourceRow:
    """Returns the row in the bytes of a JSON object; a bad row if they are no such object."""
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
    except UnicodeDecodeError as decoding:
        return not_utf8(decoding)
    return f"not JSON: {error}"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Returns the reason for bytes that are not UTF-8."""
    return f"not UTF-8: {error.reason} at byte {error.start + 1} of the row"
