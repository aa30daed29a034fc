"""Files and folders of this machine that are made for their owner alone, and a temporary folder
whose errors say what to do."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from retort.errors import StoreError, disk_cause


def make_folder(folder: Path) -> Path:
    """Makes a folder, and those above it that are missing, for their owner alone; returns it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def for_owner(path: str, flags: int) -> int:
    """The `opener` of a file that is made for its owner alone."""
    return os.open(path, flags, 0o600)


def open_log(path: Path) -> IO[str]:
    """Opens a log file for adding to it. Raises `StoreError` where it cannot be written."""
    with disk_errors(path, "--store"):
        make_folder(path.parent)
        return open(path, "a", encoding="utf-8", opener=for_owner)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gives a temporary folder that is removed afterwards. Raises `StoreError` when no folder can
    be made in TMPDIR, nor in the system's usual places."""
    try:
        with disk_errors(Path(os.environ.get("TMPDIR", "/tmp")), "TMPDIR"):
            made = tempfile.TemporaryDirectory(prefix="retort-", ignore_cleanup_errors=True)
    except FileNotFoundError as error:  # tempfile has tried all places
        raise StoreError(f"{error}; set TMPDIR to a folder that exists and has room") from error
    with made as folder:
        yield Path(folder)


@contextlib.contextmanager
def disk_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turns what a disk refuses below a path into a `StoreError` that names the path and what to
    do; `remedy` is the option or variable that chooses another disk."""
    try:
        yield
    except OSError as error:
        if cause := disk_cause(error, remedy):
            raise StoreError(f"{error.filename or path}: {cause}") from error
        raise
