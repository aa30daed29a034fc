"""The files of one folder of a store, each there whole or not at all."""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import DamagedError
from retort.processes.disk import disk_errors, temporary_folder
from retort.store import local, s3
from retort.store.urls import filesystem, is_s3, public, store_errors

# What only a run in progress needs: never part of the artifact, removed once that is finished.
SCRATCH = "scratch/"
# Files fetched together from a store that is not on this machine.
AT_ONCE = 64
# How long a writer waits before it looks who wrote last, in a store without conditional writes.
SETTLE_SECONDS = 2.0
_memory_lock = threading.Lock()


@dataclass(frozen=True)
class Files:
    """The files of one folder. Every write is atomic: a file that exists is whole."""

    uri: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.uri.rsplit("/", 1)[-1]

    def read(self, name: str) -> bytes:
        """Returns a file's bytes. Raises `StoreError`, also when there is no such file."""
        path = self._path(name)
        with store_errors(path):
            return bytes(self._fs.cat_file(path, **self._in_one))

    def read_all(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """Yields files with their bytes, in order; many at a time from a remote store."""
        if self._is_local:
            yield from ((name, self.read(name)) for name in names)
            return
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            paths = [self._path(name) for name in part]
            with store_errors(self.uri):
                found = self._fs.cat_ranges(paths, None, None, on_error="raise", **self._in_one)
            yield from ((name, bytes(data)) for name, data in zip(part, found, strict=True))

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file. Raises `DamagedError` for one that is no JSON."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise damaged(self._path(name), f"it is no JSON ({error})") from None

    def has(self, name: str) -> bool:
        """Whether there is a file."""
        path = self._path(name)
        with store_errors(path):
            return s3.exists(self._fs, path) if is_s3(path) else bool(self._fs.exists(path))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, or replaces it."""
        path = self._path(name)
        with store_errors(path):
            if self._is_local:
                local.write(path, data)
            elif is_s3(path) and len(data) >= 2 * s3.PART_BYTES:
                s3.put(self._fs, path, len(data), lambda start, n: data[start : start + n])
            else:
                self._fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file if there is none; returns False, and changes nothing, where there is one.

        Of any number of writers exactly one gets True: on a disk with hard links, in memory, and
        on S3 that honours If-None-Match, which is tried once. Other stores have no conditional
        write. There each writer looks, writes, waits and looks again, and the last one gets True:
        exactly one, if none took more than `SETTLE_SECONDS` from its first look to the end of its
        write. A slower one may replace the file of another that got True, and two that write the
        same bytes may both get True.
        """
        path = self._path(name)
        with store_errors(path):
            if self._is_local:
                with contextlib.suppress(local.NoLinksError):
                    return local.create(path, data)
            elif is_s3(path):
                probe = self._path(f"{SCRATCH}probe-{uuid.uuid4().hex}")
                if s3.is_conditional(self._fs, path, probe):
                    return s3.create(self._fs, path, data)
            elif path.startswith("memory://"):
                with _memory_lock:
                    is_free = not self.has(name)
                    if is_free:
                        self.write(name, data)
                return is_free
        if self.has(name):
            return False
        self.write(name, data)
        time.sleep(SETTLE_SECONDS)
        return self.read(name) == data

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as indented JSON."""
        self.write(name, as_json(value))

    def files(self) -> list[str]:
        """Returns the names of all files below the folder, sorted; unfinished parts left out."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of each of `files()`, by one listing."""
        root = str(self._fs._strip_protocol(self.uri)).rstrip("/")
        with store_errors(self.uri):
            try:
                found = self._fs.find(root, detail=True)
            except FileNotFoundError:
                if is_s3(self.uri):  # raised only where there is no bucket
                    raise
                found = {}
        names = {path.removeprefix(root).lstrip("/"): facts for path, facts in found.items()}
        # S3's own web page leaves an empty file, whose name ends in /, for each folder made there.
        shown = {name for name in names if name and not name.endswith((".part", "/"))}
        return {name: int(names[name]["size"]) for name in shown}

    def size(self, name: str) -> int:
        """Returns a file's size in bytes."""
        with store_errors(self._path(name)):
            return int(self._fs.size(self._path(name)))

    def remove(self, name: str) -> None:
        """Removes a file if there is one."""
        with store_errors(self._path(name)), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def put_tree(self, source: Path, prefix: str) -> None:
        """Copies every file below a local folder to `prefix/`."""
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            self.put_file(path, f"{prefix}/{path.relative_to(source).as_posix()}")

    def put_file(self, source: Path, name: str) -> None:
        """Copies a file of this machine into the folder, a large one in parts."""
        target, size = self._path(name), source.stat().st_size
        with store_errors(target):
            if self._is_local:
                local.copy(source, target)
            elif is_s3(target) and size >= 2 * s3.PART_BYTES:
                with source.open("rb") as stream:
                    number = stream.fileno()
                    s3.put(self._fs, target, size, lambda start, n: os.pread(number, n, start))
            else:
                self._fs.put_file(str(source), target)

    @contextlib.contextmanager
    def local_copy(self, prefix: str) -> Iterator[Path]:
        """Gives `prefix/` as a folder of this machine: itself in a local store, else a download
        that is removed afterwards."""
        if self._is_local:
            yield Path(self._path(prefix))
            return
        with temporary_folder() as scratch:
            for name, size in sorted(self.sizes().items()):
                if name.startswith(f"{prefix}/"):
                    target = scratch / name.removeprefix(f"{prefix}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._fetch(name, size, target)
            yield scratch

    def _fetch(self, name: str, size: int, target: Path) -> None:
        path = self._path(name)
        with store_errors(path), disk_errors(target, "TMPDIR"):
            if is_s3(path):
                s3.get(self._fs, path, size, str(target))
            else:
                self._fs.get_file(path, str(target))

    @property
    def _is_local(self) -> bool:
        return "://" not in self.uri

    @property
    def _fs(self) -> Any:
        return filesystem(self.uri)

    @property
    def _in_one(self) -> dict[str, int]:
        """Makes s3fs read a file by one request, which is retried as a whole."""
        return {"max_concurrency": 1} if is_s3(self.uri) else {}

    def _path(self, name: str) -> str:
        return f"{self.uri}/{name}"


def as_json(value: Any) -> bytes:
    """Returns a value as indented JSON that ends in a newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def damaged(path: str, cause: str) -> DamagedError:
    """Returns the error for a file that is not what was written: its path, what it belongs to, and
    the one command that makes it again."""
    return DamagedError(public(f"{path} is damaged: {cause}. {_remedy(path)}"))


def _remedy(path: str) -> str:
    parts = path.split("/")
    for index in reversed(range(len(parts) - 1)):
        store = "/".join(parts[:index])
        match parts[index:]:
            case ["artifacts", stage, _, "scratch", *_]:
                return f"A run of {stage} that was killed left it"
            case ["artifacts", stage, name, *_]:
                return (
                    f"It belongs to the artifact {name} of {stage}; `retort run SPEC --store "
                    f"{store} --force {stage}` makes it again"
                )
            case ["ledger", name, "segments", _]:
                return (
                    f"It holds paid answers of the ledger {name}. Put it back from a backup, or "
                    f"keep what can be read by `retort verify --repair --store {store}`: the "
                    "next run asks only for the rest again"
                )
            case ["ledger" | "jobs" | "leases", *_]:
                return "Remove this file; the next run writes it again"
    return "Put it back from a backup, or remove it and run again"
