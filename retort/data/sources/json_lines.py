"""Files read line by line: rows of JSON lines, and the lines of a table."""

from collections.abc import Iterable, Iterator

from retort.data.sources.source_row import (
    KEPT_BYTES,
    BrokenFile,
    Piece,
    SourceRow,
    bad,
    json_row,
    too_long,
)


def line_rows(file: str, blocks: Iterable[bytes], most: int) -> Iterator[SourceRow]:
    """Yields the rows of JSON lines; blank lines are skipped."""
    for number, (line, error) in enumerate(lines(blocks, most), 1):
        if error is not None:
            yield bad(file, number, line, error)
            continue
        raw = line[:-1] if line.endswith(b"\r") else line
        if raw and not raw.isspace():
            yield json_row(file, number, raw)


def lines(blocks: Iterable[bytes], most: int, universal: bool = False) -> Iterator[Piece]:
    """Yields lines without their line feed; of a line longer than `most` bytes, its beginning.

    If the blocks are broken, the last part is yielded with the reason. If `universal`, a carriage
    return alone also ends a line, and lines are yielded with their ends.
    """
    rest, is_long, error = b"", False, too_long(most)
    try:
        for block in _without_split_ends(blocks) if universal else blocks:
            whole = _universal(block) if universal else block.split(b"\n")
            whole[0] = rest if is_long else rest + whole[0]
            rest = whole.pop()
            for line in whole:
                if is_long or len(line) > most:
                    yield line[:KEPT_BYTES], error
                    is_long = False
                else:
                    yield line, None
            if len(rest) > most:
                rest, is_long = rest[:KEPT_BYTES], True
    except BrokenFile as broken:
        yield rest[:KEPT_BYTES], str(broken)
        return
    if rest:
        yield rest, error if is_long else None


def _universal(block: bytes) -> list[bytes]:
    """Returns the lines of a block with their ends, and last its unfinished line, or nothing."""
    parts = block.splitlines(keepends=True)
    return parts if parts and not parts[-1].endswith((b"\n", b"\r")) else [*parts, b""]


def _without_split_ends(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields blocks none of which ends between a carriage return and its line feed."""
    held = b""
    for block in blocks:
        block = held + block  # noqa: PLW2901
        held = b"\r" if block.endswith(b"\r") else b""
        yield block.removesuffix(held)
    yield held
