"""Trains on nested subsets and makes of it a plan: a list of verbs, whose order is the plan's."""

from dataclasses import replace

import numpy as np

from retort import metrics
from retort.errors import DataError
from retort.jobs import trials
from retort.jobs.plan import limits, record
from retort.jobs.plan.costs import PromptCost, prompt_cost
from retort.jobs.plan.shapes import Forecast, Limit, Plan, Point
from retort.jobs.run import JobRun
from retort.jobs.trials import Make, Trial
from retort.metrics.comparison.shapes import Estimate
from retort.metrics.kinds import Array, kind
from retort.metrics.learning_curve import (
    Band,
    LearningCurve,
    error_of,
    errors_of,
    fit,
    speeds_up,
)
from retort.records import Example, content_id, sha256_of
from retort.spec import JobSpec
from retort.spec.fingerprint import examples_of
from retort.stages.stage import read_decisions, read_examples, read_responses
from retort.store import Artifact, InputFolder

# The subsets: 1/16, 1/8 ... of what is stored, of so many examples at least.
PARTS, LEAST_EXAMPLES = (16, 8, 4, 2), 8
# On this part the other loss is tried, where the job's own controls did not.
PROBE = 8
MORE = (1000, 2000, 10_000)
# A doubling of the examples that gains less than this share of the metric's range gains nothing.
LEAST_GAIN = 0.005
# The curve is told up to so many times today's examples, and looked for its end further.
SHOWN, LOOKED_FOR = 32, 1024
FEW_POINTS, FEW_EXAMPLES = 4, 200


def plan(job: JobRun, make: Make | None = None) -> Plan:
    """Returns the plan of a job whose answers are stored, and leaves it under the job's name.

    `make` makes artifacts, as Prefect tasks or plainly. Raises `DataError` where nothing is stored,
    or too little.
    """
    inputs = trials.stored(job, make)
    examples, kept = _examples(inputs)
    spec = trials.varied(job.spec)
    number = min(len(kept), spec.train.max_examples or len(kept))
    if number < 2 * LEAST_EXAMPLES:
        raise DataError(
            f"{job.spec.name}: {number} examples are stored to learn from, and a plan needs "
            f"{2 * LEAST_EXAMPLES} or more"
        )
    folder = job.store.job(job.spec.name)
    data = sha256_of({name: artifact.digest for name, artifact in inputs.items()})[:16]
    stored = record.read(folder)
    earlier = record.usable(stored, data, _recipe(job, spec), kept[:number])
    known = max((point.num_examples for point in earlier), default=0)
    subsets = _subsets(number, known)
    made = [
        trials.run(job, name, trials.varied(job.spec, max_examples=size), inputs, make)
        for name, size in subsets.items()
    ]
    whole = trials.run(job, "all", spec, inputs, make)
    sizes = [*subsets.values(), number]
    points = [
        _point(job, trial, size, data, kept)
        for trial, size in zip([*made, whole], sizes, strict=True)
    ]
    probed = _other_loss(job, inputs, make, [*zip(sizes, [*made, whole], strict=True)])
    used = record.comparable(earlier, set(whole.statistics))
    found = _planned(job, [*used, *points], whole, probed, (examples, kept, inputs))
    seconds = sum(p.seconds + p.score_seconds for p in points) - whole.seconds
    seconds += probed[1].seconds + probed[1].score_seconds if probed else 0.0
    found = replace(
        found,
        facts=record.facts_of(folder, points[-1], whole.metric),
        of_a_training=seconds / whole.seconds,
    )
    record.write(folder, found, stored)
    _log(job, [*made, *([probed[1]] if probed else []), whole])
    return found


def _examples(inputs: dict[str, Artifact]) -> tuple[list[Example], list[str]]:
    """Returns the training examples, and the ids of those with a kept answer in the order in which
    subsets take them."""
    folders = {name: InputFolder(artifact.uri) for name, artifact in inputs.items()}
    examples = read_examples(folders[examples_of(inputs)], "train")
    decisions, ids = read_decisions(folders["curate"]), {example.id for example in examples}
    responses = read_responses(folders["generate"])
    kept = {r.example_id for r in responses if r.example_id in ids and decisions[r.id].kept}
    return examples, sorted(kept, key=lambda id: (content_id(id), id))


def _subsets(number: int, known: int) -> dict[str, int]:
    """Returns the sizes to train by the names of their trials: none that an earlier plan knows."""
    sizes = {f"1_of_{part}": number // part for part in PARTS}
    return {n: size for n, size in sizes.items() if size >= max(LEAST_EXAMPLES, known + 1)}


def _recipe(job: JobRun, spec: JobSpec) -> str:
    """Returns what names how a student learns, whatever it learns from."""
    ingredients = trials.recipes_of(job, spec)["train"].ingredients
    return sha256_of({name: ingredients[name] for name in ("version", "knobs", "sources")})[:16]


def _point(job: JobRun, trial: Trial, size: int, data: str, kept: list[str]) -> Point:
    knobs = job.spec.evaluate
    score = metrics.interval(trial.metric, trial.statistics, knobs.num_bootstrap, knobs.seed)
    return Point(
        size,
        trial.train.name,
        data,
        _recipe(job, trials.varied(trial.spec, max_examples=job.spec.train.max_examples)),
        kept[: min(size, record.MOST_FIRST)],
        Estimate.of(score),
        min(trial.validation_losses, default=None),
        trial.seconds,
        trial.score_seconds,
        trial.statistics,
    )


def _other_loss(
    job: JobRun,
    inputs: dict[str, Artifact],
    make: Make | None,
    made: list[tuple[int, Trial]],
) -> tuple[Trial, Trial] | None:
    """Returns a student and one with the other kind of loss on the same examples: plain fine-tuning
    where the job distils, else distillation; of the whole where that control is trained already.
    None without a stored signal."""
    own = job.spec
    if own.distils:
        other = trials.varied(own.control("fine_tuning"))
    elif own.generate.top_k and own.curate.rationale == "keep" and own.train.text == "teacher":
        other = trials.varied(own, losses=())  # a job with a signal distils by default
    else:
        return None
    if trials.is_trained(job, other):
        return made[-1][1], trials.run(job, "other_loss", other, inputs, make)
    size, student = min(made, key=lambda each: abs(each[0] - made[-1][0] / PROBE))
    if student is not made[-1][1]:
        other = trials.varied(other, max_examples=size)
    return student, trials.run(job, "other_loss", other, inputs, make)


def _planned(
    job: JobRun,
    points: list[Point],
    whole: Trial,
    probed: tuple[Trial, Trial] | None,
    read: tuple[list[Example], list[str], dict[str, Artifact]],
) -> Plan:
    """Returns the plan, without what is known of earlier ones and of its own cost."""
    metric, knobs, (examples, kept, inputs) = whole.metric, job.spec.evaluate, read
    errors = errors_of(metric, [*(p.statistics for p in points), whole.teacher], knobs.seed)
    sizes = [point.num_examples for point in points]
    curve = fit(metric, sizes, errors[:, :-1], knobs.seed, errors[:, -1])
    least = LEAST_GAIN * curve.scale
    cost = prompt_cost(job.spec, InputFolder(inputs["generate"].uri), examples, len(kept))
    told = np.geomspace(sizes[0], sizes[-1] * SHOWN, 33)
    teacher = metrics.interval(metric, whole.teacher, knobs.num_bootstrap, knobs.seed)
    return Plan(
        name=job.spec.name,
        metric=metric,
        num_validation=len(set.intersection(*(set(p.statistics) for p in points))),
        points=points,
        teacher=Estimate.of(teacher),
        curve=[(round(n), _score(metric, curve.error(n))) for n in told],
        best=_score(metric, Band.of(curve.floor_R)),
        exponent=Band.of(curve.exponent_R),
        least=least,
        enough=_enough(curve, least),
        forecasts=[_forecast(whole, curve, number, cost) for number in MORE],
        limits=_limits(job, curve, whole, probed, errors[:, -1]),
        facts=[],
        of_a_training=0.0,
        notes=_notes(job, metric, points),
    )


def _score(metric: str, error: Band) -> Band:
    """Returns the band of a metric that belongs to that of its error; none is outside of what the
    metric can be."""
    ends = error_of(metric, np.array([error.value, error.low, error.high]))
    least, most = kind(metric).bounds or (-np.inf, np.inf)
    value, low, high = (float(end) for end in np.clip(ends, least, most))
    return Band(value, min(low, high), max(low, high))


def _forecast(whole: Trial, curve: LearningCurve, number: int, cost: PromptCost) -> Forecast:
    """Returns what so many more prompts bring; a training has as many more steps as examples."""
    size = curve.size + round(number * cost.kept)
    more = whole.step_seconds * (size / curve.size - 1)
    return Forecast(
        number,
        size,
        None if cost.money is None else cost.money * number,
        None if cost.seconds is None else cost.seconds * number / 60,
        (whole.seconds + more) / 60,
        _score(whole.metric, curve.error(size)),
        curve.gain(size),
    )


def _enough(curve: LearningCurve, least: float) -> int | None:
    """Returns the number of examples from which twice as many gain less than `least`."""
    for number in np.geomspace(curve.size, curve.size * LOOKED_FOR, 41):
        if np.median(curve.errors(number) - curve.errors(2 * number)) < least:
            return round(float(number))
    return None


def _limits(
    job: JobRun,
    curve: LearningCurve,
    whole: Trial,
    probed: tuple[Trial, Trial] | None,
    teacher_R: Array,
) -> list[Limit]:
    metric, least = whole.metric, LEAST_GAIN * curve.scale
    gap = Band.of(curve.floor_R - teacher_R)
    student, other = probed or (whole, None)
    return [
        limits.of_data(curve, least, metric),
        limits.of_loss(student, other, job.spec.distils),
        limits.of_epochs(whole),
        limits.of_size(whole, gap, least, metric),
    ]


def _notes(job: JobRun, metric: str, points: list[Point]) -> list[str]:
    """Returns what to know before trusting the plan."""
    spec, num_validation = job.spec, len(points[-1].statistics)
    found = []
    if len(points) < FEW_POINTS:
        found.append(
            f"{len(points)} numbers of examples are few: the bands rest on what is known of other "
            "learners rather than on this one"
        )
    if num_validation < FEW_EXAMPLES:
        found.append(
            f"{num_validation} validation examples are few: one of them is "
            f"{1 / num_validation:.1%}; raise prepare.validation_ratio for narrower bands"
        )
    errors = [float(error_of(metric, np.array([point.score.value]))[0]) for point in points]
    if speeds_up([point.num_examples for point in points], errors):
        found.append(
            "each doubling gained more than the one before: the student has only begun to learn, "
            "which such a curve does not describe; more examples may bring more than is said"
        )
    if kind(metric).bounds is None:
        found.append("the metric has no best value, so the curve's end is not bounded by one")
    if spec.train.on_policy:
        found.append("the on-policy rounds are left out: in them the teacher is asked")
    if spec.curate.judge:
        found.append("what curate.judge costs is not in the money")
    if spec.evaluate.graders and spec.evaluate.graders.main:
        found.append("graders are not asked: the task type's own metric decides here")
    return found


def _log(job: JobRun, made: list[Trial]) -> None:
    """Logs each trial as a run below the plan's in MLflow."""
    for trial in made:
        numbers = {
            "num_train": float(trial.num_train),
            "seconds": trial.seconds,
            trial.metric: trial.value,
            "validation_loss": min(trial.validation_losses, default=float("nan")),
        }
        knobs = trial.spec.train.model_dump(mode="json")
        job.tracker.trial(f"trial-{trial.name}", knobs, numbers)
