"""A folder of a store and the artifact in it: its files, and a manifest that is written last.

The manifest lists every file with its size and sha256, and only one run commits it. Whoever reads
an artifact compares what it reads with the manifest (`InputFolder`). Note: where two runs wrote
different bytes into one folder, the later one removes the manifest again.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from retort.errors import DamagedError, StoreError
from retort.records import JsonObject
from retort.store.files import SCRATCH, Files, as_json, damaged
from retort.store.urls import is_missing, public_json, store_errors

MODEL = "model"  # the part of a release that is the Hugging Face folder
MANIFEST = "manifest.json"
# The key of a manifest's own digest; manifests of older stores have none.
OWN_DIGEST = "manifest_sha256"
# Files up to this size are fetched many at a time to be digested, larger ones block by block.
SMALL_BYTES, BLOCK_BYTES = 1 << 20, 1 << 20
DIGEST_THREADS = 4


class ListedFile(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


# By local path: the inode, size and time of change of a file that this process has digested, and
# its digest.
_digested: dict[str, tuple[tuple[int, int, int], str]] = {}


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact: all that is passed from stage to stage."""

    stage: str
    name: str
    uri: str
    digest: str


class Folder(Files):
    """One folder of a store, which is an artifact once it has a manifest."""

    def commit(self, manifest: JsonObject) -> Artifact:
        """Writes the manifest, which lists every file; from here on the artifact exists. Addresses
        in it are without secrets.

        Where another run committed the same artifact meanwhile, that one is returned. Where the
        two wrote different bytes there is no artifact, and a transient `StoreError` is raised: the
        stage is to run again. `create` says how sure it is that only one run commits.
        """
        if earlier := self.manifest():
            return self.reference(earlier)
        sizes = self.sizes()
        scratch = [name for name in sizes if name.startswith(SCRATCH)]
        names = sorted(sizes.keys() - {MANIFEST, *scratch})
        listed = self._listed(names, sizes)
        made = _signed({**manifest, "files": listed, "committed_at": time.time()})
        if not self.create(MANIFEST, as_json(made)):
            if other := self._of_another_run():
                return self.reference(other)
            self.write(MANIFEST, as_json(made))
        for name in scratch:
            self.remove(name)
        return self.reference(made)

    def read_manifest(self) -> JsonObject:
        """Returns the manifest of an artifact. Raises `StoreError` where there is none, and
        `DamagedError` for one that is not as it was written."""
        manifest = self.read_json(MANIFEST)
        if not (isinstance(manifest, dict) and _is_listing(manifest.get("files"))):
            raise damaged(self._path(MANIFEST), "it is no manifest")
        if manifest.get(OWN_DIGEST, _digest_of(manifest)) != _digest_of(manifest):
            raise damaged(self._path(MANIFEST), "it is not as it was written")
        return manifest

    def amend(self, facts: JsonObject) -> None:
        """Adds to the facts in the manifest of a finished artifact; its files stay as they are."""
        manifest = self.read_manifest()
        self.write_json(MANIFEST, _signed({**manifest, "facts": {**manifest["facts"], **facts}}))

    def manifest(self) -> JsonObject | None:
        """Returns the manifest if there is one and every file it lists has its full size."""
        try:
            found = self.read_manifest()
        except StoreError as error:
            if is_missing(error):
                return None
            raise
        sizes = self.sizes()
        is_whole = all(sizes.get(name) == f["bytes"] for name, f in found["files"].items())
        return found if is_whole else None

    def finished(self) -> Artifact | None:
        """Returns the artifact if it is finished and whole."""
        manifest = self.manifest()
        return self.reference(manifest) if manifest else None

    def checked(self) -> "Folder":
        """Returns the folder as `InputFolder` if it is a finished artifact, else itself."""
        return InputFolder(self.uri) if self.has(MANIFEST) else self

    def clear(self) -> None:
        """Removes everything; the manifest first, so that nothing half-removed is readable."""
        self.remove(MANIFEST)
        for name in self.files():
            self.remove(name)

    def reference(self, manifest: JsonObject) -> Artifact:
        """Returns the reference to the artifact of a manifest; its digest names its content."""
        digests = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        stage, name = self.uri.rsplit("/", 2)[-2:]
        return Artifact(stage, name, self.uri, digest)

    def _of_another_run(self) -> JsonObject | None:
        """Returns the manifest that another run wrote; None where a file it lists is gone."""
        other = self.manifest()
        listed = other["files"] if other else {}
        sizes = {name: facts["bytes"] for name, facts in listed.items()}
        if self._listed(list(listed), sizes) == listed:
            return other
        self.remove(MANIFEST)
        raise StoreError(
            f"store: {self.uri}: another run made this artifact at the same time and wrote other "
            "bytes; the files of both are mixed, so none is used and the stage must run again",
            transient=True,
        )

    def _listed(self, names: Iterable[str], sizes: dict[str, int]) -> dict[str, ListedFile]:
        """Returns the size and digest of files, by reading them back from the store."""
        small = [name for name in names if sizes[name] <= SMALL_BYTES and not self._is_local]
        found = {name: listed_file(data) for name, data in Files.read_all(self, small)}
        with ThreadPoolExecutor(DIGEST_THREADS) as pool:
            large = [name for name in names if name not in found]
            found |= zip(large, pool.map(self._digested, large), strict=True)
        return {name: found[name] for name in names}

    def _digested(self, name: str) -> ListedFile:
        """Returns the size and digest of a file; of a local one whose size and time of change are
        as this process last saw them, without reading it again."""
        path = self._path(name)
        with store_errors(path):
            if self._is_local:
                return _digested_locally(path)
            digest, size = hashlib.sha256(), 0
            with self._fs.open(path, "rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
        return ListedFile(bytes=size, sha256=digest.hexdigest())


class InputFolder(Folder):
    """A finished artifact that is read: all that comes from it is compared with its manifest.

    Its methods raise `DamagedError` for a file that is not as it was written.
    """

    @cached_property
    def _listing(self) -> dict[str, ListedFile]:
        listing: dict[str, ListedFile] = self.read_manifest()["files"]
        return listing

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of each file in the manifest."""
        return {name: listed["bytes"] for name, listed in self._listing.items()}

    def has(self, name: str) -> bool:
        """Whether there is a file."""
        return name in self._listing or super().has(name)

    def read(self, name: str) -> bytes:
        """Returns a file's bytes, as they were written."""
        if name == MANIFEST:
            return super().read(name)
        try:
            data = super().read(name)
        except StoreError as error:
            if name in self._listing and is_missing(error):
                raise damaged(self._path(name), "it is missing") from error
            raise
        self._compare(name, listed_file(data))
        return data

    def read_all(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """Yields files with their bytes, in order, as they were written."""
        for name, data in super().read_all(names):
            self._compare(name, listed_file(data))
            yield name, data

    @contextlib.contextmanager
    def local_copy(self, prefix: str) -> Iterator[Path]:
        """Gives `prefix/` as a folder of this machine, all of its files as they were written."""
        names = [name for name in self._listing if name.startswith(f"{prefix}/")]
        with super().local_copy(prefix) as folder, ThreadPoolExecutor(DIGEST_THREADS) as pool:
            paths = [str(folder / name.removeprefix(f"{prefix}/")) for name in names]
            with store_errors(self._path(prefix)):
                found = list(pool.map(_digested_locally, paths))
            for name, facts in zip(names, found, strict=True):
                self._compare(name, facts)
            yield folder

    def damages(self) -> list[DamagedError]:
        """Returns an error for each file that is missing or not as it was written."""
        found: list[DamagedError] = []
        for name in self._listing:
            try:
                self._compare(name, self._digested(name))
            except DamagedError as error:
                found.append(error)
            except StoreError as error:
                if not is_missing(error):
                    raise
                found.append(damaged(self._path(name), "it is missing"))
        return found

    def _compare(self, name: str, facts: ListedFile) -> None:
        listed = self._listing.get(name, facts)
        if facts != listed:
            cause = "it has {bytes:,} bytes, sha256 {sha256:.12}".format(**facts)
            listing = "its manifest lists {bytes:,} and {sha256:.12}".format(**listed)
            raise damaged(self._path(name), f"{cause}; {listing}")


def _digested_locally(path: str) -> ListedFile:
    """Returns the size and digest of a local file, which is read once a process and change."""
    status = os.stat(path)
    version = status.st_ino, status.st_size, status.st_mtime_ns
    known, digest = _digested.get(path, (None, ""))
    if known != version:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _digested[path] = version, digest
    return ListedFile(bytes=status.st_size, sha256=digest)


def listed_file(data: bytes) -> ListedFile:
    """Returns the size and digest of a file with these bytes."""
    return ListedFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def folder_of(artifact: Artifact) -> Folder:
    """Returns the folder that an artifact reference points to."""
    return Folder(artifact.uri)


def _signed(manifest: JsonObject) -> JsonObject:
    """Returns a manifest as it is stored: addresses without secrets, and its own digest."""
    stored = json.loads(as_json(public_json(manifest)))
    return {**stored, OWN_DIGEST: _digest_of(stored)}


def _digest_of(manifest: JsonObject) -> str:
    content = {key: value for key, value in manifest.items() if key != OWN_DIGEST}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_listing(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys() for facts in files.values()
    )
