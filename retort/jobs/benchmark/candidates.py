"""The models of a benchmark: where each is, and the digest of its content.

A student is that of the job's finished artifacts, found by its recipe, never by a path.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from retort.engines import find_engine, resolve
from retort.errors import SpecError, did_you_mean
from retort.jobs import inspection
from retort.jobs.source_digests import source_digests
from retort.records import JsonObject
from retort.spec import JobSpec, recipes, training_of
from retort.stages import engine_settings
from retort.store import Folder, Store, model_folder

GIVEN = ("teacher", "base")
# The most tokens of prompt and answer by default: vLLM on a CPU must have room for one such text.
MOST_TOKENS = 4096


@dataclass(frozen=True)
class BenchmarkedModel:
    """A model to run. `address` is a folder, a hub id, or the URI of the artifact that holds it;
    `digest` names its content. `settings` are its engine's, where it is behind an endpoint;
    `is_made` says that an artifact of the job holds it."""

    role: str
    address: str
    digest: str
    settings: JsonObject | None = field(default=None, repr=False)
    engine: str = ""
    is_made: bool = False

    @contextmanager
    def here(self) -> Iterator[str]:
        """Gives the model's folder, or its address where a library can open that."""
        if not self.is_made:
            yield self.address
            return
        with Folder(self.address).checked().local_copy("student") as folder:
            yield str(folder)


def candidates(spec: JobSpec, store: Store, roles: tuple[str, ...]) -> list[BenchmarkedModel]:
    """Returns the models of the given roles.

    Raises `SpecError` for a role that the job does not have, and for a student not yet trained.
    """
    for role in roles:
        if role not in spec.roles:
            raise SpecError(
                f"--models: {role} is none of this job's models, which are "
                f"{', '.join(spec.roles)}{did_you_mean(role, spec.roles)}"
            )
    given = ("teacher",) if spec.cut else GIVEN
    return [_input(spec, role) if role in given else _made(spec, store, role) for role in roles]


def _input(spec: JobSpec, role: str) -> BenchmarkedModel:
    """Returns a model that no stage of the job makes."""
    if role == "base":
        model = spec.base
        model_folder.check(model, "train.student")
        return BenchmarkedModel(role, model, model_folder.digest(model, "train.student"))
    model, name = spec.generate.teacher, resolve(spec.generate.engine, 0)
    engine = find_engine(name)
    if not engine.REMOTE:
        model_folder.check(model, "generate.teacher")
        return BenchmarkedModel(role, model, model_folder.digest(model, "generate.teacher"))
    settings = replace(engine_settings.settings_of(spec, ""), runtime=_live(spec))
    engine.check(settings)
    return BenchmarkedModel(role, model, engine_settings.teacher_digest(spec), vars(settings), name)


def _live(spec: JobSpec) -> JsonObject:
    """Returns the endpoint's runtime without batches, which take up to a day."""
    return {**spec.generate.runtime.model_dump(mode="json"), "batch": False}


def _made(spec: JobSpec, store: Store, role: str) -> BenchmarkedModel:
    """Returns a model that this job has trained or cut: its recipe names the artifact."""
    name = "cut" if role == "base" else training_of(role)
    recipe = recipes(spec, source_digests(spec))[name]
    artifact = store.artifact(recipe.stage, recipe.name).finished()
    if artifact is None:
        reasons = "; ".join(inspection.why(spec, store)[name])
        raise SpecError(
            f"the {role} of this job is not in {store.uri} ({reasons}); run the job first: retort "
            "run, with the same spec and --store"
        )
    return BenchmarkedModel(role, artifact.uri, artifact.digest, is_made=True)


def longest(spec: JobSpec, wanted: int | None) -> int:
    """Returns the most tokens of prompt and answer for all models of a job: `wanted`, else as many
    as teacher and base take, at most `MOST_TOKENS`.

    A student takes as many as its base. Raises `SpecError` for more than a model takes.
    """
    models = {"base": spec.base}
    if not find_engine(resolve(spec.generate.engine, 0)).REMOTE:
        models["teacher"] = spec.generate.teacher
    lengths = {role: _length(model_folder.locate(model, role)) for role, model in models.items()}
    known = {role: length for role, length in lengths.items() if length}
    if wanted is None:
        return min([MOST_TOKENS, *known.values()])
    for role, length in known.items():
        if wanted > length:
            raise SpecError(f"--max-length: {wanted}; the {role} takes at most {length} tokens")
    return wanted


def _length(folder: Path) -> int | None:
    """Returns a model's longest text in tokens; None where its configuration does not say."""
    config = model_folder.text_config(folder)
    length = config.get("max_position_embeddings") or config.get("n_positions")
    return int(length) if length else None


def is_folder(model: str) -> bool:
    """Whether a model is on this machine, so that it needs no network."""
    return Path(model).is_dir()
