"""Rows of CSV and TSV, read by Python's own reader, which follows what Excel writes.

A quote that is never closed would swallow all that follows it: there the line where it stands is
the bad row, and reading goes on with the next line.
"""

import csv
from collections import deque
from collections.abc import Iterator
from itertools import chain

from retort.data.sources.json_lines import lines
from retort.data.sources.source_row import Piece, SourceRow, bad, not_utf8
from retort.errors import SpecError

DELIMITERS = ",;\t|"
Numbered = tuple[int, Piece]
# What stands for a record: its first line's number, its bytes, and its cells or why it is bad.
CsvRecord = tuple[int, bytes, list[str] | str]
# The limit of Python's reader for a cell, common to the process; `max_row_bytes` is ours.
csv.field_size_limit(1 << 31)


class Unclosed(Exception):  # noqa: N818 (caught where it is raised)
    """The lines that were taken do not make a record; the message says why."""


def table_rows(file: str, blocks: Iterator[bytes], most: int, tabs: bool) -> Iterator[SourceRow]:
    """Yields the rows of a table under the names in its heading, every cell as text.

    `line` is where a row starts. Raises `SpecError` for a heading that cannot be used.
    """
    numbered = enumerate(lines(blocks, most), 1)
    first = next((item for item in numbered if item[1][0].strip() or item[1][1]), None)
    if first is None:
        return
    delimiter = "\t" if tabs else _delimiter(first[1][0])
    found = records(deque([first]), numbered, delimiter, most)
    line, raw, cells = next(found)
    more = next(found, None)
    if isinstance(cells, str) and more is None:  # the file is cut off within its heading
        yield bad(file, line, raw, cells)
        return
    names = _names(line, cells)
    for line, raw, cells in chain([more] if more else [], found):
        if isinstance(cells, str):
            yield bad(file, line, raw, cells)
        elif len(cells) != len(names):
            error = f"{len(cells)} cells: the heading has {len(names)}"
            yield SourceRow(file, line, raw, None, error)
        else:
            value = dict(zip(names, cells, strict=True))
            value.pop("", None)
            yield SourceRow(file, line, raw, value, None)


def _delimiter(heading: bytes) -> str:
    """Returns the delimiter that cuts a heading into the most cells."""
    text = heading.decode(errors="replace")
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([text], delimiter=mark))))


def _names(line: int, cells: list[str] | str) -> list[str]:
    """Returns the names of the columns; a column without one has the name "", and is left out."""
    if isinstance(cells, str):
        raise SpecError(f"the heading in line {line} cannot be read ({cells}); save it as UTF-8")
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise SpecError(f"the heading in line {line} has {', '.join(twice)} twice; rename one")
    return names


def records(
    waiting: deque[Numbered], numbered: Iterator[Numbered], delimiter: str, most: int
) -> Iterator[CsvRecord]:
    """Yields the records in lines; first come those that wait. Blank lines are none."""
    while True:
        taken: list[Numbered] = []
        try:
            for cells in csv.reader(_feed(waiting, numbered, taken, most), delimiter=delimiter):
                raw = b"\n".join(line for _, (line, _) in taken).removesuffix(b"\r")
                if raw.strip():
                    yield taken[0][0], raw, _checked(raw, cells)
                taken.clear()
            return
        except (Unclosed, csv.Error) as error:
            number, (line, _) = taken[0]
            yield number, line.removesuffix(b"\r"), str(error)
            waiting.extendleft(reversed(taken[1:]))


def _checked(raw: bytes, cells: list[str]) -> list[str] | str:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return not_utf8(error)
    return cells


def _feed(
    waiting: deque[Numbered], numbered: Iterator[Numbered], taken: list[Numbered], most: int
) -> Iterator[str]:
    """Yields the lines that the reader asks for, and notes them in `taken` until it is emptied.

    Raises `Unclosed` where a record goes on after the last line, or for too long.
    """
    num_bytes = 0
    while item := waiting.popleft() if waiting else next(numbered, None):
        line, error = item[1]
        num_bytes = num_bytes + len(line) if taken else 0
        taken.append(item)
        if error and len(taken) == 1:
            raise Unclosed(error)
        if error or num_bytes > most:
            raise Unclosed(f"a quote is not closed within prepare.max_row_bytes={most}")
        yield line.decode(errors="surrogateescape") + "\n"
    if taken:
        raise Unclosed("a quote is opened and never closed")
