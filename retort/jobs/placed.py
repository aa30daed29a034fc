"""Models that the job itself makes, put where a stage of the job looks for its models."""

from collections.abc import Iterator
from contextlib import contextmanager

from retort.spec import JobSpec, rounds
from retort.spec.section import Section
from retort.store import Artifact, InputFolder


@contextmanager
def placed(name: str, spec: JobSpec, inputs: dict[str, Artifact]) -> Iterator[JobSpec]:
    """Gives the job as a stage sees it, `name` being that of what the stage makes.

    The base of an on-policy round is the student of the round before, in a folder of this machine;
    where that student answers, it is the teacher, too.
    """
    before = rounds.before(inputs)
    if before is None:
        yield spec
        return
    with InputFolder(inputs[before].uri).local_copy("student") as folder:
        changed: dict[str, Section] = {}
        changed["train"] = spec.train.model_copy(update={"student": str(folder)})
        if name.startswith(rounds.ROLLOUTS):
            changed["generate"] = spec.generate.model_copy(update={"teacher": str(folder)})
        yield spec.model_copy(update=changed)
