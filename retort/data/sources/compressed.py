"""The bytes of a file, decompressed as they are read, whatever the file's name is.

The readers of the libraries lose the last part of a truncated file, or do not notice that it is
truncated: here every whole byte is yielded first, then `BrokenFile` says what is wrong.
"""

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
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDEST_WINDOW = 1 << 31


def decompressed(stream: IO[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Returns the first bytes of a file, and all of them in blocks that may raise `BrokenFile`."""
    first = stream.read(BLOCK_BYTES)
    blocks: Iterator[bytes] = chain([first], iter(partial(stream.read, BLOCK_BYTES), b""))
    if first.startswith(GZIP):
        blocks = _decompress(blocks, partial(zlib.decompressobj, wbits=31))
    elif first.startswith(ZSTD):
        decompressor = zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW)
        blocks = _decompress(blocks, decompressor.decompressobj)
    try:
        head = next(blocks, b"").removeprefix(BYTE_ORDER_MARK)
    except BrokenFile as error:
        return b"", _raising(error)
    return head, chain([head], blocks)


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
