"""Checks before a run what could fail later in `evaluate`: metrics, graders, the engine, the judge.

Which columns the rows have that graders name is checked where rows are read, by prepare.
"""

from retort.engines import resolve
from retort.errors import SpecError
from retort.metrics import graders
from retort.plugins import check_function
from retort.spec import JobSpec
from retort.stages import judge


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each thing that was checked; raises `SpecError` for one that is wrong."""
    for name in spec.evaluate.metrics:
        check_function("metric", name, "retort.metrics")
    engine = resolve(spec.evaluate.engine, 0)
    lines = [f"engine {engine} for the comparison", *_graders(spec)]
    return [*lines, *judge.check(spec, "evaluate")]


def _graders(spec: JobSpec) -> list[str]:
    """Returns a line on the graders, and one on those whose model is not the one that is asked."""
    knobs = spec.evaluate.graders
    if knobs is None:
        return []
    found, lines = graders.read(knobs.file), list[str]()
    for each in graders.leaves(found):
        where = f"evaluate.graders.file: {knobs.file}: grader '{each.name}'"
        if isinstance(each, graders.Python) and not knobs.python:
            raise SpecError(
                f"{where} is Python code, which a job runs only on request; read it, then set "
                "evaluate.graders.python: true"
            )
        if isinstance(each, graders.ModelGrader):
            if knobs.judge is None:
                raise SpecError(
                    f"{where} asks a model ({each.model}); name the one that is asked, and what it "
                    "may cost, in evaluate.graders.judge: {model: ..., engine: ..., spending: ...}"
                )
            if each.model != knobs.judge.model:
                lines.append(
                    f"grader '{each.name}' names {each.model}; {knobs.judge.model} is asked"
                )
    decides = f", {graders.deciding(found, knobs.main)} decides" if knobs.main else ""
    names = ", ".join(graders.metric_of(grader) for grader in found)
    return [f"evaluate.graders {knobs.file}: {names}{decides}", *lines]
