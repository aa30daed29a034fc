"""Rows of CSV and TSV, whichever of the common ways of quoting a table uses.

A record is first read as RFC 4180 defines it, with quoted cells that may span lines. If that fails
or gives a wrong number of cells, the record is read again as other programs write tables: with
backslashes before quotes, with spaces before quotes, or without any quoting. If none of them gives
the number of cells of the heading, the first line of the record is one bad row, and reading goes on
with the line after it: a stray quote never swallows the lines that follow.
"""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from retort.data.sources.json_lines import lines
from retort.data.sources.source_row import Piece, SourceRow, bad, not_utf8
from retort.errors import SpecError

DELIMITERS = ",;\t|^~\x01\x1f"
# Excel's own first line, which names the delimiter.
SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
ESCAPED = re.compile(r'\\([\\"])')
QUOTED_AFTER_SPACE = re.compile(r' +"[^"]*" *')
# So many lines of a quoted cell that are whole records by themselves are records: of a table with
# tabs, which texts hardly ever hold, and of others.
SWALLOWED_BY_TABS, SWALLOWED = 2, 8
Numbered = tuple[int, Piece]
Cells = list[str]
# The limit of Python's reader for a cell, common to the process; `max_row_bytes` is ours.
csv.field_size_limit(1 << 31)


class Unclosed(Exception):  # noqa: N818 (always caught; the message becomes a row's reason)
    """The lines do not make a record; the message says why."""


class Lines:
    """The lines of a table with their numbers; lines that were taken can be put back."""

    def __init__(self, blocks: Iterator[bytes], most: int) -> None:
        self._numbered = enumerate(lines(blocks, most, universal=True), 1)
        self._back: deque[Numbered] = deque()

    def take(self) -> Numbered | None:
        """Returns the next line, or None."""
        return self._back.popleft() if self._back else next(self._numbered, None)

    def put_back(self, taken: list[Numbered]) -> None:
        """Makes lines the next ones again, in their order."""
        self._back.extendleft(reversed(taken))


def table_rows(file: str, blocks: Iterator[bytes], most: int, tabs: bool) -> Iterator[SourceRow]:
    """Yields the rows of a table under the names in its heading, every cell as text.

    `line` is where a row starts. Raises `SpecError` for a heading that cannot be used.
    """
    source = Lines(blocks, most)
    first = source.take()
    while first and not (first[1][0].strip() or first[1][1]):
        first = source.take()
    if first is None:
        return
    delimiter = ""
    if separator := SEPARATOR_LINE.fullmatch(first[1][0]):
        delimiter = separator[1].decode(errors="replace")
        first = source.take()
    if first is None:
        return
    source.put_back([first])
    table = Table(source, delimiter or _delimiter(first[1][0], tabs), most)
    number, raw, cells = table.next_record() or (1, b"", "no heading")
    following = table.next_record()
    if isinstance(cells, str) and following is None:  # the file is cut off within its heading
        yield bad(file, number, raw, cells)
        return
    names = _names(number, cells)
    while following:
        number, raw, cells = following
        if isinstance(cells, str):
            yield bad(file, number, raw, cells)
        else:
            value = dict(zip(names, cells, strict=True))
            value.pop("", None)
            yield SourceRow(file, number, raw, value, None)
        following = table.next_record()


def _delimiter(heading: bytes, tabs: bool) -> str:
    """Returns the delimiter that splits a heading into the most cells; a tab if it must and can."""
    text = heading.decode(errors="replace").rstrip("\r\n")
    if tabs and "\t" in text:
        return "\t"
    counts = {mark: len(next(csv.reader([text], delimiter=mark), [])) for mark in DELIMITERS}
    return max(counts, key=lambda mark: counts[mark])


def _names(line: int, cells: Cells | str) -> list[str]:
    """Returns the names of the columns; a column without one has the name "", and is left out."""
    if isinstance(cells, str):
        raise SpecError(f"the heading in line {line} cannot be read ({cells}); save it as UTF-8")
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise SpecError(f"the heading in line {line} has {', '.join(twice)} twice; rename one")
    return names


class Table:
    """Reads the records of a table, each with its first line's number, bytes, and cells or reason.

    The first record is the heading; it sets the number of cells of all others.
    """

    def __init__(self, source: Lines, delimiter: str, most: int) -> None:
        self._lines, self._delimiter, self._most = source, delimiter, most
        self._mark = delimiter.encode()
        self._num_cells = 0
        self._taken: list[Numbered] = []
        self._reader = self._open()

    def _open(self) -> Iterator[Cells]:
        return csv.reader(self._feed(self._taken), delimiter=self._delimiter, strict=True)

    def next_record(self) -> tuple[int, bytes, Cells | str] | None:
        """Returns the next record that is no blank line, or None at the end of the table."""
        while True:
            self._taken.clear()
            try:
                cells = next(self._reader, None)
                reason = ""
            except (Unclosed, csv.Error) as error:
                cells, reason = [], str(error)
            if cells is None:
                return None
            if not reason and not _raw(self._taken).strip():
                continue
            if reason or (self._num_cells and len(cells) != self._num_cells):
                reason = reason or f"{len(cells)} cells: the heading has {self._num_cells}"
                return self._read_again(reason)
            self._num_cells = self._num_cells or len(cells)
            if any(map(QUOTED_AFTER_SPACE.fullmatch, cells)) and len(self._taken) == 1:
                return self._read_again("")
            return _record(self._taken, cells)

    def _read_again(self, reason: str) -> tuple[int, bytes, Cells | str]:
        """Returns the record of the first line, read in the other ways of writing tables."""
        first, *others = self._taken
        self._lines.put_back(others)
        number, (line, error) = first
        found = None if error else self._other_ways(first)
        self._taken = []
        self._reader = self._open()
        if found:
            return _record(*found)
        return number, line.rstrip(b"\r\n"), reason

    def _other_ways(self, first: Numbered) -> tuple[list[Numbered], Cells] | None:
        text = _text(first)
        ways: list[tuple[bool, Callable[[str], str], dict[str, Any]]] = [
            ('\\"' in text, _without_backslashes, {}),
            (" " in text, str, {"skipinitialspace": True}),
            (self._is_literal(text), str, {"quoting": csv.QUOTE_NONE}),
            (text.count('"') % 2 == 0, str, {"strict": False}),
            ("'" in text, str, {"quotechar": "'"}),
        ]
        for applies, prepared, form in ways if self._num_cells else [ways[0], ways[3]]:
            if applies and (found := self._attempt(first, prepared, form)):
                return found
        return None

    def _is_literal(self, text: str) -> bool:
        """Whether quotes in a line may be plain characters: in a comma's table only whole pairs."""
        return self._delimiter == "\t" or text.count('"') % 2 == 0

    def _attempt(
        self, first: Numbered, prepared: Callable[[str], str], form: dict[str, Any]
    ) -> tuple[list[Numbered], Cells] | None:
        """Returns the lines and cells of a record read in another way; None if it does not fit."""
        taken: list[Numbered] = []
        self._lines.put_back([first])
        texts = map(prepared, self._feed(taken))
        form = {"delimiter": self._delimiter, "strict": True, **form}
        try:
            cells = next(csv.reader(texts, **form), [])
        except (Unclosed, csv.Error):
            cells = []
        if cells and len(cells) == (self._num_cells or len(cells)):
            self._num_cells = len(cells)
            return taken, cells
        self._lines.put_back(taken[1:])
        return None

    def _feed(self, taken: list[Numbered]) -> Iterator[str]:
        """Yields the lines that the reader asks for, and adds them to `taken`.

        Raises `Unclosed` if a record goes on for too long, or over lines that are records.
        """
        num_bytes = num_whole = 0
        while item := self._lines.take():
            line, error = item[1]
            taken.append(item)
            if len(taken) == 1:
                num_bytes = num_whole = 0
                if error:
                    raise Unclosed(error)
            else:
                if len(taken) == 2:
                    num_whole = self._is_whole(taken[0])
                num_bytes += len(line)
                num_whole += self._is_whole(item)
                if error or num_bytes > self._most:
                    most = f"prepare.max_row_bytes={self._most}"
                    raise Unclosed(f"a quote is not closed within {most}")
                if self._swallows(num_whole, len(taken)):
                    raise Unclosed("a quote is opened and not closed before the next rows")
            yield _text(item)
        if taken:
            raise Unclosed("a quote is opened and never closed")

    def _is_whole(self, item: Numbered) -> bool:
        """Whether a line by itself has the heading's number of cells."""
        return self._num_cells > 1 and item[1][0].count(self._mark) == self._num_cells - 1

    def _swallows(self, num_whole: int, num_lines: int) -> bool:
        if self._delimiter == "\t":
            return num_whole >= SWALLOWED_BY_TABS
        return num_whole == num_lines >= SWALLOWED


def _text(item: Numbered) -> str:
    return item[1][0].decode(errors="surrogateescape")


def _without_backslashes(text: str) -> str:
    """Returns a line in which quotes are doubled, as the reader expects, instead of escaped."""
    return ESCAPED.sub(lambda match: '""' if match[1] == '"' else "\\", text)


def _raw(taken: list[Numbered]) -> bytes:
    return b"".join(line for _, (line, _) in taken).rstrip(b"\r\n")


def _record(taken: list[Numbered], cells: Cells) -> tuple[int, bytes, Cells | str]:
    """Returns a record, or the reason why its bytes are no text."""
    raw = _raw(taken)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return taken[0][0], raw, not_utf8(error)
    return taken[0][0], raw, cells
