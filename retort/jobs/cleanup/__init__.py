"""What of a store may go: all that no job's latest run, no registered model and no recent change
leads to.

A plan changes nothing, and `remove` looks again before each folder that it takes. The surprise: an
artifact keeps everything it was made from, however old that is, so that it can be explained.
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
from retort.jobs.cleanup.roots import held_by, reached_from, registered_in, used_by, versions
from retort.store import Folder, Store

__all__ = ["KEEP_DAYS", "CleanupPlan", "StoredFolder", "leftovers", "plan", "remove", "versions"]

KEEP_DAYS, DAY_SECONDS = 30.0, 86_400.0
# A stage ends after a day unless its spec says otherwise (runtime.timeout_seconds): what is not
# finished may be under way for so long, and a ledger be added to, whatever was asked for.
LEAST_DAYS = 2.0
# What jobs refer to is read again before a folder is removed, if it was read longer ago than this.
AGAIN_SECONDS = 1.0
JOB, INPUT = "of a job's latest run", "what these were made from"
MODEL, MAYBE = "of a registered model", "maybe of a registered model"
UNFINISHED, PAID = "not finished, maybe under way", "paid answers (removed only with --ledger)"
NAMED = "paid answers of artifacts that stay"


@dataclass(frozen=True)
class CleanupPlan:
    """What would go, the largest first, and what stays: by the reason why, how many folders and how
    many bytes.

    `unknown` says why it is not known what registered models refer to; then no release goes.
    """

    store: Store
    goes: tuple[StoredFolder, ...]
    stays: dict[str, tuple[int, int]]
    unknown: str | None
    at: float

    @property
    def num_bytes(self) -> int:
        """All that would go."""
        return sum(item.num_bytes for item in self.goes)


def plan(
    store: Store, keep_days: float = KEEP_DAYS, *, registry: bool = True, ledgers: bool = False
) -> CleanupPlan:
    """Returns what may go of a store.

    There stays what jobs last used or reported, what registered models are (unless `registry` is
    False), what changed in the last `keep_days`, and what all these were made from. Ledgers stay;
    with `ledgers` only recent ones and those whose answers are in an artifact that stays.

    Raises `SpecError` for days below 0, `StoreError` where the store cannot be read, `DataError`
    for a manifest or report that is no JSON.
    """
    if not keep_days >= 0:
        raise SpecError(f"--keep-days: {keep_days:g}; give a number of days, 0 or more")
    now, items, paid = time.time(), items_in(store, ARTIFACTS), items_in(store, LEDGER)
    jobs = jobs_of(store)
    registered, unknown = registered_in(store, jobs) if registry else (set[Key](), None)
    if unknown:
        registered = {item.key for item in items if item.stage == "release"}
    roots = _recent(items, now, keep_days)
    roots |= dict.fromkeys(registered, MAYBE if unknown else MODEL)
    roots |= dict.fromkeys(used_by(jobs), JOB)
    reached = reached_from(store, roots)
    why = dict.fromkeys(reached, INPUT) | roots
    if ledgers:
        held = dict.fromkeys(held_by(store, paid, reached), NAMED)
        why |= _recent(paid, now, max(keep_days, LEAST_DAYS)) | held
    else:
        why |= {item.key: PAID for item in paid}
    goes = [item for item in (*items, *paid) if item.key not in why]
    goes.sort(key=lambda item: (-item.num_bytes, item.key))
    return CleanupPlan(store, tuple(goes), _totals([*items, *paid], why), unknown, now)


def remove(made: CleanupPlan) -> Iterator[tuple[StoredFolder, bool]]:
    """Removes what a plan says; yields each folder, and whether it is gone.

    One that changed since, or that a job has taken up since, stays. The manifest goes first, so
    that nothing half-removed is readable. Raises `StoreError` where the store refuses, and before
    anything is removed where it is not known what registered models refer to.
    """
    if made.unknown:
        raise StoreError(
            f"{made.unknown}; so it is not known what registered models refer to, and nothing was "
            "removed. Say where MLflow is (MLFLOW_TRACKING_URI) and start it, or give "
            "--no-registry to remove what no job refers to, registered or not"
        )
    paid = [item for item in made.goes if item.stage == LEDGER]
    live, read_at = set[Key](), -math.inf
    for item in made.goes:
        if time.monotonic() - read_at >= AGAIN_SECONDS:
            read_at = time.monotonic()
            reached = reached_from(made.store, used_by(jobs_of(made.store)))
            live = {*reached, *held_by(made.store, paid, reached)}
        folder = folder_of(made.store, item.key)
        standing = files_in(folder.uri)
        is_same = not standing or item_of(item.key, standing) == item
        yield item, is_same and item.key not in live and clear(folder, standing)


def leftovers(store: Store, *, delete: bool = False) -> int:
    """Returns how many things processes left that ended long ago, and removes them if asked to:
    leases on artifacts, and uploads that were never ended. Raises `StoreError`."""
    before = time.time() - LEAST_DAYS * DAY_SECONDS
    grouped: dict[str, dict[str, FileFacts]] = defaultdict(dict)
    for path, facts in files_in(f"{store.uri}/{LEASES}").items():
        name, _, file = path.partition("/")
        grouped[name][file] = facts
    old = {n: files for n, files in grouped.items() if max(at for _, at in files.values()) < before}
    for name, files in old.items() if delete else ():
        clear(Folder(f"{store.uri}/{LEASES}/{name}"), files)
    return len(old) + len(store.unfinished_uploads(before, remove=delete))


def _recent(items: Iterable[StoredFolder], now: float, keep_days: float) -> dict[Key, str]:
    """Returns why items stay that changed lately."""
    found: dict[Key, str] = {}
    for item in items:
        days = (now - item.changed_at) / DAY_SECONDS
        if days < keep_days:
            found[item.key] = f"changed in the last {keep_days:g} days"
        elif not item.is_finished and item.stage != LEDGER and days < LEAST_DAYS:
            found[item.key] = UNFINISHED
    return found


def _totals(items: list[StoredFolder], why: dict[Key, str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for item in (each for each in items if each.key in why):
        count, num_bytes = found.get(why[item.key], (0, 0))
        found[why[item.key]] = count + 1, num_bytes + item.num_bytes
    return found
