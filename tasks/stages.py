"""The stages as Prefect tasks, each control and the champion too. What is reused shows as `Cached`.

Prefect's own cache is off: the manifest in the store decides. Timeouts are enforced in the stage's
child process, because Prefect cannot stop blocking code. The tasks have no tags: for a task with
tags Prefect asks the server for a slot before it starts, and a server that is away would fail it.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed

from retort import processes
from retort.jobs.devices import trainings_at_once
from retort.jobs.run import JobRun
from retort.records import JsonObject
from retort.spec import (
    ROUND_CONTROLS,
    StageName,
    evaluation_of,
    export_of,
    rounds,
    training_of,
)
from retort.spec.fingerprint import CHAMPION, EVALUATE_CHAMPION, examples_of
from retort.store import Artifact, Folder
from tasks.slots import slot

# Jitter is in the numbers: Prefect's own jitter factor does nothing in 3.7.7.
RETRY_DELAYS_SECONDS = [2.3, 9.1, 31.7]


def is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage may be tried again: the store or the network failed, not the job."""
    error = state.result(raise_on_failure=False)
    is_network = isinstance(error, ConnectionError | TimeoutError)
    return is_network or bool(getattr(error, "transient", False))


@dataclass(frozen=True)
class StageTask:
    """A task that makes an artifact or reuses it: called, or submitted to run beside others."""

    task: Task[..., Any]

    def __call__(self, job: JobRun, **inputs: Artifact) -> Artifact:
        """Returns the artifact."""
        # Called plainly, a task that returns a state would return that state, not the artifact.
        state = cast(State[Any], self.task(job, **inputs, return_state=True))
        return cast(Artifact, state.result())

    def submit(self, job: JobRun, **inputs: Artifact) -> PrefectFuture[Any]:
        """Returns the future of the artifact, which another thread makes."""
        return self.task.submit(job, **inputs)


def stage_task(stage: StageName, name: str = "") -> StageTask:
    """Returns the task that makes a stage's artifact, or reuses it.

    `name` is the task's name where that is not the stage's: for a control, or the champion.
    """
    name = name or stage

    @task(
        name=name,
        task_run_name=name,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_condition_fn=is_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(job: JobRun, **inputs: Artifact) -> Any:
        if cached := job.cached(name, inputs):
            return _completed(cached)
        with job.alone(name):
            # Another run may have made it meanwhile.
            if cached := job.cached(name, inputs):
                return _completed(cached)
            # What runs on a cluster waits for the cluster's own room.
            on_cluster = job.spec.cluster.ray is not None
            with nullcontext() if on_cluster else slot(stage, partial(job.note, name)):
                return job.make(name, inputs)

    return StageTask(run)


def _completed(cached: Artifact) -> State[Artifact]:
    return Completed(name="Cached", message=cached.uri, data=cached)


_prepare = stage_task("prepare")
_expand = stage_task("expand")
generate = stage_task("generate")
curate = stage_task("curate")
_cut = stage_task("cut")
train = stage_task("train")
evaluate = stage_task("evaluate")
_evaluate_champion = stage_task("evaluate", EVALUATE_CHAMPION)
report = stage_task("report")
release = stage_task("release")


def examples(job: JobRun) -> dict[str, Artifact]:
    """Returns the artifact of the examples under its name: `prepare`, or `expand` where a model
    writes further prompts."""
    prepared = {"prepare": _prepare(job)}
    return {"expand": _expand(job, **prepared)} if job.spec.expand else prepared


def generate_all(job: JobRun, **inputs: Artifact) -> Artifact:
    """Returns the artifact of the teacher's responses; of several teachers, whose captures are
    made one after the other, their union. Those who score the first one's answers read them."""
    for name in (each for each in job.recipes["generate"].inputs if each not in inputs):
        read = {each: inputs[each] for each in job.recipes[name].inputs}
        inputs[name] = stage_task("generate", name)(job, **read)
    return generate(job, **inputs)


def cut_student(job: JobRun, **inputs: Artifact) -> dict[str, Artifact]:
    """Returns the artifact of the student as it is cut from the teacher; none where its base is
    given."""
    return {"cut": _cut(job, **inputs)} if job.spec.cut else {}


def train_all(job: JobRun, **inputs: Artifact) -> dict[str, Artifact]:
    """Returns the artifacts of the student and of each control, by the names of their trainings.

    They are made side by side where the machine has room. One that fails does not end the others,
    so that their work is kept. Rounds come before all controls, and each of those that go on from
    stored rows instead is alone, because their seconds are compared.
    """
    made: dict[str, Artifact] = {}
    if job.spec.train.on_policy:
        made = make_rounds(job, job.spec.train.on_policy.rounds, **inputs)
    names = [name for name in map(training_of, ("student", *job.spec.controls)) if name not in made]
    alone = [name for name in map(training_of, ROUND_CONTROLS) if name in names]
    beside = {name: stage_task("train", name) for name in names if name not in alone}
    made |= _side_by_side(job, beside, inputs)
    for name in alone:
        made[name] = stage_task("train", name)(job, **_read_by(job, name, {**inputs, **made}))
    return {name: made[name] for name in map(training_of, ("student", *job.spec.controls))}


def make_rounds(job: JobRun, number: int, **inputs: Artifact) -> dict[str, Artifact]:
    """Returns the artifacts of the offline phase and of all rounds, by their names.

    Once a round says that the rounds end, the others have its artifacts.
    """
    made = {rounds.OFFLINE: stage_task("train", rounds.OFFLINE)(job, **inputs)}
    for each in range(1, number + 1):
        names, earlier = (rounds.names_of(job.spec, n) for n in (each, each - 1))
        if 1 < each < number and "ended" in facts_of(made[earlier[-1]]):
            made |= {now: made[was] for now, was in zip(names, earlier, strict=True)}
            continue
        for name, stage in zip(names, ("generate", "generate", "train"), strict=True):
            read = _read_by(job, name, {**inputs, **made})
            made[name] = stage_task(cast(StageName, stage), name)(job, **read)
    return made


def facts_of(artifact: Artifact) -> JsonObject:
    """Returns the facts in an artifact's manifest."""
    facts: JsonObject = Folder(artifact.uri).read_manifest()["facts"]
    return facts


def _read_by(job: JobRun, name: str, made: dict[str, Artifact]) -> dict[str, Artifact]:
    return {each: made[each] for each in job.recipes[name].inputs}


def _side_by_side(
    job: JobRun, trainings: dict[str, StageTask], inputs: dict[str, Artifact]
) -> dict[str, Artifact]:
    """Returns the artifacts of trainings that read the same."""
    at_once, names = trainings_at_once(job.spec), list(trainings)
    if at_once == 1 or len(names) == 1:
        return {name: training(job, **inputs) for name, training in trainings.items()}
    states: list[State[Any]] = []
    try:
        for start in range(0, len(names), at_once):
            some = [trainings[name].submit(job, **inputs) for name in names[start:][:at_once]]
            for future in some:
                future.wait()
            states += [future.state for future in some]
    except BaseException:  # an interrupt comes to this thread alone
        processes.end_all()
        raise
    return {n: cast(Artifact, s.result()) for n, s in zip(names, states, strict=True)}


def make(job: JobRun, name: str, inputs: dict[str, Artifact]) -> Artifact:
    """Returns the artifact of any recipe of a job, such as that of a trial, made by its task."""
    return stage_task(job.recipes[name].stage, name)(job, **inputs)


def export_all(job: JobRun, **inputs: Artifact) -> dict[str, Artifact]:
    """Returns the artifacts of the exported students, by the names of their exports."""
    names = map(export_of, job.spec.exports)
    return {name: stage_task("export", name)(job, **inputs) for name in names}


def evaluate_exports(job: JobRun, **inputs: Artifact) -> dict[str, Artifact]:
    """Returns the artifacts of the evaluations of the exported students, by their names. One at a
    time, so that none is slowed by another."""
    own = {name: inputs[name] for name in (examples_of(inputs), "train")}
    made = {}
    for role in job.spec.exports:
        name, export = evaluation_of(role), export_of(role)
        made[name] = stage_task("evaluate", name)(job, **own, **{export: inputs[export]})
    return made


def evaluate_champion(job: JobRun, **inputs: Artifact) -> dict[str, Artifact]:
    """Returns the artifacts of the champion that the report reads: its release and its evaluation.

    There are none without a champion, and no evaluation where its folder cannot be read.
    """
    if job.champion is None:
        return {}
    artifacts = {CHAMPION: job.champion.artifact}
    if EVALUATE_CHAMPION in job.recipes:
        artifacts[EVALUATE_CHAMPION] = _evaluate_champion(job, **inputs, **artifacts)
    return artifacts
