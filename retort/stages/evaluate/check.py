"""Checks before a run what could fail later in `evaluate`: metrics, the engine, the judge."""

from retort.engines import resolve
from retort.plugins import check_function
from retort.spec import JobSpec
from retort.stages import judge


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each thing that was checked; raises `SpecError` for one that is wrong."""
    for name in spec.evaluate.metrics:
        check_function("metric", name, "retort.metrics")
    engine = resolve(spec.evaluate.engine, 0)
    return [f"engine {engine} for the comparison", *judge.check(spec, "evaluate")]
