"""Rows that are lines: of JSON, or what a table is made of. No more than one line is ever held."""

from collections.abc import Iterable, Iterator

from retort.data.sources.source_row import (
    KEPT_BYTES,
    Piece,
    SourceRow,
    Torn,
    bad,
    json_row,
    too_long,
)


def line_rows(file: str, blocks: Iterable[bytes], most: int) -> Iterator[SourceRow]:
    """Yields the rows of JSON lines; a line of white space is none."""
    for number, (line, error) in enumerate(lines(blocks, most), 1):
        if error is not None:
            yield bad(file, number, line, error)
            continue
        raw = line[:-1] if line.endswith(b"\r") else line
        if raw and not raw.isspace():
            yield json_row(file, number, raw)


def lines(blocks: Iterable[bytes], most: int) -> Iterator[Piece]:
    """Yields what stands between line feeds; of what is longer than `most` bytes its beginning.

    Where the blocks are torn, what stands of the last line comes with the reason.
    """
    rest, is_long, error = b"", False, too_long(most)
    try:
        for block in blocks:
            found = block.split(b"\n")
            found[0] = rest if is_long else rest + found[0]
            rest = found.pop()
            for line in found:
                if is_long or len(line) > most:
                    yield line[:KEPT_BYTES], error
                    is_long = False
                else:
                    yield line, None
            if len(rest) > most:
                rest, is_long = rest[:KEPT_BYTES], True
    except Torn as torn:
        yield rest[:KEPT_BYTES], str(torn)
        return
    if rest:
        yield rest, error if is_long else None
