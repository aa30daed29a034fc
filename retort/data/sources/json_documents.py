"""Rows in a JSON document: the elements of a list, or of the one list in an object.

The elements of a list are cut out by their brackets and parsed one by one, so that a bad element
spoils no other. Only an object around the list (`{"data": [...]}`) is read whole.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from retort.data.sources.json_lines import line_rows
from retort.data.sources.source_row import (
    KEPT_BYTES,
    BrokenFile,
    Piece,
    SourceRow,
    bad,
    dumped,
    json_row,
    parsed,
    too_long,
)
from retort.records import JsonObject

# A list under one of these names is part of a row or trace; under any other name it may be the
# rows.
CHAT_NAMES = {
    *("messages", "conversations", "conversation", "history", "system", "tools", "functions"),
    *("prompt", "completion", "chosen", "rejected", "input", "output", "choices", "answers"),
    *("resourceSpans", "scopeSpans", "spans", "observations"),
}
# Up to the next bracket, or to a string that the block does not finish; BETWEEN elements also up
# to the next comma.
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
WITHIN = re.compile(rb'(?:[^"\[\]{}]++|' + STRING + rb")*+", re.DOTALL)
BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|' + STRING + rb")*+", re.DOTALL)
REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
OPENING = (b"[", b"{")
# Nothing, or a backslash whose escaped character is in the next block.
END_OF_BLOCK = (b"", b"\\")


def document_rows(file: str, blocks: Iterator[bytes], most: int) -> Iterator[SourceRow]:
    """Yields the rows of a list, of the one list of objects in an object, or of JSON lines.

    The first bytes decide which of them it is.
    """
    head, broken = _read_until(blocks, lambda head: _is_enough(head, most))
    resumed = _resume(head, broken, blocks)
    text = head.lstrip()
    if text.startswith(b"["):
        for number, (raw, error) in enumerate(elements(resumed, most), 1):
            yield json_row(file, number, raw) if error is None else bad(file, number, raw, error)
        return
    first = _object(text.partition(b"\n")[0])
    if first is not None and _rows_of(first) is None:
        yield from line_rows(file, resumed, most)
    else:
        yield from _whole(file, resumed, most)


def _read_until(
    blocks: Iterator[bytes], is_enough: Callable[[bytes], bool] | None = None
) -> tuple[bytes, BrokenFile | None]:
    """Returns blocks until they are enough, and the error if the file is broken before that."""
    data = io.BytesIO()
    try:
        for block in blocks:
            data.write(block)
            if is_enough and is_enough(data.getvalue()):
                break
    except BrokenFile as error:
        return data.getvalue(), error
    return data.getvalue(), None


def _is_enough(head: bytes, most: int) -> bool:
    """Whether the first bytes of a file hold its first line, or show that it is a list."""
    text = head.lstrip()
    return text.startswith(b"[") or b"\n" in text or len(text) > most


def _resume(head: bytes, broken: BrokenFile | None, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    if broken:
        raise broken
    yield from blocks


def _whole(file: str, blocks: Iterator[bytes], most: int) -> Iterator[SourceRow]:
    """Yields the rows of a document that is one object, else those of its lines."""
    document, broken = _read_until(blocks)
    value = _object(document)
    if value is not None:
        rows = _rows_of(value)
        raws = [document.strip()] if rows is None else (dumped(row) for row in rows)
        for number, raw in enumerate(raws, 1):
            short = len(raw) <= most
            yield json_row(file, number, raw) if short else bad(file, number, raw, too_long(most))
    elif any(_object(line) for line in document.split(b"\n")):
        yield from line_rows(file, _resume(document, broken, iter(())), most)
    elif broken or document.strip():
        error = str(broken) if broken else json_row(file, 1, document.strip()).error
        yield bad(file, 1, document.strip(), error)


def _object(data: bytes) -> JsonObject | None:
    """Returns the JSON object in bytes, or None."""
    try:
        value = parsed(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _rows_of(value: JsonObject) -> list[Any] | None:
    """Returns the one list of objects in an object, which holds its rows; None if it is a row."""
    lists = [
        (name, item)
        for name, item in value.items()
        if isinstance(item, list) and item and all(isinstance(row, dict) for row in item)
    ]
    if len(lists) != 1 or lists[0][0] in CHAT_NAMES:
        return None
    return lists[0][1]


def elements(blocks: Iterable[bytes], most: int) -> Iterator[Piece]:
    """Yields the bytes of each element of a list.

    Of an element longer than `most` bytes the beginning is yielded, with a reason; likewise the
    part of the last element if the file is broken or ends within the list, and any bytes after it.
    """
    data, at, start, depth, in_string, ended, kept, error = b"", 0, 0, 0, False, False, b"", ""
    try:
        for block in blocks:
            data, at, start = data[start:] + block, at - start, 0
            while not ended:
                at = _next(data, at, in_string, depth)
                char = data[at : at + 1]
                if char in END_OF_BLOCK:
                    break
                at += 1
                if char == b'"':
                    in_string = not in_string
                elif char in OPENING:
                    depth += 1
                    start = at if depth == 1 else start
                elif depth > 1 or char != b"}":  # a brace too many is its element's
                    depth -= char != b","
                    ended = depth == 0
                    if depth <= 1 and (char == b"," or ended):
                        raw, start = data[start : at - 1].strip(), at
                        if raw or not ended:
                            yield _piece(raw, kept, most)
                        kept = b""
            if kept or len(data) - start > most:
                kept, start = kept or data[start:][:KEPT_BYTES], len(data) if ended else at
    except BrokenFile as broken:
        error = str(broken)
    rest = (kept or data[start:].strip())[:KEPT_BYTES]
    if error or depth or rest:
        late = "not JSON: it comes after the end of the list"
        yield rest, error or ("not JSON: the file ends within its list" if depth else late)


def _next(data: bytes, at: int, in_string: bool, depth: int) -> int:
    """Returns the place of the next bracket, comma or quote that matters at this depth."""
    pattern = REST_OF_STRING if in_string else WITHIN if depth > 1 else BETWEEN
    skipped = pattern.match(data, at)
    assert skipped
    return skipped.end()


def _piece(raw: bytes, kept: bytes, most: int) -> Piece:
    if kept or len(raw) > most:
        return (kept or raw)[:KEPT_BYTES], too_long(most)
    return raw, None
