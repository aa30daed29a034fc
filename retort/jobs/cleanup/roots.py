"""What a cleanup must keep, and why: what jobs use, what is registered, and the inputs of these.

Note: where the registered models cannot be read, that is reported and never taken for none.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from retort.errors import StoreError
from retort.jobs.cleanup.reading import JobRecord, Key, StoredFolder, folder_of, read_json
from retort.records import JsonObject
from retort.spec import STAGES, rounds
from retort.store import MANIFEST, Store
from retort.store.ledger import CONTEXT_FILE
from retort.store.urls import public
from retort.tracking import open_registry, tracking_uri
from retort.tracking.promotion import mlflow_error
from retort.tracking.registry import SOURCE, TRAIN
from retort.tracking.server import exists

RELEASE = re.compile(r"artifacts/release/([^/]+)(?:/|$)")
PAGE = 1000  # versions in one request to MLflow
# Knobs whose model is asked through a ledger that no manifest names.
CONSULTED = ("expand.writer", "curate.judge", "curate.second_teacher", "evaluate.judge")

Manifests = dict[Key, JsonObject]  # empty where there is none


def used_by(jobs: list[JobRecord]) -> set[Key]:
    """Returns the artifacts that jobs last used, and those of their latest reports: a run in
    progress has not used all of them yet."""
    named = [names for job in jobs for names in (job.artifacts, job.report.get("fingerprints", {}))]
    return {(stage_of(label), name) for names in named for label, name in names.items()}


def registered_in(store: Store, jobs: list[JobRecord]) -> tuple[set[Key], str | None]:
    """Returns the artifacts of registered models, and the reason where they cannot be read.

    They are compared by name, whatever store they were registered from: it may have been moved.
    """
    uri = tracking_uri(store)
    place, found = public(uri), list[Any]()
    if exists(uri):
        try:
            found = list(versions(open_registry(store)))
        except StoreError as error:
            return set(), str(error)
    known = {(version.name, str(version.version)) for version in found}
    for job in jobs:
        registered = job.report.get("registered") or {}
        other = (job.report.get("mlflow") or {}).get("tracking_uri", place)
        is_here = (registered.get("name"), str(registered.get("version"))) in known
        if registered.get("version") and not is_here and (other != place or not exists(uri)):
            version = f"{registered['name']} version {registered['version']} of job {job.name}"
            return set(), f"{version} was registered at {other}, and {place} does not know it"
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
            raise mlflow_error(client.tracking_uri, error) from None
        yield from page
        token = page.token
        if not token:
            return


def reached_from(store: Store, roots: Iterable[Key]) -> Manifests:
    """Returns the manifests of artifacts and of all their inputs."""
    found: Manifests = {}
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found[key] = manifest = read_json(folder_of(store, key), MANIFEST)
            inputs = manifest.get("ingredients", {}).get("inputs", {})
            keys = [(stage_of(label), name) for label, name in inputs.items()]
            waiting += [each for each in keys if each[0] in STAGES]  # not the champion's digest
    return found


def ledgers_of(store: Store, paid: list[StoredFolder], reached: Manifests) -> set[Key]:
    """Returns the ledgers whose answers are in artifacts: the manifests of generate and evaluate
    name their own; that of a judge or a second teacher is found by the model it asked."""
    facts = [manifest.get("facts", {}) for manifest in reached.values()]
    named = {name for each in facts for name in (each.get("ledger"), *each.get("ledgers", ()))}
    sources = [m.get("ingredients", {}).get("sources", {}) for m in reached.values()]
    models = {public(each[knob]) for each in sources for knob in CONSULTED if knob in each}
    found = {folder.key for folder in paid if folder.name in named}
    for folder in paid if models else ():
        context = read_json(folder_of(store, folder.key), CONTEXT_FILE)
        if public(f"{context.get('engine')}: {context.get('model')}") in models:
            found.add(folder.key)
    return found


def stage_of(label: str) -> str:
    """Returns the stage of a job's label: that of `train-fine_tuning` is train, that of a round's
    answers and scores generate."""
    return rounds.STAGE_OF.get(first := label.partition("-")[0], first)
