"""The registered models: one version for each release, which points to the weights in the store.

The facts of a version are in its tags, all named `retort.*`. An alias moves last, so that an
interrupted registration is completed by doing it again.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.store import Folder
from retort.store.urls import public
from retort.tracking import flavor
from retort.tracking.names import safe_names

CHALLENGER, CHAMPION, NONE = "challenger", "champion", "none"
GATE, SOURCE, TRAIN = "retort.gate", "retort.source", "retort.train"
EXPORTS = "retort.exports"
CONTENT, COMPARED, FORMER = "retort.content", "retort.champion", "retort.former_champion"
# MLflow's tag that leads from a logged model to its versions.
VERSIONS_OF_MODEL = "mlflow.modelVersions"


@dataclass(frozen=True)
class ReleasedStudent:
    """A released student that is about to be registered.

    `source` is its folder; `train` is the name and `content` the digest of its training's artifact;
    `champion` is the version it was compared with; `scores` are shown on its page in MLflow;
    `exports` are the formats that passed, which lie beside it.
    """

    name: str
    source: str
    gate_passed: bool
    train: str
    content: str
    champion: str = NONE
    scores: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    log_weights: bool = False
    exports: tuple[str, ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its version."""
        return {
            GATE: "passed" if self.gate_passed else "refused",
            SOURCE: self.source,
            TRAIN: self.train,
            CONTENT: self.content,
            COMPARED: self.champion,
            **({EXPORTS: ", ".join(self.exports)} if self.exports else {}),
        }


@dataclass(frozen=True)
class Version:
    """A version of a registered model, read from its tags: see `ReleasedStudent`."""

    name: str
    version: str
    gate: str
    source: str
    train: str
    compared_with: str
    former: str


def find_model(client: Any, name: str) -> Any:
    """Returns a registered model, or None for an unknown name."""
    return _existing(client.get_registered_model, name)


def by_alias(client: Any, name: str, alias: str) -> Version | None:
    """Returns the version that an alias of a registered model points to."""
    model = find_model(client, name)
    number = model.aliases.get(alias, NONE) if model else NONE
    return by_number(client, name, str(number))


def by_number(client: Any, name: str, version: str) -> Version | None:
    """Returns a version of a registered model, or None for an unknown number."""
    found = None if version == NONE else _existing(client.get_model_version, name, version)
    if found is None:
        return None
    known = {**dict.fromkeys((GATE, SOURCE, TRAIN), ""), COMPARED: NONE, FORMER: NONE, **found.tags}
    tags = (known[tag] for tag in (GATE, SOURCE, TRAIN, COMPARED, FORMER))
    return Version(name, str(found.version), *tags)


def _existing(get: Callable[..., Any], *key: str) -> Any:
    """Returns what `get` finds, or None where MLflow answers that it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*key)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def register(client: Any, run: Any, student: ReleasedStudent) -> str:
    """Makes a version of a released student, the challenger if it passed the gate.

    Returns the version's number. The same student from the same folder gets no second version: an
    earlier run may have been killed between the registration and the end of its stage.
    """
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it exists already
        client.create_registered_model(student.name)
    same = {SOURCE: student.source, CONTENT: student.content}
    earlier = [
        found
        for found in client.search_model_versions(f"name = '{student.name}'")
        if same.items() <= found.tags.items()
    ]
    if earlier:
        version = earlier[0].version
        for tag, value in student.tags.items():
            client.set_model_version_tag(student.name, version, tag, value)
    else:
        version = _new_version(client, run, student)
    if student.gate_passed:
        client.set_registered_model_alias(student.name, CHALLENGER, str(version))
    return str(version)


def _new_version(client: Any, run: Any, student: ReleasedStudent) -> str:
    """Logs the model with its scores, and makes a version of it that MLflow can load.

    The version points to the release in the store. A server refuses a path, so that there it points
    to the logged model, which holds the weights if `log_weights`, else MLflow's files with the path
    of the weights; the tags name the folder.
    """
    at_server = client.tracking_uri.startswith("http")
    is_logged = at_server and ("://" not in student.source or student.log_weights)
    model = _logged_model(client, run, student, with_files=is_logged or student.log_weights)
    made = client.create_model_version(
        student.name,
        source=model.model_uri if is_logged else student.source.rpartition("/")[0],
        run_id=run.info.run_id,
        tags=student.tags,
        model_id=model.model_id,
        description=f"Distilled by Retort. Its folder: {public(student.source)}",
    )
    versions = json.dumps([{"name": student.name, "version": str(made.version)}])
    client.set_logged_model_tags(model.model_id, {VERSIONS_OF_MODEL: versions})
    return str(made.version)


def _logged_model(client: Any, run: Any, student: ReleasedStudent, with_files: bool) -> Any:
    """Returns the student as a logged model of the job's run, with its scores; with the files by
    which MLflow loads it, and its weights if `log_weights`."""
    from mlflow.entities import LoggedModelOutput, Metric

    name = "".join("_" if letter in "/:.%\"'" else letter for letter in student.name)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        tags=student.tags,
        params=student.params,
        model_type="distilled student",
    )
    now = run.info.start_time
    scores = [
        Metric(key, value, now, 0, model_id=model.model_id, run_id=run.info.run_id)
        for key, value in safe_names(student.scores).items()
    ]
    client.log_batch(run.info.run_id, metrics=scores)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    if with_files:
        _log_files(client, model.model_id, student)
    client.finalize_logged_model(model.model_id, "READY")
    return model


def _log_files(client: Any, model_id: str, student: ReleasedStudent) -> None:
    root, _, name = student.source.rpartition("/")
    with (
        Folder(root).checked().local_copy(name) as weights,
        tempfile.TemporaryDirectory(prefix="retort-") as scratch,
    ):
        place = Path(scratch)
        if student.log_weights:
            for path in (path for path in weights.rglob("*") if path.is_file()):
                link = place / name / path.relative_to(weights)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        address = name if student.log_weights else str(weights.resolve())
        for file, data in flavor.files(student.name, address, weights).items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(data)
        client.log_model_artifacts(model_id, scratch)
