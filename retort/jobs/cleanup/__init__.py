"""Removes from a store what is not recent and used by no job's latest run or registered model.

A plan changes nothing; `remove` looks again before each folder. Note: an artifact also keeps
everything it was made from, however old, so that its origin can be explained.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from retort.errors import SpecError, StoreError
from retort.jobs.cleanup.reading import (
    ARTIFACTS,
    LEASES,
    LEDGER,
    FileFacts,
    Key,
    StoredFolder,
    clear,
    files_in,
    folder_of,
    item_of,
    items_in,
    jobs_of,
)
from retort.jobs.cleanup.roots import ledgers_of, reached_from, registered_in, used_by, versions
from retort.store import Folder, Store

__all__ = ["KEEP_DAYS", "CleanupPlan", "StoredFolder", "leftovers", "plan", "remove", "versions"]

KEEP_DAYS, DAY_SECONDS = 30.0, 86_400.0
# Unfinished artifacts and ledgers younger than this are always kept, for a run may be writing them:
# a stage may take a day unless its spec allows more (runtime.timeout_seconds).
MIN_DAYS = 2.0
# The references of jobs are read again before a folder is removed, if they are older than this.
REREAD_SECONDS = 1.0
# The reasons to keep a folder.
JOB, INPUT = "of a job's latest run", "inputs of artifacts that are kept"
MODEL, MAYBE = "of a registered model", "perhaps of a registered model"
UNFINISHED, PAID = "not finished, perhaps in progress", "paid answers (removed only with --ledger)"
NAMED = "paid answers of artifacts that are kept"


@dataclass(frozen=True)
class CleanupPlan:
    """The folders to remove, the largest first, and the number and bytes of those to keep, by the
    reason.

    `unknown` is the reason why the registered models could not be read; then every release is kept.
    `at` is when the plan was made, in seconds since 1970.
    """

    store: Store
    to_remove: tuple[StoredFolder, ...]
    to_keep: dict[str, tuple[int, int]]
    unknown: str | None
    at: float

    @property
    def num_bytes(self) -> int:
        """The size of all folders to remove."""
        return sum(folder.num_bytes for folder in self.to_remove)


def plan(
    store: Store, keep_days: float = KEEP_DAYS, *, registry: bool = True, ledgers: bool = False
) -> CleanupPlan:
    """Returns which folders of a store to remove and which to keep.

    Kept are the artifacts that jobs last used or reported, those of registered models (unless
    `registry` is False), those that changed in the last `keep_days`, and their inputs. Ledgers are
    kept; with `ledgers` only recent ones and those whose answers are in an artifact that is kept.

    Raises `SpecError` for days below 0, `StoreError` where the store cannot be read or a manifest
    or report in it is damaged.
    """
    if not keep_days >= 0:
        raise SpecError(f"--keep-days: {keep_days:g}; give a number of days, 0 or more")
    now, artifacts, paid = time.time(), items_in(store, ARTIFACTS), items_in(store, LEDGER)
    jobs = jobs_of(store)
    registered, unknown = registered_in(store, jobs) if registry else (set[Key](), None)
    if unknown:
        registered = {folder.key for folder in artifacts if folder.stage == "release"}
    roots = _recent(artifacts, now, keep_days)
    roots |= dict.fromkeys(registered, MAYBE if unknown else MODEL)
    roots |= dict.fromkeys(used_by(jobs), JOB)
    reached = reached_from(store, roots)
    reasons = dict.fromkeys(reached, INPUT) | roots
    if ledgers:
        named = dict.fromkeys(ledgers_of(store, paid, reached), NAMED)
        reasons |= _recent(paid, now, max(keep_days, MIN_DAYS)) | named
    else:
        reasons |= {folder.key: PAID for folder in paid}
    to_remove = [folder for folder in (*artifacts, *paid) if folder.key not in reasons]
    to_remove.sort(key=lambda folder: (-folder.num_bytes, folder.key))
    to_keep = _totals([*artifacts, *paid], reasons)
    return CleanupPlan(store, tuple(to_remove), to_keep, unknown, now)


def remove(plan: CleanupPlan) -> Iterator[tuple[StoredFolder, bool]]:
    """Removes the folders of a plan; yields each one, and whether it is gone.

    A folder that changed since, or that a job uses since, is kept. The manifest is removed first,
    so that nothing half-removed is readable. Raises `StoreError` where the store fails, and before
    anything is removed where the registered models could not be read.
    """
    if plan.unknown:
        raise StoreError(
            f"{plan.unknown}; so the registered models are not known, and nothing was removed. "
            "Start MLflow and set MLFLOW_TRACKING_URI to its address, or give --no-registry to "
            "remove what no job uses, registered or not"
        )
    paid = [folder for folder in plan.to_remove if folder.stage == LEDGER]
    used, read_at = set[Key](), -math.inf
    for planned in plan.to_remove:
        if time.monotonic() - read_at >= REREAD_SECONDS:
            read_at = time.monotonic()
            reached = reached_from(plan.store, used_by(jobs_of(plan.store)))
            used = {*reached, *ledgers_of(plan.store, paid, reached)}
        folder = folder_of(plan.store, planned.key)
        files = files_in(folder.uri)
        is_same = not files or item_of(planned.key, files) == planned
        yield planned, is_same and planned.key not in used and clear(folder, files)


def leftovers(store: Store, *, delete: bool = False) -> int:
    """Returns how many leases and unfinished uploads processes left that ended long ago; `delete`
    removes them. Raises `StoreError`."""
    before = time.time() - MIN_DAYS * DAY_SECONDS
    grouped: dict[str, dict[str, FileFacts]] = defaultdict(dict)
    for path, facts in files_in(f"{store.uri}/{LEASES}").items():
        name, _, file = path.partition("/")
        grouped[name][file] = facts
    old = {n: files for n, files in grouped.items() if max(at for _, at in files.values()) < before}
    for name, files in old.items() if delete else ():
        clear(Folder(f"{store.uri}/{LEASES}/{name}"), files)
    return len(old) + len(store.unfinished_uploads(before, remove=delete))


def _recent(folders: Iterable[StoredFolder], now: float, keep_days: float) -> dict[Key, str]:
    """Returns the reason to keep each folder that changed recently."""
    found: dict[Key, str] = {}
    for folder in folders:
        days = (now - folder.changed_at) / DAY_SECONDS
        if days < keep_days:
            found[folder.key] = f"changed in the last {keep_days:g} days"
        elif not folder.is_finished and folder.stage != LEDGER and days < MIN_DAYS:
            found[folder.key] = UNFINISHED
    return found


def _totals(folders: list[StoredFolder], reasons: dict[Key, str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for folder in (each for each in folders if each.key in reasons):
        count, num_bytes = found.get(reasons[folder.key], (0, 0))
        found[reasons[folder.key]] = count + 1, num_bytes + folder.num_bytes
    return found
