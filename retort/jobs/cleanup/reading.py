"""Reads a store for its cleanup: artifacts and ledgers with age and size, and the jobs' records.

Folders whose name is not one of Retort's are ignored, so they are never removed.
"""

import contextlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from retort.errors import StoreError
from retort.records import JsonObject
from retort.spec import STAGES
from retort.store import MANIFEST, SCRATCH, Folder, Store, store_errors
from retort.store.urls import filesystem, is_missing

NAME = re.compile(r"[0-9a-f]{16}")
# What is done with jobs beside running them; each has artifacts of its own.
TRIALS = ("plan", "sweep")
ARTIFACTS, LEDGER, LEASES = "artifacts", "ledger", "leases"
# The file that a run writes first into the folder of an artifact, also when it continues there.
BEGUN = f"{SCRATCH}inputs.json"

Key = tuple[str, str]  # stage, or LEDGER, and name
FileFacts = tuple[int, float]  # a file's bytes, and when it was written, seconds since 1970


@dataclass(frozen=True)
class StoredFolder:
    """A folder of the store: an artifact, or a ledger where `stage` is "ledger".

    `changed_at` is when the latest of its files was written, in seconds since 1970.
    """

    stage: str
    name: str
    changed_at: float
    num_bytes: int
    num_files: int
    is_finished: bool

    @property
    def key(self) -> Key:
        """Its stage and name."""
        return self.stage, self.name


@dataclass(frozen=True)
class JobRecord:
    """What is stored under a job's name: the artifacts of its latest run, and its latest report."""

    name: str
    artifacts: dict[str, str]
    report: JsonObject


def items_in(store: Store, part: str) -> list[StoredFolder]:
    """Returns the artifacts or the ledgers (`part`) of a store."""
    grouped: dict[Key, dict[str, FileFacts]] = defaultdict(dict)
    for path, facts in files_in(f"{store.uri}/{part}").items():
        stage, _, rest = (LEDGER, "", path) if part == LEDGER else path.partition("/")
        name, _, file = rest.partition("/")
        if file and NAME.fullmatch(name) and stage in (*STAGES, LEDGER):
            grouped[stage, name][file] = facts
    return [item_of(key, files) for key, files in grouped.items()]


def item_of(key: Key, files: dict[str, FileFacts]) -> StoredFolder:
    """Returns the facts of a folder with these files; there is at least one."""
    sizes, times = zip(*files.values(), strict=True)
    return StoredFolder(*key, max(times), sum(sizes), len(files), MANIFEST in files)


def files_in(uri: str) -> dict[str, FileFacts]:
    """Returns the facts of all files below a folder, unfinished parts too."""
    files = filesystem(uri)
    root = str(files._strip_protocol(uri)).rstrip("/")
    with store_errors(uri):
        found = files.find(root, detail=True) if files.exists(root) else {}
    return {
        path.removeprefix(root).lstrip("/"): (int(facts["size"] or 0), _written_at(facts))
        for path, facts in found.items()
    }


def _written_at(facts: JsonObject) -> float:
    """Returns when a file was written, seconds since 1970; in a store that does not report it, no
    file is old."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = facts.get(name)
        value = datetime.fromisoformat(value) if isinstance(value, str) else value
        if value is not None:
            return value.timestamp() if isinstance(value, datetime) else float(value)
    return math.inf


def jobs_of(store: Store) -> list[JobRecord]:
    """Returns the records of all jobs. A folder that cannot be read is an error, never no job."""
    root = f"{store.uri}/jobs"
    files = filesystem(root)
    with store_errors(root):
        try:
            found = files.ls(str(files._strip_protocol(root)), detail=False)
        except FileNotFoundError:
            found = []
    names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)
    folders = {name: store.job(name) for name in names}
    records = [
        JobRecord(name, read_json(folder, "artifacts.json"), read_json(folder, "report.json"))
        for name, folder in folders.items()
    ]
    of_trials = ((name, folder, kind) for name, folder in folders.items() for kind in TRIALS)
    return records + [
        JobRecord(name, used, {})
        for name, folder, kind in of_trials
        if (used := read_json(folder, f"{kind}-artifacts.json"))
    ]


def folder_of(store: Store, key: Key) -> Folder:
    """Returns the folder of a key."""
    return store.ledger(key[1]) if key[0] == LEDGER else store.artifact(*key)


def clear(folder: Folder, files: dict[str, FileFacts]) -> bool:
    """Removes the files of a folder, the manifest first; returns whether all are gone.

    It stops when a run begins in the folder, because that may write files of the same names.
    """
    begun = files.get(BEGUN)
    for name in sorted(files, key=lambda name: (name != MANIFEST, name == BEGUN, name)):
        if _facts(folder, BEGUN) != begun:
            return False
        folder.remove(name)
    if "://" not in folder.uri:
        root = Path(folder.uri)
        for path in (*sorted(root.rglob("*"), reverse=True), root):
            with contextlib.suppress(OSError):  # a process writes into it again
                path.rmdir()
    return True


def _facts(folder: Folder, name: str) -> FileFacts | None:
    """Returns the facts of a file, or None where there is none."""
    path = f"{folder.uri}/{name}"
    with store_errors(path), contextlib.suppress(FileNotFoundError):
        facts = filesystem(path).info(path)
        return int(facts["size"] or 0), _written_at(facts)
    return None


def read_json(folder: Folder, name: str) -> JsonObject:
    """Returns the content of a JSON file; an empty dict where there is no such file. Raises
    `DamagedError` for one that is no JSON, for then it is not known which folders it uses."""
    try:
        found = folder.read_json(name)
    except StoreError as error:
        if is_missing(error):
            return {}
        raise
    return found if isinstance(found, dict) else {}
