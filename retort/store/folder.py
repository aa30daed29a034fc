"""A folder of a store and the artifact in it: its files, and a manifest that is written last.

The manifest lists every file with its size and sha256, and only one run commits it. Note: where
two runs wrote different bytes into one folder, the later one removes the manifest again.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, TypedDict

from retort.errors import StoreError
from retort.store.files import SCRATCH, Files, as_json
from retort.store.urls import is_missing, store_errors

MODEL = "model"  # the part of a release that is the Hugging Face folder
MANIFEST = "manifest.json"
# Files up to this size are fetched many at a time to be digested, larger ones block by block.
SMALL_BYTES, BLOCK_BYTES = 1 << 20, 1 << 20


class ListedFile(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact: all that is passed from stage to stage."""

    stage: str
    name: str
    uri: str
    digest: str


class Folder(Files):
    """One folder of a store, which is an artifact once it has a manifest."""

    def commit(self, manifest: dict[str, Any]) -> Artifact:
        """Writes the manifest, which lists every file; from here on the artifact exists.

        Where another run committed the same artifact meanwhile, that one is returned. Where the
        two wrote different bytes there is no artifact, and a transient `StoreError` is raised: the
        stage is to run again. `create` says how sure it is that only one run commits.
        """
        if earlier := self.manifest():
            return self.reference(earlier)
        sizes = self.sizes()
        scratch = [name for name in sizes if name.startswith(SCRATCH)]
        names = sorted(sizes.keys() - {MANIFEST, *scratch})
        made = {**manifest, "files": self._listed(names, sizes), "committed_at": time.time()}
        if not self.create(MANIFEST, as_json(made)):
            if other := self._of_another_run():
                return self.reference(other)
            self.write(MANIFEST, as_json(made))
        for name in scratch:
            self.remove(name)
        return self.reference(made)

    def read_manifest(self) -> dict[str, Any]:
        """Returns the manifest of an artifact. Raises `StoreError` where there is none."""
        manifest: dict[str, Any] = self.read_json(MANIFEST)
        return manifest

    def manifest(self) -> dict[str, Any] | None:
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

    def clear(self) -> None:
        """Removes everything; the manifest first, so that nothing half-removed is readable."""
        self.remove(MANIFEST)
        for name in self.files():
            self.remove(name)

    def reference(self, manifest: dict[str, Any]) -> Artifact:
        """Returns the reference to the artifact of a manifest; its digest names its content."""
        digests = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        stage, name = self.uri.rsplit("/", 2)[-2:]
        return Artifact(stage, name, self.uri, digest)

    def _of_another_run(self) -> dict[str, Any] | None:
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

    def _listed(self, names: list[str], sizes: dict[str, int]) -> dict[str, ListedFile]:
        """Returns the size and digest of files, by reading them back from the store."""
        small = [name for name in names if sizes[name] <= SMALL_BYTES]
        found = {
            name: ListedFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in self.read_all(small)
        }
        return {name: found.get(name) or self._streamed(name) for name in names}

    def _streamed(self, name: str) -> ListedFile:
        digest, size = hashlib.sha256(), 0
        with store_errors(self._path(name)), self._fs.open(self._path(name), "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
        return ListedFile(bytes=size, sha256=digest.hexdigest())


def folder_of(artifact: Artifact) -> Folder:
    """Returns the folder that an artifact reference points to."""
    return Folder(artifact.uri)
