"""From a model's name to where it lies, and to the spec of the job that made it.

Note: a name may be a version in MLflow, a job, a folder or a hub id. What is written as a
path is one; of what is not, MLflow is asked first.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.data import task_types
from retort.errors import SpecError, did_you_mean
from retort.jobs.cleanup import versions
from retort.plugins import module_names
from retort.records import JsonObject
from retort.spec import JobSpec, build_at
from retort.spec.fingerprint import examples_of
from retort.spec.flat import put
from retort.store import MANIFEST, Folder, Store, model_folder
from retort.tracking import Version, open_registry, tracking_uri
from retort.tracking.registry import CHALLENGER, CHAMPION, by_alias, by_number, find_model
from retort.tracking.server import exists

BASELINE = "-baseline"
# The end of the name that a job of two models gets where its user gives it none.
DISTILLED = "-distilled"
VERSION = re.compile(r"([^/]+)/(\d+)")
JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class FoundModel:
    """A model: what it is called, its folder, URL or hub id, and its job's spec where one made
    it."""

    label: str
    address: str
    spec: JsonObject

    @contextmanager
    def here(self) -> Iterator[str]:
        """Gives the model as something an engine can open; one in a far store is fetched."""
        root, _, prefix = self.address.rpartition("/")
        is_artifact = bool(root) and Folder(root).has(MANIFEST)
        if "://" not in self.address and not is_artifact:
            yield self.address
            return
        with Folder(root).checked().local_copy(prefix) as folder:
            yield str(folder)


def find(store: Store, name: str) -> FoundModel:
    """Returns the model of a name. Raises `SpecError`, which lists what is registered."""
    path = Path(name).expanduser()
    if "/" in name or name.startswith(("~", ".")):
        if path.is_dir():
            return _in_folder(path.resolve())
        if not VERSION.fullmatch(name.removesuffix(BASELINE)):
            model_folder.locate(name, "model_name")  # or it says that there is no such folder
            return FoundModel(name, name, {})
    client = registry(store)
    if found := _made(store, client, name):
        return found
    if name.strip() and path.is_dir():
        return _in_folder(path.resolve())
    for made_by in makers(name) if name.endswith(BASELINE) else ():
        if student := _made(store, client, made_by):
            if not student.spec:
                raise SpecError(f"{name}: the report of {student.label} is gone, and its base with")
            base = student.spec["train"]["student"]
            return FoundModel(base, base, student.spec)
    raise _unknown(client, name)


def rivals(store: Store, name: str, against: str | None) -> tuple[FoundModel, FoundModel | None]:
    """Returns the model that is to be judged, and the one in use that it is compared with.

    Of a plain registered name these are its challenger (else its newest version) and its champion;
    `against` names another version or model. The second is None where no champion is, or where the
    first is the champion. Raises `SpecError` for an unknown model.
    """
    client, model = registry(store), re.split("[@/]", name)[0]
    is_plain = client is not None and name == model and bool(name)
    chosen = is_plain and (by_alias(client, name, CHALLENGER) or _newest(client, name))
    judged = find(store, f"{chosen.name}/{chosen.version}" if chosen else name)
    if against is not None and against != CHAMPION:
        return judged, find(store, f"{model}/{against}" if against.isdigit() else against)
    champion = by_alias(client, model, CHAMPION) if client is not None and model else None
    if champion is None:
        if against:
            raise SpecError(f"--against {CHAMPION}: {name} has none; `retort promote` makes one")
        return judged, None
    found = find(store, f"{champion.name}/{champion.version}")
    return judged, None if found.address == judged.address else found


def spec_to_ask(
    found: FoundModel, rows: Any, task_type: str | None, evaluate: Mapping[str, Any]
) -> JsonObject:
    """Returns the job, as JSON, by which a model is asked: that which made it, with other rows.

    Raises `SpecError` where nobody says the task type.
    """
    alone = {"name": "evaluate", "generate": {"teacher": found.address, "top_k": 0}}
    sections = copy.deepcopy(found.spec) or {**alone, "train": {"student": found.address}}
    prepare, knobs = sections.setdefault("prepare", {}), sections.setdefault("evaluate", {})
    kind = task_type or prepare.get("task_type")
    if kind is None:
        known = ", ".join(module_names(task_types))
        raise SpecError(
            f"task_type: missing, and no job of Retort's made {found.label}; give one of {known}, "
            "or package.module for one of your own"
        )
    prepare |= {"task_type": kind, "test": rows, "test_ratio": 0.0}
    # A job must have rows to train on; these are not read.
    prepare |= {"train": rows, "validation": None, "validation_ratio": 0.0}
    knobs |= evaluate
    return sections


def built(sections: JsonObject, knobs: Mapping[str, Any]) -> JobSpec:
    """Returns the spec of a job's JSON with some knobs changed. Raises `SpecError` for a knob that
    there is not."""
    for key, value in knobs.items():
        try:
            put(sections, key, value)
        except (AttributeError, TypeError):
            raise SpecError(
                f"knobs: '{key}' does not lead to a knob; see `retort schema`"
            ) from None
    return build_at(sections, Path.cwd())


def prepared_for(found: FoundModel) -> Folder:
    """Returns the examples that a model was trained on. Raises `SpecError` where they are gone."""
    root = found.address.rpartition("/")[0]
    manifest = Folder(root).manifest() if root else None
    inputs = (manifest or {}).get("ingredients", {}).get("inputs", {})
    stage = examples_of(inputs)
    prepared = Store(root.rpartition("/artifacts/")[0]).artifact(stage, inputs.get(stage, "none"))
    if prepared.manifest() is None:
        raise SpecError(
            f"{found.label}: the examples that it was trained on are not in its store; name a "
            "student whose job is there, or run the job again"
        )
    return prepared


def makers(name: str) -> tuple[str, ...]:
    """Returns the names of the students, and of their jobs, that a model's name may come from."""
    stem = name.removesuffix(BASELINE)
    return (name,) if stem == name else (stem, f"{stem}{DISTILLED}")


def registered(store: Store) -> Iterator[tuple[Version, tuple[str, ...]]]:
    """Yields every version of every registered model with its aliases, by name, the newest first.

    Raises `StoreError` where MLflow does not answer.
    """
    client = registry(store)
    known = list(versions(client)) if client else []
    for name in sorted({version.name for version in known}):
        model = find_model(client, name)
        aliases = model.aliases.items() if model else ()
        for number in sorted((int(v.version) for v in known if v.name == name), reverse=True):
            if version := by_number(client, name, str(number)):  # not deleted meanwhile
                yield version, tuple(sorted(a for a, of in aliases if str(of) == version.version))


def _made(store: Store, client: Any, name: str) -> FoundModel | None:
    """Returns a student of Retort's: a version of a registered model, or what a job of the name
    released last."""
    if client and (version := _version(client, name)):
        label = f"{version.name}/{version.version}"
        root = _root(store, version)
        if root is None:
            where = version.source or "unknown: it was not registered by Retort"
            raise SpecError(f"{label}: its folder is gone ({where}); run its job again")
        return FoundModel(label, f"{root}/model", _spec(root))
    if JOB.fullmatch(name) and store.job(name).has("report.json"):
        made = store.job(name).read_json("report.json").get("fingerprints", {})
        root = store.artifact("release", made.get("release", "none")).uri
        if Folder(root).has(MANIFEST):
            return FoundModel(name, f"{root}/model", _spec(root))
    return None


def _version(client: Any, name: str) -> Version | None:
    if numbered := VERSION.fullmatch(name):
        return by_number(client, numbered[1], numbered[2])
    model, at, alias = name.partition("@")
    if not model.strip() or set("/:") & set(name):  # MLflow would fail at such a name
        return None
    if at:
        return by_alias(client, model, alias)
    for alias in (CHAMPION, CHALLENGER):
        if found := by_alias(client, name, alias):
            return found
    return _newest(client, name)


def _newest(client: Any, name: str) -> Version | None:
    newest = max((int(v.version) for v in versions(client) if v.name == name), default=None)
    return None if newest is None else by_number(client, name, str(newest))


def _in_folder(folder: Path) -> FoundModel:
    """Returns the model in a folder: one that Retort released knows its job."""
    root = str(folder.parent)
    is_release = folder.name == "model" and (folder.parent / MANIFEST).is_file()
    spec = _spec(root) if is_release else {}
    return FoundModel(str(folder), str(folder), spec)


def _root(store: Store, version: Version) -> str | None:
    """Returns the release's artifact of a version: where it was registered from, or here, where
    the whole store was moved."""
    root = version.source.rpartition("/")[0]
    here = store.artifact("release", root.rpartition("/")[2] or "none").uri
    return next((uri for uri in (root, here) if uri and Folder(uri).has(MANIFEST)), None)


def _report(root: str) -> JsonObject:
    """Returns the report that a release was made from; nothing where it is gone."""
    manifest = Folder(root).read_json(MANIFEST)
    made_from = manifest.get("ingredients", {}).get("inputs", {}).get("report", "none")
    folder = Store(root.rpartition("/artifacts/")[0]).artifact("report", made_from)
    found: JsonObject = folder.read_json("report.json") if folder.has("report.json") else {}
    return found


def _spec(root: str) -> JsonObject:
    spec: JsonObject = _report(root).get("ran", {}).get("spec", {})
    return spec


def main_score(store: Store, version: Version) -> tuple[str | None, float | None]:
    """Returns the metric that decided at a version's gate, and the student's value in it."""
    root = _root(store, version)
    report = _report(root) if root else {}
    metric = report.get("comparison", {}).get("metric")
    own = report.get("models", {}).get("student", {}).get("metrics", {}).get(metric)
    return metric, own and float(own["value"])


def registry(store: Store) -> Any:
    """Returns a client of MLflow; None where nothing was registered yet."""
    return open_registry(store) if exists(tracking_uri(store)) else None


def _unknown(client: Any, name: str) -> SpecError:
    """Returns the error that says what could be named instead."""
    numbers: dict[str, list[str]] = {}
    for version in versions(client) if client else ():
        numbers.setdefault(version.name, []).append(str(version.version))
    listed = "; ".join(
        f"{model} (version {', '.join(sorted(found, key=int))})"
        for model, found in sorted(numbers.items())
    )
    return SpecError(
        f"no model '{name}'{did_you_mean(name, numbers)}; registered: {listed or 'none yet'}. Name "
        "one of these, also as NAME@champion, NAME/VERSION or NAME-baseline, or a model's folder "
        "or hub id"
    )
