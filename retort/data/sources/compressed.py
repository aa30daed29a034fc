"""The bytes of a file, unpacked as they are read. What they say counts, not the file's name.

The libraries' own readers lose what stands before the place where a file is cut off, or do not
notice that it is: here every whole byte comes out first, then `Torn` says what is wrong.
"""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import IO, Any

import zstandard

from retort.data.sources.source_row import Torn

BLOCK_BYTES = 1 << 20
# So little is unpacked at once that a well packed file cannot fill the memory.
PIECE_BYTES = 1 << 12
GZIP = b"\x1f\x8b"
# The second is the mark of a frame to skip, with which parallel packers begin.
ZSTD = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDEST_WINDOW = 1 << 31


def unpacked(stream: IO[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Returns the first bytes of a file, and all of them in blocks that may raise `Torn`."""
    first = stream.read(BLOCK_BYTES)
    blocks: Iterator[bytes] = chain([first], iter(partial(stream.read, BLOCK_BYTES), b""))
    if first.startswith(GZIP):
        blocks = _unpack(blocks, partial(zlib.decompressobj, wbits=31))
    elif first.startswith(ZSTD):
        unpacker = zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW)
        blocks = _unpack(blocks, unpacker.decompressobj)
    try:
        head = next(blocks, b"").removeprefix(BYTE_ORDER_MARK)
    except Torn as torn:
        return b"", _tear(torn)
    return head, chain([head], blocks)


def _tear(torn: Torn) -> Iterator[bytes]:
    raise torn
    yield b""


def _unpack(blocks: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    work = new()
    try:
        for block in blocks:
            for start in range(0, len(block), PIECE_BYTES):
                piece = block[start : start + PIECE_BYTES]
                while piece:
                    if work.eof:  # another member follows, or zeros that fill the last block
                        piece = piece.lstrip(b"\0")
                        if not piece:
                            break
                        work = new()
                    if found := work.decompress(piece):
                        yield found
                    piece = work.unused_data if work.eof else b""
    except (zlib.error, zstandard.ZstdError) as error:
        raise Torn(f"the file's compressed data is broken: {error}") from None
    if not work.eof:
        raise Torn("the file ends in the middle of its compressed data")
