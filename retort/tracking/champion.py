"""The champion: the released student in use under the registered name, which a new student is
compared with.

It is identified by the content of its released folder, not by its version, so that two versions of
one student are evaluated once. Where the folder is gone the job goes on and the gate refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass

from retort.errors import SpecError, StoreError
from retort.records import sha256_of
from retort.spec import JobSpec, Recipe, recipes
from retort.spec.fingerprint import UNREADABLE
from retort.store import MODEL, Artifact, Folder, open_store
from retort.tracking import Tracker

# The files that decide a model's answers; its card and the like do not.
FILES = (".safetensors", ".json", ".jinja", ".model")


@dataclass(frozen=True)
class Champion:
    """The version of the registered model, and its release as an input of stages.

    The artifact's name is the digest of the folder's content, or UNREADABLE.
    """

    version: str
    artifact: Artifact


def find(
    spec: JobSpec, train: Recipe, tracker: Tracker, warn: Callable[[str], None]
) -> Champion | None:
    """Returns the champion of the job's registered name, unless it is this very student.

    One that cannot be read is returned as unreadable, with a warning.
    """
    found = tracker.champion(spec.registered_name, train.name)
    if found is None:
        return None
    root = found.source.rpartition("/")[0]
    try:
        digest = _digest(root)
    except (ValueError, StoreError) as error:  # gone, no store of ours, or no JSON
        champion = f"the champion of {spec.registered_name}, version {found.version},"
        warn(f"warning: {champion} cannot be read: {error}; the student is not compared with it")
        digest = UNREADABLE
    return Champion(found.version, Artifact("release", digest, root, digest))


def with_champion(
    spec: JobSpec, sources: dict[str, str], tracker: Tracker, warn: Callable[[str], None]
) -> tuple[dict[str, Recipe], Champion | None]:
    """Returns the recipes of a job, and the champion that its student is compared with, if any."""
    plain = recipes(spec, sources)
    found = find(spec, plain["train"], tracker, warn)
    return (recipes(spec, sources, found.artifact.name) if found else plain), found


def _digest(root: str) -> str:
    """Returns the digest of a released model, from the digests in its artifact's manifest."""
    if not root:
        raise SpecError("it was not registered by Retort")
    manifest = Folder(open_store(root).uri).manifest()
    if manifest is None:
        raise StoreError(f"{root} is gone or incomplete")
    listed = {name: found["sha256"] for name, found in manifest["files"].items()}
    model = {n: d for n, d in listed.items() if n.startswith(f"{MODEL}/") and n.endswith(FILES)}
    return sha256_of(model)[:16]
