"""The search: a sampler draws trials, and successive halving ends most of them early.

Each rung goes on from the checkpoint of the one before, with the learning rate of the whole
training; to be compared, its student cools down aside. So the last rung's students are those of
plain jobs, bit for bit on a CPU, and a plain job finds the winner's in the cache. Trials are drawn
and compared in a fixed order, whatever ends first: a seed gives one result, also after kill -9.
Validation examples choose; the test examples are not read.
"""

import contextvars
import itertools
import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

import yaml

from retort import metrics, processes
from retort.errors import DataError, EngineDiedError, SpecError, StageError
from retort.jobs import trials
from retort.jobs.devices import trainings_at_once
from retort.jobs.run import JobRun
from retort.jobs.trials import Make, Trial
from retort.metrics.kinds import matrix, value_of
from retort.records import JsonObject
from retort.spec import JobSpec, variants
from retort.store import Artifact

LIKELIHOOD = "validation_cross_entropy"
RESULT, WINNER = "sweep.json", "winner.yaml"
NUM_BOOTSTRAP = 2000
# Trials of large and of small steps are compared after the step size has fallen to 0, in so many
# more steps. The ends of trainings are foretold so where a fifth of their steps cools down
# (arXiv:2405.18392).
COOL_DOWN = 0.25


@dataclass
class Candidate:
    """One configuration: the values of the knobs that are tried, none for the job as it is, and
    what its training came to at each rung that it reached."""

    number: int
    values: JsonObject
    spec: JobSpec | None = None
    rungs: list[Trial] = field(default_factory=list)
    failed: str | None = None

    @property
    def name(self) -> str:
        """Its name in runs: trial-07."""
        return f"trial-{self.number:02d}"

    @property
    def scores(self) -> list[float]:
        """The metric on the validation examples at each rung."""
        return [trial.value for trial in self.rungs]

    @property
    def likelihood(self) -> float:
        """How probable it finds the validation answers after its last rung, in nats a token."""
        records = (
            [each for each in self.rungs[-1].curve if LIKELIHOOD in each] if self.rungs else []
        )
        return -records[-1][LIKELIHOOD] if records else float("-inf")

    @property
    def rank(self) -> float:
        """The last of its scores, with such a sign that more is better."""
        if self.failed or not self.rungs:
            return float("-inf")
        return self.scores[-1] * (-1 if metrics.lower_is_better(self.rungs[-1].metric) else 1)


@dataclass(frozen=True)
class Found:
    """What a sweep found: all candidates in the order in which they were drawn, and the best.

    `cost` is the share of the steps of all trainings that was made, cooling down included.
    `differences` are the winner's score minus those of the others that were trained as far, with
    intervals; `shares` those of the steps at each rung, None for all.
    """

    metric: str
    candidates: tuple[Candidate, ...]
    winner: Candidate
    spec: JobSpec
    cost: float
    teacher: float
    differences: dict[str, dict[str, float]]
    shares: tuple[float | None, ...]

    def as_json(self) -> JsonObject:
        """Returns all of it as JSON."""
        return {
            "metric": self.metric,
            "teacher": self.teacher,
            "cost": self.cost,
            "winner": self.winner.name,
            "train": self.winner.rungs[-1].train.name,
            "trials": [_shown(each) for each in self.candidates],
            "differences": self.differences,
        }


class Search:
    """A sweep of a job under way; `inputs` are the artifacts that the job's training reads."""

    def __init__(self, job: JobRun, inputs: dict[str, Artifact], make: Make):
        self.job, self.inputs, self._make = job, inputs, make
        self.knobs = variants.sweep_of(job.spec)
        # What a cluster has no room for waits there.
        on_cluster = job.spec.cluster.ray is not None
        self._at_once = self.knobs.drawn_together if on_cluster else trainings_at_once(job.spec)
        self._engine = threading.Lock()
        self.candidates: list[Candidate] = []

    def draw(self) -> None:
        """Draws the trials, each from what all before it scored, and trains them to the first
        rung."""
        from retort.jobs.sweep.sampling import Sampler

        sampler, knobs = Sampler(self.job.spec), self.knobs
        while number := min(knobs.drawn_together, knobs.trials - len(self.candidates)):
            drawn: list[JsonObject] = [] if self.candidates else [{}]
            drawn += sampler.draw(number - len(drawn))
            if not drawn:
                self.job.note("sweep", "all that there is to try has been drawn")
                return
            new = [Candidate(len(self.candidates) + n, values) for n, values in enumerate(drawn)]
            self.candidates += new
            self.train(new, 0)
            for each in new:
                known = math.isfinite(each.likelihood)
                score = each.likelihood if known else each.rank
                sampler.tell(each.values, None if each.failed else score)

    def train(self, some: list[Candidate], rung: int) -> None:
        """Trains candidates to a rung and scores them, side by side where there is room."""
        calls = [partial(self._attempt, each, rung) for each in some]
        if self._at_once == 1 or len(calls) == 1:
            for call in calls:
                call()
        else:
            _side_by_side(calls, self._at_once)
        scores = ", ".join(f"{each.name} {each.rank:.4g}" for each in some)
        self.job.note("sweep", f"rung {rung + 1} of {self.knobs.rungs}: {scores}")

    def _attempt(self, each: Candidate, rung: int) -> None:
        """Trains and scores one candidate; where its training fails, it is out, with the reason."""
        share = self.knobs.shares[rung]
        name = f"{each.name}-rung-{rung + 1}"
        try:
            each.spec = each.spec or trials.varied(variants.variant(self.job.spec, each.values))
            if each.rungs:
                self.job.continued[f"train-{name}"] = each.rungs[-1].train
            spec = each.spec
            ends = {"stop_after": share, "cool_down": COOL_DOWN if share else 0.0}
            own = spec.model_copy(update={"train": spec.train.model_copy(update=ends)})
            each.rungs.append(trials.run(self.job, name, own, self.inputs, self._made))
        except (StageError, SpecError, DataError) as error:
            # A process or a node that is gone is no fault of the trial.
            if isinstance(error, EngineDiedError) or getattr(error, "transient", False):
                raise
            each.failed = str(error)
            for stage in ("curate", "train", "evaluate"):
                self.job.fail_one(f"{stage}-{name}", error)
            self.job.note("sweep", f"warning: {each.name} is out: {error}")

    def _made(self, job: JobRun, name: str, inputs: dict[str, Artifact]) -> Artifact:
        """Makes an artifact; of the engines that answer, one at a time."""
        if not name.startswith("evaluate-"):
            return self._make(job, name, inputs)
        with self._engine:
            return self._make(job, name, inputs)

    def found(self, winner: Candidate) -> Found:
        """Returns all that the sweep found."""
        last = winner.rungs[-1]
        beside = [each for each in self.candidates if len(each.rungs) == self.knobs.rungs]
        made = (_cost(self.knobs.shares[: len(each.rungs)]) for each in self._trained)
        return Found(
            metric=last.metric,
            candidates=tuple(self.candidates),
            winner=winner,
            spec=variants.variant(self.job.spec, winner.values),
            cost=sum(made) / len(self.candidates),
            teacher=value_of(last.metric, matrix(last.metric, last.teacher).sum(axis=0)),
            differences={each.name: _gap(winner, each) for each in beside if each is not winner},
            shares=self.knobs.shares,
        )

    @property
    def _trained(self) -> list[Candidate]:
        return [each for each in self.candidates if each.rungs]


def search(job: JobRun, inputs: dict[str, Artifact], make: Make = trials.cached_or_made) -> Found:
    """Returns the best of the trials of a job's sweep, and leaves `sweep.json` and `winner.yaml` in
    the store under the job's name.

    `inputs` are the artifacts that the job's own training reads (`trials.stored`). Raises
    `StageError` where no trial could be trained.
    """
    it = Search(job, inputs, make)
    it.draw()
    standing = it.candidates
    for rung in range(1, it.knobs.rungs):
        standing = promoted(standing, it.knobs.num_at(rung, len(it.candidates)))
        it.train(standing, rung)
    found = it.found(best(standing, 1)[0])
    files = {
        RESULT: json.dumps(found.as_json(), indent=2, ensure_ascii=False).encode(),
        WINNER: as_yaml(found.spec).encode(),
    }
    for name, data in files.items():
        job.store.job(job.spec.name).write(name, data)
    _track(job, found, files)
    return found


def promoted(some: list[Candidate], number: int) -> list[Candidate]:
    """Returns which candidates go on, in their order: the job as it is, with which the winner is
    compared, and by turns the best of the others by their score and by the likelihood of the
    validation answers.

    Early in a training the score is for steps so small that the student still answers as its base
    does, and the likelihood for those that learn fast.
    """
    own = [each for each in some if not (each.values or each.failed)]
    others = [each for each in some if each.values and not each.failed]
    if not others:
        return best(some, 1)
    by_score, number = best(others, len(others)), max(1, number - len(own))
    by_likelihood = sorted(by_score, key=lambda each: (-each.likelihood, each.number))
    turns = itertools.chain.from_iterable(zip(by_score, by_likelihood, strict=True))
    chosen = list({each.number: each for each in turns}.values())[:number]
    return sorted([*own, *chosen], key=lambda each: each.number)


def best(some: list[Candidate], number: int) -> list[Candidate]:
    """Returns the best of the candidates by their score, the best first; of equals the one that was
    drawn first. Raises `StageError` where none is left."""
    left = [each for each in some if not each.failed]
    if not left:
        raise StageError(f"sweep: no trial could be trained; the first one: {some[0].failed}")
    return sorted(left, key=lambda each: (-each.rank, each.number))[:number]


def as_yaml(spec: JobSpec) -> str:
    """Returns a job as a job file, with what it sets alone; its paths are absolute."""
    raw = json.loads(spec.model_dump_json(exclude_unset=True))
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _side_by_side(calls: Sequence[Callable[[], None]], at_once: int) -> None:
    """Makes calls in threads of their own, which know what the flow's own thread knows."""
    with ThreadPoolExecutor(at_once, "trial") as pool:
        futures = [pool.submit(contextvars.copy_context().run, call) for call in calls]
        try:
            wait(futures)
        except BaseException:  # an interrupt comes to this thread alone
            for future in futures:
                future.cancel()
            processes.end_all()
            raise
        for future in futures:
            future.result()


def _cost(shares: Sequence[float | None]) -> float:
    """Returns how much of its steps a trial has made that reached the rungs of these shares."""
    return (shares[-1] or 1.0) + COOL_DOWN * sum(share or 0.0 for share in shares)


def _gap(winner: Candidate, other: Candidate) -> dict[str, float]:
    last, theirs = winner.rungs[-1], other.rungs[-1]
    return metrics.difference(
        last.metric, last.statistics, theirs.statistics, NUM_BOOTSTRAP, seed=0
    )


def _shown(each: Candidate) -> JsonObject:
    return {
        "name": each.name,
        "values": each.values,
        "scores": each.scores,
        "seconds": sum(trial.seconds + trial.score_seconds for trial in each.rungs),
        "failed": each.failed,
    }


def _track(job: JobRun, found: Found, files: dict[str, bytes]) -> None:
    """Adds each trial as a run below the sweep's, with the same knobs and metrics, so that MLflow
    draws them as parallel coordinates."""
    for each in found.candidates:
        numbers = {"rungs": float(len(each.rungs))}
        if each.rungs:
            numbers[f"validation_{found.metric}"] = each.scores[-1]
            numbers["seconds"] = sum(trial.seconds for trial in each.rungs)
        of = each.spec or job.spec
        values = {
            path: variants.value_of(of, path) for path in variants.sweep_of(job.spec).over
        } | each.values
        job.tracker.trial(each.name, values, numbers)
    numbers = {f"validation_{found.metric}": found.winner.scores[-1], "cost": found.cost}
    job.tracker.close_job(numbers, None, files)
