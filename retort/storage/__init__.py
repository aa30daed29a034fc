"""Stores and artifacts: shards, and a manifest written last. With `urls` the only door to fsspec.

An artifact is readable only once its manifest stands, and the manifest lists every file with its
size and digest; what a killed run left behind is invisible to readers and continued by writers.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from retort.errors import SpecError
from retort.storage.urls import filesystem, find_urls, is_glob, open_url, read_url, store_errors

__all__ = [
    "MANIFEST",
    "SCRATCH",
    "Artifact",
    "Folder",
    "Store",
    "find_urls",
    "folder_of",
    "is_glob",
    "open_store",
    "open_url",
    "read_url",
    "store_errors",
]

MANIFEST = "manifest.json"
# What only a run in progress needs: never part of the artifact, removed once it is finished.
SCRATCH = "scratch/"
# Files fetched together from a store that is not on this machine.
AT_ONCE = 64


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact: all that crosses from stage to stage."""

    stage: str
    name: str
    uri: str
    digest: str


@dataclass(frozen=True)
class Store:
    """A folder on this machine or under any fsspec URL."""

    uri: str

    def artifact(self, stage: str, name: str) -> "Folder":
        """The folder of an artifact, finished or not."""
        return Folder(f"{self.uri}/artifacts/{stage}/{name}")

    def ledger(self, name: str) -> "Folder":
        """The folder with the answers to one way of asking; only ever added to."""
        return Folder(f"{self.uri}/ledger/{name}")

    def job(self, name: str) -> "Folder":
        """The folder with a job's latest report and the artifacts it last used."""
        return Folder(f"{self.uri}/jobs/{name}")

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return "://" not in self.uri

    def local_state(self) -> Path:
        """A folder on this machine for what cannot live on an object store: databases, logs."""
        if self.is_local:
            return Path(self.uri)
        return Path(".retort").resolve() / hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    def probe(self) -> None:
        """Writes and removes a small file. Raises `StoreError` with the cause when it cannot."""
        folder, name = Folder(self.uri), f".probe-{uuid.uuid4().hex}"
        folder.write(name, b"probe")
        folder.remove(name)


def open_store(uri: str) -> Store:
    """Returns the store behind a path or URL. Raises `SpecError` when its kind is not installed."""
    uri = str(uri).rstrip("/")
    if "://" not in uri:
        return Store(str(Path(uri).expanduser().resolve()))
    scheme = uri.split("://", 1)[0]
    if scheme == "file":
        return Store(uri.removeprefix("file://"))
    try:
        fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise SpecError(f"store {uri}: {error}; use a local folder or s3://bucket/prefix") from None
    return Store(uri)


@dataclass(frozen=True)
class Folder:
    """One folder of a store. Every write is atomic: a file that exists is whole."""

    uri: str

    def read(self, name: str) -> bytes:
        """Returns a file's bytes. Raises `StoreError`, also when there is no such file."""
        with store_errors(self._path(name)):
            return bytes(self._fs.cat_file(self._path(name)))

    def read_all(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """Yields files with their bytes, in order; many at a time where they are far away."""
        step = 1 if self._is_local else AT_ONCE
        for start in range(0, len(names), step):
            part = names[start : start + step]
            if self._is_local:
                yield part[0], self.read(part[0])
                continue
            with store_errors(self.uri):
                found = self._fs.cat([self._path(name) for name in part])
            by_name = {path.rsplit("/", 1)[-1]: data for path, data in found.items()}
            yield from ((name, bytes(by_name[name.rsplit("/", 1)[-1]])) for name in part)

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file."""
        return json.loads(self.read(name))

    def has(self, name: str) -> bool:
        """Whether a file stands."""
        with store_errors(self._path(name)):
            return bool(self._fs.exists(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file so that it is there whole or not at all."""
        path = self._path(name)
        with store_errors(path):
            if not self._is_local:
                self._fs.pipe_file(path, data)
                return
            part = self._part(path, data)
            os.replace(part, path)
            _sync(Path(path).parent)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there yet; returns False, and leaves it alone, where it is.

        Of any number of writers exactly one gets True.
        """
        path = self._path(name)
        with store_errors(path):
            try:
                if not self._is_local:
                    self._fs.pipe_file(path, data, mode="create")
                    return True
                part = self._part(path, data)
                try:
                    os.link(part, path)
                finally:
                    os.unlink(part)
                _sync(Path(path).parent)
            except FileExistsError:
                return False
        return True

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as indented JSON."""
        self.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def files(self) -> list[str]:
        """Returns the names of all files below the folder, sorted; unfinished parts left out."""
        root = str(self._fs._strip_protocol(self.uri)).rstrip("/")
        with store_errors(self.uri):
            found = self._fs.find(root) if self._fs.exists(root) else []
        names = [path.removeprefix(root).lstrip("/") for path in found]
        return sorted(name for name in names if not name.endswith(".part"))

    def size(self, name: str) -> int:
        """Returns a file's size in bytes."""
        with store_errors(self._path(name)):
            return int(self._fs.size(self._path(name)))

    def remove(self, name: str) -> None:
        """Removes a file if it stands."""
        with store_errors(self._path(name)), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def put_tree(self, local: Path, prefix: str) -> None:
        """Copies every file below a local folder to `prefix/`."""
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            name = f"{prefix}/{path.relative_to(local).as_posix()}"
            with store_errors(self._path(name)):
                if self._is_local:
                    target = Path(self._path(name))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
                    shutil.copyfile(path, part)
                    os.replace(part, target)
                else:
                    self._fs.put_file(str(path), self._path(name))

    @contextlib.contextmanager
    def local_copy(self, prefix: str) -> Iterator[Path]:
        """Gives `prefix/` as a local folder: itself in a local store, otherwise a download."""
        if self._is_local:
            yield Path(self._path(prefix))
            return
        with tempfile.TemporaryDirectory(prefix="retort-") as scratch:
            for name in self.files():
                if name.startswith(f"{prefix}/"):
                    target = Path(scratch) / name.removeprefix(f"{prefix}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with store_errors(self._path(name)):
                        self._fs.get_file(self._path(name), str(target))
            yield Path(scratch)

    def commit(self, manifest: dict[str, Any]) -> Artifact:
        """Writes the manifest, which lists every file; from here on the artifact exists.

        Where another run committed the same artifact meanwhile, that one stands.
        """
        standing = self.manifest()
        if standing is None:
            names = [n for n in self.files() if n != MANIFEST and not n.startswith(SCRATCH)]
            files = {name: self._facts(name) for name in names}
            standing = {**manifest, "files": files, "committed_at": time.time()}
            self.write_json(MANIFEST, standing)
            for name in self.files():
                if name.startswith(SCRATCH):
                    self.remove(name)
        return self.reference(standing)

    def manifest(self) -> dict[str, Any] | None:
        """Returns the manifest if it stands and every file it lists stands in its full size."""
        if not self.has(MANIFEST):
            return None
        manifest: dict[str, Any] = self.read_json(MANIFEST)
        listed = manifest["files"]
        standing = set(self.files())
        whole = all(n in standing and self.size(n) == f["bytes"] for n, f in listed.items())
        return manifest if whole else None

    def finished(self) -> Artifact | None:
        """Returns the artifact if it is finished and whole."""
        manifest = self.manifest()
        return self.reference(manifest) if manifest else None

    def clear(self) -> None:
        """Removes everything; the manifest first, so that nothing half-removed is readable."""
        self.remove(MANIFEST)
        for name in self.files():
            self.remove(name)

    def reference(self, manifest: dict[str, Any]) -> Artifact:
        """Returns the reference to the artifact of a manifest; its digest names its content."""
        listed = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
        stage, name = self.uri.rsplit("/", 2)[-2:]
        return Artifact(stage, name, self.uri, digest)

    def _facts(self, name: str) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        with store_errors(self._path(name)), self._fs.open(self._path(name), "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
        return {"bytes": size, "sha256": digest.hexdigest()}

    def _part(self, path: str, data: bytes) -> str:
        """Writes a file beside a path of this machine that has all of its bytes on the disk."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        try:
            with open(part, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise
        return part

    @property
    def _is_local(self) -> bool:
        return "://" not in self.uri

    @property
    def _fs(self) -> Any:
        return filesystem(self.uri)

    def _path(self, name: str) -> str:
        return f"{self.uri}/{name}"


def _sync(folder: Path) -> None:
    """Makes a rename last through a loss of power, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def folder_of(artifact: Artifact) -> Folder:
    """Returns the folder that an artifact reference points to."""
    return Folder(artifact.uri)
