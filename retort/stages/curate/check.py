"""The check of `curate` before a run: filters with their options, and further models."""

from retort.data.filters import candidate
from retort.spec import JobSpec
from retort.stages import judge


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each model that is asked about the responses; raises `SpecError`."""
    for chosen in spec.curate.filters:
        candidate.check(chosen.name, chosen.options)
    return judge.check(spec, "curate")
