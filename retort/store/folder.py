"""A folder of a store and the artifact in it: its files, and a manifest that is written last.

The manifest lists every file with its size and digest, and one run alone commits it. The surprise:
where two runs wrote other bytes into one folder, the later one takes the manifest away again.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from retort.errors import StoreError
from retort.store.files import SCRATCH, Files, as_json
from retort.store.urls import is_missing, store_errors

MODEL = "model"  # the part of a release that is the Hugging Face folder
MANIFEST = "manifest.json"
# Files up to this size are fetched many at a time to be digested.
SMALL_BYTES, BLOCK_BYTES = 1 << 20, 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact: all that crosses from stage to stage."""

    stage: str
    name: str
    uri: str
    digest: str


class Folder(Files):
    """One folder of a store, which is an artifact once its manifest stands."""

    def commit(self, manifest: dict[str, Any]) -> Artifact:
        """Writes the manifest, which lists every file; from here on the artifact exists.

        Where another run committed the same artifact meanwhile, that one stands. Where the two
        wrote other bytes, there is no artifact, and a transient `StoreError` is raised: the stage
        is to be made again. How sure it is that one run alone commits is said at `create`.
        """
        if standing := self.manifest():
            return self.reference(standing)
        sizes = self.sizes()
        scratch = [name for name in sizes if name.startswith(SCRATCH)]
        names = sorted(sizes.keys() - {MANIFEST, *scratch})
        made = {**manifest, "files": self._facts(names, sizes), "committed_at": time.time()}
        if not self.create(MANIFEST, as_json(made)):
            if standing := self._of_another():
                return self.reference(standing)
            self.write(MANIFEST, as_json(made))
        for name in scratch:
            self.remove(name)
        return self.reference(made)

    def manifest(self) -> dict[str, Any] | None:
        """Returns the manifest if it stands and every file it lists stands in its full size."""
        try:
            found: dict[str, Any] = self.read_json(MANIFEST)
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
        listed = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
        stage, name = self.uri.rsplit("/", 2)[-2:]
        return Artifact(stage, name, self.uri, digest)

    def _of_another(self) -> dict[str, Any] | None:
        """Returns the manifest that stands, None where a file it lists is gone."""
        standing = self.manifest()
        listed = standing["files"] if standing else {}
        sizes = {name: facts["bytes"] for name, facts in listed.items()}
        if self._facts(list(listed), sizes) == listed:
            return standing
        self.remove(MANIFEST)
        raise StoreError(
            f"store: {self.uri}: another run made this artifact at the same time, and its files "
            "are now of both; none of them is used, the stage is to be made again",
            transient=True,
        )

    def _facts(self, names: list[str], sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Returns the size and digest of files, by reading them back from the store."""
        small = [name for name in names if sizes[name] <= SMALL_BYTES]
        found = {name: _facts_of(data) for name, data in self.read_all(small)}
        return {name: found.get(name) or self._streamed(name) for name in names}

    def _streamed(self, name: str) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        with store_errors(self._path(name)), self._fs.open(self._path(name), "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
        return {"bytes": size, "sha256": digest.hexdigest()}


def _facts_of(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def folder_of(artifact: Artifact) -> Folder:
    """Returns the folder that an artifact reference points to."""
    return Folder(artifact.uri)
