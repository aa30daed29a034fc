"""Questions about a job that change nothing: why a stage would run, what the teacher answered."""

import logging
from collections import Counter
from collections.abc import Iterator

from retort.errors import DataError
from retort.jobs.source_digests import source_digests
from retort.records import (
    Decision,
    Example,
    Quarantined,
    Record,
    Removed,
    Response,
    read_lines,
)
from retort.spec import INPUTS, JobSpec, Recipe, capture_of, differences, recipes
from retort.spec.fingerprint import CHAMPION, examples_of
from retort.stages.engine_settings import engine_of
from retort.stages.stage import read_decisions, read_responses, stream_examples
from retort.stages.teacher_requests import RequestPlan, ledger_name, request_context
from retort.stages.teachers import asked, each_job
from retort.store import MANIFEST, Folder, Store
from retort.store.ledger import CONTEXT_FILE, Ledger
from retort.store.urls import public_json
from retort.tracking import Tracker
from retort.tracking.champion import with_champion


def why(spec: JobSpec, store: Store) -> dict[str, list[str]]:
    """Returns why each stage, control and champion would run again; no reason if it is cached.

    The reasons are the ingredients that differ from the job's last artifact of that stage.
    """
    found: dict[str, list[str]] = {}
    latest = store.job(spec.name)
    last = latest.read_json("artifacts.json") if latest.has("artifacts.json") else {}
    warn = logging.getLogger("retort").warning
    sources, tracker = source_digests(spec), Tracker(store, warn)
    wanted, against = with_champion(spec, sources, tracker, warn)
    digests = {CHAMPION: against.artifact.digest} if against else {}
    for name, recipe in wanted.items():
        folder = store.artifact(recipe.stage, recipe.name)
        manifest = folder.manifest()
        stale = [i for i in recipe.inputs if found.get(i)]
        if manifest is None:
            found[name] = _reasons(store, recipe, last.get(name))
        elif stale:
            found[name] = [f"input {i} would be made again" for i in stale]
        elif manifest["input_digests"] != {i: digests[i] for i in recipe.inputs}:
            found[name] = ["an input was made again and has other content"]
        elif number := manifest["facts"].get("num_unreached"):
            found[name] = [f"{number:,} requests that failed for a passing reason are asked again"]
        else:
            found[name] = []
            artifact = folder.finished()
            assert artifact
            digests[name] = artifact.digest
    return found


def _reasons(store: Store, wanted: Recipe, last: str | None) -> list[str]:
    folder = store.artifact(wanted.stage, last) if last else None
    if folder is None or not folder.has(MANIFEST):
        return ["never finished in this store"]
    wanted_ingredients = public_json(wanted.ingredients)
    changed = differences(folder.read_manifest()["ingredients"], wanted_ingredients)
    return changed or ["a file of its artifact is missing or cut short"]


def rows(spec: JobSpec, store: Store) -> Iterator[tuple[Example, Response]]:
    """Yields each response in the ledger, with its example, in the order of the examples.

    The job need not be finished; before its examples are prepared there are none.
    """
    for own in asking(spec).values():
        try:
            plan, ledger, examples = _plan(own, store)
        except DataError:
            return
        for example in examples:
            for request, entry in plan.walk(example):
                if entry:
                    yield example, plan.response(request, ledger.read(entry)[0])


def asking(spec: JobSpec) -> dict[str, JobSpec]:
    """Returns the jobs of the teachers who write answers, by the names of their artifacts."""
    jobs = each_job(spec).items()
    return {
        capture_of(name) if name else "generate": own
        for name, own in jobs
        if own.generate.mode == spec.generate.mode  # the others score what the first one wrote
    }


def rejected(spec: JobSpec, store: Store) -> Iterator[tuple[Example, Response, Decision]]:
    """Yields each response that curation rejected, with its example and the decision.

    A job that stopped because too few were kept has decisions too.
    """
    wanted = recipes(spec, source_digests(spec))
    prepared, generated, curated = (
        store.artifact(stage, wanted[stage].name).checked()
        for stage in (examples_of(wanted), *INPUTS["report"][1:3])
    )
    if generated.manifest() is None or not curated.has("decisions.jsonl"):
        return
    bad = {d.id: d for d in read_decisions(curated).values() if not d.kept}
    responses = [r for r in read_responses(generated) if r.id in bad]
    of_bad = {r.example_id for r in responses}
    splits = stream_examples(prepared, "train", "validation")
    examples = {e.id: e for e in splits if e.id in of_bad}
    for response in responses:
        yield examples[response.example_id], response, bad[response.id]


def quarantined(spec: JobSpec, store: Store) -> Iterator[Quarantined]:
    """Yields the bad rows of the job's files, with their places and what is wrong with them."""
    yield from _left_out(spec, store, "quarantine.jsonl", Quarantined)


def removed(spec: JobSpec, store: Store) -> Iterator[Removed]:
    """Yields the good rows that are not asked, and why: copies, leaks of held-out rows ..."""
    yield from _left_out(spec, store, "removed.jsonl", Removed)


def _left_out(spec: JobSpec, store: Store, name: str, shape: type[Record]) -> list[Record]:
    prepared = _examples(spec, store).checked()
    return read_lines(shape, prepared.read(name)) if prepared.has(name) else []


def _examples(spec: JobSpec, store: Store) -> Folder:
    """Returns the artifact with a job's examples."""
    wanted = recipes(spec, source_digests(spec))
    return store.artifact(name := examples_of(wanted), wanted[name].name)


def what_is_asked(spec: JobSpec, store: Store) -> str:
    """Returns in one sentence how many requests a run would send to the teacher, and why."""
    try:
        plan, ledger, examples = _plan(spec, store)
    except DataError:
        has_own = spec.generate.route is not None and spec.generate.route.key is not None
        return f"every row {'of its own ' * has_own}is sent to the teacher"
    counts: Counter[str] = Counter()
    for example in examples:
        for request, entry in plan.walk(example):
            unusable = None if entry else ledger.find(request.key)
            counts["cached" if entry else unusable.state if unusable else "new"] += 1
    missing = ", ".join(f"{n:,} {state}" for state, n in counts.items() if state != "cached")
    known = f"{counts['cached']:,} responses are in the ledger"
    if not missing:
        return f"{known}, none is requested"
    return f"{known}; requested: {missing}{_changed_context(spec, store, ledger)}"


def _changed_context(spec: JobSpec, store: Store, ledger: Ledger) -> str:
    """Returns which knobs of the requests changed since the job's last run, so that it has another
    ledger now."""
    latest = store.job(spec.name)
    last = latest.read_json("artifacts.json") if latest.has("artifacts.json") else {}
    route = spec.generate.route
    name = capture_of(route.order[0]) if route else "generate"
    folder = store.artifact("generate", last.get(name, "none"))
    manifest = folder.manifest()
    if len(ledger) or manifest is None:
        return ""
    was = store.ledger(manifest["facts"]["ledger"])
    if not was.has(CONTEXT_FILE):
        return ""
    lines = differences(was.read_json(CONTEXT_FILE), public_json(request_context(spec)))
    return f" (the requests changed: {'; '.join(lines)})" if lines else ""


def _plan(spec: JobSpec, store: Store) -> tuple[RequestPlan, Ledger, Iterator[Example]]:
    prepared = _examples(spec, store)
    if prepared.manifest() is None:
        raise DataError(f"{spec.name}: no examples prepared in this store; run the job first")
    ledger = Ledger(store.ledger(ledger_name(request_context(spec))), engine_of(spec).parse)
    ledger.load()
    examples = stream_examples(prepared.checked(), "train", "validation")
    return RequestPlan(spec, ledger), ledger, asked(spec, examples)
