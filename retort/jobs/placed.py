"""Models that the job itself makes, put where a stage of the job looks for its models."""

from collections.abc import Iterator
from contextlib import contextmanager

from retort.spec import JobSpec, rounds
from retort.store import Artifact, InputFolder


@contextmanager
def placed(name: str, spec: JobSpec, inputs: dict[str, Artifact]) -> Iterator[JobSpec]:
    """Gives the job as a stage sees it, `name` being that of what the stage makes.

    A training's base is the student that was cut from the teacher, that of an on-policy round is
    the student of the round before; where that student answers, it is the teacher, too. The folder
    is on this machine, and may be a copy that is removed afterwards. Other stages, which read a
    training, find the base in the artifact `cut` by themselves.
    """
    before = rounds.before(inputs)
    if before is None and "cut" in inputs and "train" not in inputs:
        before = "cut"
    if before is None:
        yield spec
        return
    with InputFolder(inputs[before].uri).local_copy("student") as folder:
        own = spec.based_on(str(folder))
        if name.startswith(rounds.ROLLOUTS):
            teacher = {"teacher": str(folder)}
            own = own.model_copy(update={"generate": own.generate.model_copy(update=teacher)})
        yield own
