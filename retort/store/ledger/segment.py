"""A segment: a file of answers that is written once, one JSON line each.

The first line says how the rest can be checked: `crc32` holds a checksum for each answer's line,
`signals` the size and sha256 of the file with their signals, or null. Segments of older ledgers
have no such line; then only what is no JSON or cut short is noticed.
"""

import json
import zlib
from dataclasses import dataclass, replace

import orjson

from retort.errors import DataError, StoreError
from retort.records import JsonObject
from retort.store import Folder
from retort.store.files import damaged
from retort.store.folder import ListedFile, listed_file
from retort.store.signals import SignalFile, repack
from retort.store.urls import is_missing

# The key under which a raw answer that orjson cannot write is stored, as JSON text.
AS_TEXT = "retort.json"
TOO_DEEP = "the answer is nested too deeply to be stored"


@dataclass(frozen=True)
class StoredAnswer:
    """One answer as it is stored. `limits` are the (max_tokens, max_model_len) of its request.

    `by` names the artifact that paid for it; `at` is the time in seconds since 1970, which orders
    only what two writers added at once. `run` names the run that asked, and `attempt` counts the
    answers to the same request, from 1; in older ledgers they are "" and 0. `defect` says why the
    answer cannot be used.
    """

    key: str
    limits: tuple[int, int]
    by: str
    at: float
    raw: JsonObject
    run: str = ""
    attempt: int = 0
    defect: str = ""


@dataclass(frozen=True)
class Segment:
    """The content of a segment: the line of each answer, and the facts of its signals' file."""

    lines: list[bytes]
    signals: ListedFile | None
    has_checksums: bool = True


def write_segment(answers: list[StoredAnswer], signals: ListedFile | None) -> bytes:
    """Returns the bytes of a segment."""
    return _segment([_line(answer) for answer in answers], signals)


def _segment(lines: list[bytes], signals: ListedFile | None) -> bytes:
    header = {"crc32": [zlib.crc32(line) for line in lines], "signals": signals}
    return b"".join(line + b"\n" for line in (orjson.dumps(header), *lines))


def read_segment(path: str, data: bytes) -> Segment:
    """Returns the content of a segment. Raises `DamagedError` that names the file at `path`."""
    lines = data.split(b"\n")
    if not data:
        raise damaged(path, "it is empty")
    if lines.pop():
        raise damaged(path, f"its last line, of {len(lines) + 1:,}, is cut short")
    header = _header(lines[0])
    if header is None:
        for number, line in enumerate(lines, start=1):
            if not _is_answer(line):
                raise damaged(path, f"line {number:,} of {len(lines):,} is no answer")
        return Segment(lines, None, has_checksums=False)
    rows, checksums = lines[1:], header["crc32"]
    num_whole = sum(zlib.crc32(row) == crc for row, crc in zip(rows, checksums, strict=False))
    if num_whole < len(checksums):
        num_lost = len(checksums) - num_whole
        raise damaged(path, f"{num_lost:,} of its {len(checksums):,} answers are not as written")
    if len(rows) > len(checksums):
        raise damaged(path, "it has more lines than were written")
    return Segment(rows, header.get("signals"))


def segment_names(folder: Folder) -> list[str]:
    """Returns the names of all committed segments of a ledger, sorted."""
    names = folder.files()
    return [name for name in names if name.startswith("segments/") and name.endswith(".jsonl")]


def signals_of(name: str) -> str:
    """Returns the name of the file with the signals of a segment."""
    return name.removesuffix(".jsonl") + ".safetensors"


def open_segment(folder: Folder, name: str) -> tuple[list[bytes], SignalFile | None]:
    """Returns the lines and the signals of a segment. Raises `DamagedError` for either file."""
    segment = read_segment(f"{folder.uri}/{name}", folder.read(name))
    beside = signals_of(name)
    if not segment.signals and (segment.has_checksums or not folder.has(beside)):
        return segment.lines, None
    path = f"{folder.uri}/{beside}"
    try:
        data = folder.read(beside)
        if segment.signals and listed_file(data) != segment.signals:
            raise damaged(path, "the signals of its answers are not as written")
        return segment.lines, SignalFile.open(data)
    except DataError as error:
        raise damaged(path, str(error)) from None
    except StoreError as error:
        if not is_missing(error):
            raise
        raise damaged(path, "the signals of its answers are missing") from None


def repair_segment(folder: Folder, name: str) -> tuple[int, int]:
    """Writes the readable answers of a damaged segment into a new one, and moves the damaged files
    to `damaged/`; returns how many answers were kept and lost.

    Where their signals cannot be read, no answer of the segment is kept.
    """
    rows, num_written, listed = _readable(folder.read(name))
    signals = _signals_of_rows(folder, signals_of(name), listed, list(rows))
    if rows and signals is not None:
        target = name.removesuffix(".jsonl") + "-repaired.jsonl"
        if signals:
            folder.write(signals_of(target), signals)
        facts = listed_file(signals) if signals else None
        folder.write(target, _segment(list(rows.values()), facts))
    num_kept = 0 if signals is None else len(rows)
    for moved in (signals_of(name), name):
        if folder.has(moved):
            folder.write(moved.replace("segments/", "damaged/", 1), folder.read(moved))
            folder.remove(moved)
    return num_kept, max(num_written, len(rows)) - num_kept


def _signals_of_rows(
    folder: Folder, name: str, listed: ListedFile | None, rows: list[int]
) -> bytes | None:
    """Returns the signals of some rows of a file, under their new numbers; None where they cannot
    be read."""
    if not folder.has(name):
        return b"" if listed is None else None
    data = folder.read(name)
    if listed not in (None, listed_file(data)):
        return None
    try:
        stored = SignalFile.open(data)
    except DataError:
        return None
    new_numbers = {str(row): str(number) for number, row in enumerate(rows)}
    kept = [(new_numbers[row], stored.raw(row)) for row in stored.ids if row in new_numbers]
    return repack(kept, stored.k, stored.vocabulary) if kept else b""


def _readable(data: bytes) -> tuple[dict[int, bytes], int, ListedFile | None]:
    """Returns the lines of a damaged segment that are as they were written, by row; how many there
    were, as far as that is known; and the facts of the signals' file."""
    lines = data.split(b"\n")
    header = _header(lines[0])
    if header is None:
        rows = {row: line for row, line in enumerate(lines) if _is_answer(line)}
        return rows, sum(map(bool, lines)), None
    places = {crc: row for row, crc in enumerate(header["crc32"])}
    found = {zlib.crc32(line): line for line in lines[1:]}
    rows = {places[crc]: line for crc, line in found.items() if crc in places}
    return dict(sorted(rows.items())), len(header["crc32"]), header.get("signals")


def answer_of(line: bytes) -> StoredAnswer:
    """Returns the answer of a line."""
    entry = StoredAnswer(**orjson.loads(line))
    if isinstance(entry.raw, dict) and isinstance(text := entry.raw.get(AS_TEXT), str):
        try:
            return replace(entry, raw=json.loads(text))
        except RecursionError:
            return replace(entry, defect=TOO_DEEP)
    return entry


def _line(answer: StoredAnswer) -> bytes:
    """Returns the line of an answer. What orjson refuses in an answer (integers of more than 64
    bits, halves of surrogate pairs, deep nesting) is stored as text."""
    try:
        return orjson.dumps(answer)
    except TypeError:
        pass
    try:
        text = json.dumps(answer.raw, default=repr)
    except RecursionError:
        return orjson.dumps(replace(answer, raw={}, defect=TOO_DEEP))
    return orjson.dumps(replace(answer, raw={AS_TEXT: text}))


def _header(line: bytes) -> JsonObject | None:
    try:
        header = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return header if isinstance(header, dict) and isinstance(header.get("crc32"), list) else None


def _is_answer(line: bytes) -> bool:
    try:
        StoredAnswer(**orjson.loads(line))
    except (orjson.JSONDecodeError, TypeError):
        return False
    return True
