"""What must stay, and why: what jobs use, what is registered, and all that these were made from.

The surprise: where it cannot be known what is registered, that is said, and never taken for
nothing.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from retort.errors import StoreError
from retort.jobs.cleanup.reading import JobRecord, Key, StoredFolder, folder_of, read_json
from retort.spec import STAGES
from retort.store import MANIFEST, Store
from retort.store.ledger import CONTEXT_FILE
from retort.tracking import open_registry, tracking_uri, without_secrets
from retort.tracking.registry import SOURCE, TRAIN
from retort.tracking.server import is_there

RELEASE = re.compile(r"artifacts/release/([^/]+)(?:/|$)")
PAGE = 1000  # versions that MLflow is asked for at a time
# Knobs whose model is asked through a ledger that no manifest names.
ASKED = ("curate.judge", "curate.second_teacher", "evaluate.judge")

Manifests = dict[Key, dict[str, Any]]  # empty where there is none


def used_by(jobs: list[JobRecord]) -> set[Key]:
    """Returns the artifacts that jobs last used, and those of their latest reports: a run under way
    has not used all of them yet."""
    told = [names for job in jobs for names in (job.artifacts, job.report.get("fingerprints", {}))]
    return {(stage_of(label), name) for names in told for label, name in names.items()}


def registered_in(store: Store, jobs: list[JobRecord]) -> tuple[set[Key], str | None]:
    """Returns the artifacts of registered models, and why they are not known where they are not.

    They count by name, wherever they were registered from: a store may have been moved since.
    """
    uri = tracking_uri(store)
    place, found = without_secrets(uri), list[Any]()
    if is_there(uri):
        try:
            found = list(versions(open_registry(store)))
        except StoreError as error:
            return set(), str(error)
    known = {(version.name, str(version.version)) for version in found}
    for job in jobs:
        told = job.report.get("registered") or {}
        other = (job.report.get("mlflow") or {}).get("tracking_uri", place)
        is_here = (told.get("name"), str(told.get("version"))) in known
        if told.get("version") and not is_here and (other != place or not is_there(uri)):
            what = f"{told['name']} version {told['version']} of job {job.name}"
            return set(), f"{what} was registered at {other}, and {place} does not know it"
    keys: set[Key] = set()
    for version in found:
        keys |= {("train", version.tags[TRAIN])} if version.tags.get(TRAIN) else set()
        if released := RELEASE.search(version.tags.get(SOURCE) or version.source or ""):
            keys.add(("release", released[1]))
    return keys, None


def versions(client: Any) -> Iterator[Any]:
    """Yields every version of every registered model. Raises `StoreError` where MLflow fails."""
    token = None
    while True:
        try:
            page = client.search_model_versions(max_results=PAGE, page_token=token)
        except Exception as error:  # whatever the server or the network raises
            place = without_secrets(client.tracking_uri)
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            cause = cause.replace(client.tracking_uri, place)
            raise StoreError(f"MLflow at {place}: {cause}") from None
        yield from page
        token = page.token
        if not token:
            return


def reached_from(store: Store, roots: Iterable[Key]) -> Manifests:
    """Returns the manifests of artifacts and of all that these were made from."""
    found: Manifests = {}
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found[key] = manifest = read_json(folder_of(store, key), MANIFEST)
            inputs = manifest.get("ingredients", {}).get("inputs", {})
            made_from = [(stage_of(label), name) for label, name in inputs.items()]
            waiting += [each for each in made_from if each[0] in STAGES]  # no champion's digest
    return found


def held_by(store: Store, paid: list[StoredFolder], reached: Manifests) -> set[Key]:
    """Returns the ledgers whose answers are in artifacts: generate's manifest names its own; that
    of a judge or a second teacher is known by the model that was asked."""
    named = {manifest.get("facts", {}).get("ledger") for manifest in reached.values()}
    sources = [m.get("ingredients", {}).get("sources", {}) for m in reached.values()]
    asked = {each[knob] for each in sources for knob in ASKED if knob in each}
    held = {item.key for item in paid if item.name in named}
    for item in paid if asked else ():
        context = read_json(folder_of(store, item.key), CONTEXT_FILE)
        if f"{context.get('engine')}: {context.get('model')}" in asked:
            held.add(item.key)
    return held


def stage_of(label: str) -> str:
    """Returns the stage of a job's label: `train-fine_tuning` is a train, too."""
    return label.partition("-")[0]
