"""Stores and artifacts: files, and a manifest written last. With `urls` the only place of fsspec.

An artifact is readable only once it has a manifest, which lists every file with its size and
digest. What a killed run left behind is invisible to readers, and continued by the next run.
"""

import contextlib
import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

import fsspec

from retort.errors import SpecError
from retort.store import s3
from retort.store.files import SCRATCH
from retort.store.folder import MANIFEST, MODEL, Artifact, Folder, InputFolder, folder_of
from retort.store.urls import (
    filesystem,
    find_urls,
    is_glob,
    is_s3,
    open_url,
    public,
    read_url,
    store_errors,
)

__all__ = [
    "MANIFEST",
    "MODEL",
    "SCRATCH",
    "Artifact",
    "Folder",
    "InputFolder",
    "Store",
    "find_urls",
    "folder_of",
    "is_glob",
    "open_store",
    "open_url",
    "read_url",
    "store_errors",
]


@dataclass(frozen=True)
class Store:
    """A folder on this machine or under any fsspec URL."""

    uri: str

    def artifact(self, stage: str, name: str) -> Folder:
        """The folder of an artifact, finished or not."""
        return Folder(f"{self.uri}/artifacts/{stage}/{name}")

    def lease(self, stage: str, name: str) -> Folder:
        """The folder in which runs agree on who makes an artifact."""
        return Folder(f"{self.uri}/leases/{stage}-{name}")

    def ledger(self, name: str) -> Folder:
        """The folder with the answers to the requests of one context; only ever added to."""
        return Folder(f"{self.uri}/ledger/{name}")

    def job(self, name: str) -> Folder:
        """The folder with a job's latest report and the names of the artifacts it last used."""
        return Folder(f"{self.uri}/jobs/{name}")

    def log(self, name: str) -> Path:
        """The local file for the output of a job's child processes."""
        return self.local_state() / "logs" / f"{name}.log"

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return "://" not in self.uri

    def local_state(self) -> Path:
        """The local folder for what cannot be on an object store: databases, logs."""
        if self.is_local:
            return Path(self.uri)
        return Path(".retort").resolve() / hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    def probe(self) -> None:
        """Writes and removes a small file. Raises `StoreError` with the cause when it cannot.

        A wrong endpoint, bucket or key is reported within seconds.
        """
        folder, name = Folder(self.uri), f".probe-{uuid.uuid4().hex}"
        if self.is_local:
            folder.write(name, b"probe")
            folder.remove(name)
            return
        path = f"{self.uri}/{name}"
        files = filesystem(path, is_patient=False)
        with store_errors(path, files):
            files.pipe_file(path, b"probe")
            files.rm_file(path)

    def unfinished_uploads(self, begun_before: float, *, remove: bool = False) -> list[str]:
        """Returns the files whose upload began before a time, in seconds since 1970, and never
        ended because its process was killed; `remove` makes the store forget their parts.

        Nobody can read them, but S3 keeps and charges for the parts; other stores have none.
        Raises `StoreError`.
        """
        if not is_s3(self.uri):
            return []
        with store_errors(self.uri):
            files = filesystem(self.uri)
            bucket = files.split_path(self.uri)[0]
            found = s3.unfinished(files, f"{self.uri}/", begun_before)
            for key, upload in found if remove else ():
                with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                    files.abort_mpu(bucket, key, upload)
        return [f"s3://{bucket}/{key}" for key, _ in found]


def open_store(uri: str) -> Store:
    """Returns the store at a path or URL. Raises `SpecError` when its scheme is not installed."""
    uri = str(uri).rstrip("/")
    if "://" not in uri:
        return Store(str(Path(uri).expanduser().resolve()))
    scheme = uri.split("://", 1)[0]
    if scheme == "file":
        return Store(uri.removeprefix("file://"))
    try:
        fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise SpecError(
            f"store {public(uri)}: {error}; use a local folder or s3://bucket/prefix"
        ) from None
    return Store(uri)
