"""The bytes of a file, decompressed as they are read, whatever the file's name is.

The readers of the libraries lose the last part of a truncated file, or do not notice that it is
truncated: here every whole byte is yielded first, then `BrokenFile` says what is wrong.
"""

import codecs
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import IO, Any

import zstandard

from retort.data.sources.source_row import BrokenFile

BLOCK_BYTES = 1 << 20
# So little is decompressed at once that no file, however well compressed, fills the memory.
PIECE_BYTES = 1 << 12
GZIP = b"\x1f\x8b"
# The second starts a frame to skip, with which parallel compressors begin.
ZSTD = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
BYTE_ORDER_MARK = codecs.BOM_UTF8
# The first is the beginning of the second, so the longer ones come first.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Without a mark, the zero bytes of the first characters say it, which are ASCII in JSON and in
# most headings (RFC 4627, section 3).
ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
}
WIDEST_WINDOW = 1 << 31


def decompressed(stream: IO[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Returns the first bytes of a file, and all of them in blocks that may raise `BrokenFile`.

    UTF-16 and UTF-32 are decoded: the bytes are then UTF-8.
    """
    first = stream.read(BLOCK_BYTES)
    blocks: Iterator[bytes] = chain([first], iter(partial(stream.read, BLOCK_BYTES), b""))
    if first.startswith(GZIP):
        blocks = _decompress(blocks, partial(zlib.decompressobj, wbits=31))
    elif first.startswith(ZSTD):
        decompressor = zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW)
        blocks = _decompress(blocks, decompressor.decompressobj)
    try:
        head = next(blocks, b"")
        if encoding := _encoding(head):
            blocks = _as_utf8(chain([head], blocks), encoding)
            head = next(blocks, b"")
    except BrokenFile as error:
        return b"", _raising(error)
    head = head.removeprefix(BYTE_ORDER_MARK)
    return head, chain([head], blocks)


def _encoding(head: bytes) -> str | None:
    """Returns the encoding of a text of two or four bytes a character, by its beginning."""
    marked = (name for mark, name in MARKS if head.startswith(mark))
    return next(marked, ZEROS.get(tuple(byte == 0 for byte in head[:4])))


def _as_utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yields a text in UTF-8; half a character of UTF-16 becomes bytes that are not UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise BrokenFile(f"the file's {encoding.upper()} is broken: {error.reason}") from None


def _raising(error: BrokenFile) -> Iterator[bytes]:
    raise error
    yield b""


def _decompress(blocks: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    work = new()
    try:
        for block in blocks:
            for start in range(0, len(block), PIECE_BYTES):
                piece = block[start : start + PIECE_BYTES]
                while piece:
                    if work.eof:  # another member follows, or zeros up to the end of a block
                        piece = piece.lstrip(b"\0")
                        if not piece:
                            break
                        work = new()
                    if data := work.decompress(piece):
                        yield data
                    piece = work.unused_data if work.eof else b""
    except (zlib.error, zstandard.ZstdError) as error:
        raise BrokenFile(f"the file's compressed data is broken: {error}") from None
    if not work.eof:
        raise BrokenFile("the file ends in the middle of its compressed data")
