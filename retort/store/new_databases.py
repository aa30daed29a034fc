"""New SQLite databases as copies of one that a library made before: its migrations take seconds."""

import contextlib
import os
import shutil
import sqlite3
import uuid
from importlib.metadata import version
from pathlib import Path

from retort.processes.disk import for_owner, make_folder
from retort.store.model_folder import cache_folder


def copy_new(library: str, path: Path) -> bool:
    """Makes a database that does not exist, or is empty, a copy of a library's new one; returns
    whether it did. The copy appears whole or not at all."""
    kept = _kept(library)
    if (path.is_file() and path.stat().st_size) or not (kept and kept.is_file()):
        return False
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(kept, "rb") as new, open(part, "wb", opener=for_owner) as copy:
            shutil.copyfileobj(new, copy)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return True


def keep_new(library: str, path: Path) -> None:
    """Keeps a copy of a database that a library has just made and nothing is in yet."""
    kept = _kept(library)
    if kept is None or kept.exists():
        return
    part = kept.with_name(f"{kept.name}.{uuid.uuid4().hex[:8]}.part")
    with contextlib.suppress(OSError, sqlite3.Error):  # the next one is made anew
        make_folder(kept.parent)
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            source.backup(copy)
        os.replace(part, kept)
    part.unlink(missing_ok=True)


def _kept(library: str) -> Path | None:
    """Returns the place of a library's new database; None for a user without a home."""
    with contextlib.suppress(RuntimeError):
        return cache_folder() / f"new-{library}-{version(library)}.db"
    return None
