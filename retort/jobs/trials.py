"""Trials: trainings of a job with other knobs, each judged by the validation examples.

Plans and sweeps are made of them. Each training and each scoring is an artifact of its own, found
again by whatever was made of the same. No teacher is asked, and no test example is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retort.errors import DataError, SpecError
from retort.jobs.run import JobRun
from retort.jobs.source_digests import plug_ins, source_digests
from retort.metrics.bootstrap import ExampleStatistics
from retort.metrics.kinds import matrix, value_of
from retort.spec import TRIAL, JobSpec, Recipe, of_trial, recipes
from retort.spec.fingerprint import INPUTS, examples_of
from retort.stages.engine_settings import engine_of
from retort.stages.evaluate.trial import STATISTICS
from retort.stages.train.check import check as check_train
from retort.store import Artifact, InputFolder

# Returns an artifact that a job has a recipe of, made from these inputs or cached.
Make = Callable[[JobRun, str, dict[str, Artifact]], Artifact]


@dataclass(frozen=True)
class Trial:
    """What one training came to.

    `statistics` are the student's in the metric that decides, by the validation example's id, and
    `teacher` those of the teacher's stored answers. `curve` are the records of the training, such
    as {"step": 40, "loss": 0.7, "validation_loss": 0.9}. `num_train` are the examples it learned
    from, and `seconds` what the training took, `step_seconds` its steps alone, `score_seconds` the
    answers.
    """

    name: str
    spec: JobSpec
    train: Artifact
    score: Artifact
    metric: str
    statistics: ExampleStatistics
    teacher: ExampleStatistics
    curve: list[dict[str, float]]
    num_train: int
    seconds: float
    step_seconds: float
    score_seconds: float

    @property
    def value(self) -> float:
        """The student's score in the metric that decides."""
        return value_of(self.metric, matrix(self.metric, self.statistics).sum(axis=0))

    @property
    def validation_losses(self) -> list[float]:
        """The validation loss after each pass."""
        return [each["validation_loss"] for each in self.curve if "validation_loss" in each]


def varied(spec: JobSpec, **knobs: Any) -> JobSpec:
    """Returns the job with other knobs of its training, without controls and on-policy rounds, in
    which the teacher is asked."""
    plain = {"controls": (), "on_policy": None, **knobs}
    return spec.model_copy(update={"train": spec.train.model_copy(update=plain)})


def run(
    job: JobRun,
    name: str,
    spec: JobSpec,
    inputs: dict[str, Artifact],
    make: Make | None = None,
) -> Trial:
    """Trains a job's student by `spec` and scores it; what is cached is not made again.

    `inputs` are the artifacts that the job's own training reads. Where `spec` has other knobs in
    `curate`, the responses are curated for it. `name` is the trial's within the job, as in
    `train-NAME`. Raises `SpecError` where the teacher would be asked, or no student can be trained.
    """
    make = make or cached_or_made
    wanted, found = recipes_of(job, spec), dict(inputs)
    for stage in ("curate", "cut"):
        if stage in wanted and wanted[stage].name != job.recipes[stage].name:
            job.recipes[f"{stage}-{name}"] = wanted[stage]
            read = {each: found[each] for each in wanted[stage].inputs}
            found[stage] = make(job, f"{stage}-{name}", read)
    job.recipes[f"train-{name}"] = wanted["train"]
    train = make(job, f"train-{name}", {each: found[each] for each in wanted["train"].inputs})
    job.recipes[f"evaluate-{name}"] = of_trial(wanted, wanted["train"])
    read = {name: found[name] for name in (examples_of(found), "generate")} | {TRIAL: train}
    return _read(name, spec, train, make(job, f"evaluate-{name}", read))


def cached_or_made(job: JobRun, name: str, inputs: dict[str, Artifact]) -> Artifact:
    """Returns an artifact as a stage's Prefect task does, without Prefect."""
    if found := job.cached(name, inputs):
        return found
    with job.alone(name):
        return job.cached(name, inputs) or job.make(name, inputs)


def stored(job: JobRun, make: Make | None = None) -> dict[str, Artifact]:
    """Returns the artifacts that a job's training reads. Raises `DataError` where the teacher's
    answers are not all stored."""
    made: dict[str, Artifact] = {}
    for name, recipe in job.recipes.items():
        if recipe.stage == "train":
            break
        read = {each: made[each] for each in recipe.inputs}
        if recipe.stage not in ("expand", "generate"):
            made[name] = (make or cached_or_made)(job, name, read)
        elif found := job.cached(name, read):
            made[name] = found
        else:
            raise DataError(
                f"{job.spec.name}: the teacher's answers are not stored yet, or some failed for a "
                "passing reason, and no teacher is asked here; run the job first: retort run SPEC"
            )
    _, *others = INPUTS["train"]
    return {name: made[name] for name in (examples_of(made), *others, "cut") if name in made}


def is_trained(job: JobRun, spec: JobSpec) -> bool:
    """Whether the student of `spec` is stored."""
    recipe = recipes_of(job, spec)["train"]
    return job.store.artifact("train", recipe.name).finished() is not None


def recipes_of(job: JobRun, spec: JobSpec) -> dict[str, Recipe]:
    """Returns the recipes of a trial. Raises `SpecError` where the teacher would be asked."""
    if spec.train.on_policy or (spec.is_live and engine_of(spec).REMOTE):
        raise SpecError(
            f"{spec.name}: a trial asks no teacher, and this training would (train.on_policy, or "
            "train.teacher: live at an endpoint); set train.teacher: stored"
        )
    check_train(spec)
    wanted = recipes(spec, job.sources if _same_plug_ins(spec, job.spec) else source_digests(spec))
    for stage in ("prepare", "generate"):
        if wanted[stage].name != job.recipes[stage].name:
            raise SpecError(
                f"{stage}: a trial learns from the answers that are stored, and never asks the "
                f"teacher; leave the knobs of {stage} as the job has them"
            )
    return wanted


def _same_plug_ins(spec: JobSpec, other: JobSpec) -> bool:
    """Whether two jobs name the same plug-ins, and the same files of filters."""
    return plug_ins(spec) == plug_ins(other) and spec.curate.filters == other.curate.filters


def _read(name: str, spec: JobSpec, train: Artifact, score: Artifact) -> Trial:
    trained, scored = InputFolder(train.uri), InputFolder(score.uri)
    manifests = trained.read_manifest(), scored.read_manifest()
    facts, found = manifests[0]["facts"], scored.read_json(STATISTICS)
    return Trial(
        name,
        spec,
        train,
        score,
        found["metric"],
        found["student"],
        found["teacher"],
        trained.read_json("history.json"),
        facts["num_train"],
        manifests[0]["seconds"],
        facts["num_steps"] * facts["seconds_per_step"],
        manifests[1]["seconds"],
    )
