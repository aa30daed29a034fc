"""`retort verify`: compares what is stored with what was written, and keeps what can be read of
damaged ledgers."""

from collections.abc import Iterator
from dataclasses import dataclass

from retort.errors import DamagedError, SpecError, StoreError, did_you_mean
from retort.jobs.cleanup.reading import ARTIFACTS, LEDGER, Key, folder_of, items_in
from retort.jobs.cleanup.roots import ledgers_of, stage_of
from retort.records import JsonObject
from retort.store import MANIFEST, Folder, InputFolder, Store
from retort.store.ledger import CONTEXT_FILE, ENGINE_FILE
from retort.store.ledger.segment import open_segment, repair_segment, segment_names
from retort.store.urls import is_missing

RECORDS = ("artifacts.json", "report.json")


@dataclass(frozen=True)
class CheckedFolder:
    """A folder of a store that was checked: an artifact of a stage, a ledger, or a job's records.

    `damages` are the messages of what is not as it was written, each with its remedy.
    """

    kind: str
    name: str
    num_files: int
    num_bytes: int
    damages: tuple[str, ...]


def verify(store: Store, job: str | None) -> Iterator[CheckedFolder]:
    """Yields each folder of a job's latest run, checked; of the whole store where `job` is None.

    All files are read. Raises `SpecError` for an unknown job, `StoreError` where the store fails.
    """
    names = sorted({name.partition("/")[0] for name in Folder(f"{store.uri}/jobs").files()})
    if job is not None and job not in names:
        raise SpecError(
            f"no job '{job}' in {store.uri}{did_you_mean(job, names)}; its jobs: "
            f"{', '.join(names) or 'none'}"
        )
    manifests: dict[Key, JsonObject] = {}
    keys: list[Key] = [item.key for item in items_in(store, ARTIFACTS) if item.is_finished]
    for name in names if job is None else [job]:
        folder = store.job(name)
        yield _checked("job", folder, [file for file in RECORDS if folder.has(file)], [])
        if job:
            keys = _used_by(folder)
    for key in keys:
        folder = InputFolder(store.artifact(*key).uri)
        try:
            manifests[key] = folder.read_manifest()
            damages = folder.damages()
            sizes = {**folder.sizes(), MANIFEST: 0}
            yield CheckedFolder(*key, len(sizes), sum(sizes.values()), tuple(map(str, damages)))
        except StoreError as error:
            if not (isinstance(error, DamagedError) or is_missing(error)):
                raise
            yield CheckedFolder(*key, 1, 0, (str(error),))
    paid = items_in(store, LEDGER)
    used = ledgers_of(store, paid, manifests) if job else {item.key for item in paid}
    for item in paid:
        if item.key in used:
            folder = store.ledger(item.name)
            records = [file for file in (CONTEXT_FILE, ENGINE_FILE) if folder.has(file)]
            yield _checked(LEDGER, folder, records, segment_names(folder))


def repair(store: Store) -> Iterator[tuple[str, int, int]]:
    """Keeps the readable answers of all damaged segments of the store's ledgers.

    Yields the path of each damaged segment, which is moved aside, and how many of its answers were
    kept and lost; the next run asks for the lost ones again. Raises `StoreError`.
    """
    for item in items_in(store, LEDGER):
        folder = folder_of(store, item.key)
        for name in segment_names(folder):
            try:
                open_segment(folder, name)
            except DamagedError:
                kept, lost = repair_segment(folder, name)
                yield f"{folder.uri}/{name}", kept, lost


def _used_by(folder: Folder) -> list[Key]:
    """Returns the artifacts of a job's latest run; none where its record cannot be read."""
    try:
        artifacts = folder.read_json(RECORDS[0])
    except StoreError:
        return []
    return [(stage_of(label), name) for label, name in artifacts.items()]


def _checked(kind: str, folder: Folder, records: list[str], segments: list[str]) -> CheckedFolder:
    """Returns a folder of JSON files and segments, checked."""
    damages: list[str] = []
    for name in (*records, *segments):
        try:
            if name in records:
                folder.read_json(name)
            else:
                open_segment(folder, name)
        except DamagedError as error:
            damages.append(str(error))
    sizes = folder.sizes()
    return CheckedFolder(kind, folder.name, len(sizes), sum(sizes.values()), tuple(damages))
