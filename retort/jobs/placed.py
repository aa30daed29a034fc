"""The spec of a stage whose student begins as a model that this job made: its folder here."""

from collections.abc import Iterator
from contextlib import contextmanager

from retort.spec import JobSpec
from retort.store import Artifact, InputFolder


@contextmanager
def placed(spec: JobSpec, inputs: dict[str, Artifact]) -> Iterator[JobSpec]:
    """Gives the spec as a training with these inputs sees it: `train.student` is a folder of this
    machine, which may be a copy that is removed afterwards.

    Other stages, which read a training, find the base in the artifact `cut` by themselves.
    """
    if "cut" not in inputs or "train" in inputs:
        yield spec
        return
    with InputFolder(inputs["cut"].uri).local_copy("student") as folder:
        yield spec.based_on(str(folder))
