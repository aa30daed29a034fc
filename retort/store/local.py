"""Files of this machine, written so that a file that exists has all of its bytes on the disk.

A file is written under another name that ends in .part, which no reader looks at, then renamed.
Files and folders are made for their owner alone.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from retort.processes.disk import for_owner, make_folder


class NoLinksError(OSError):
    """The disk has no hard links, the one way to give a file a name only if that is free."""


def write(path: str, data: bytes) -> None:
    """Writes a file, or replaces it."""
    with _part(path) as (part, stream):
        stream.write(data)
        _flush(stream)
        os.replace(part, path)
    _sync(Path(path).parent)


def create(path: str, data: bytes) -> bool:
    """Writes a file if there is none; returns whether it did. Raises `NoLinksError`."""
    with _part(path) as (part, stream):
        stream.write(data)
        _flush(stream)
        try:
            os.link(part, path)
        except FileExistsError:
            # A network disk may repeat a link whose first answer got lost.
            return os.stat(part).st_nlink > 1
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise NoLinksError(error.errno, os.strerror(error.errno), path) from error
            raise
    _sync(Path(path).parent)
    return True


def copy(source: Path, path: str) -> None:
    """Copies a file, or replaces one by it."""
    with _part(path) as (part, stream):
        with source.open("rb") as original:
            shutil.copyfileobj(original, stream, 1 << 20)
        _flush(stream)
        os.replace(part, path)
    _sync(Path(path).parent)


@contextlib.contextmanager
def _part(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Opens the unfinished file beside a path, and removes what is left of it afterwards."""
    make_folder(Path(path).parent)
    part = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        with open(part, "wb", opener=for_owner) as stream:
            yield part, stream
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Makes a new name outlive a loss of power, where the system can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
