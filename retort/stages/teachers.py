"""Several teachers: the job of each, and whose rows are whose.

To the code that asks, each of them is the teacher of a job of its own (`JobSpec.taught_by`).
"""

from collections.abc import Iterable, Iterator

from retort.data.balance import NONE, group_of
from retort.errors import DataError
from retort.records import Example
from retort.spec import JobSpec, Route

DIFFERENT = (
    "{} have different tokenizers, and one artifact holds signals of one tokenizer only; set "
    "generate.top_k: 0 to learn from their text alone"
)


def each_job(spec: JobSpec) -> dict[str, JobSpec]:
    """Returns the job of each of several teachers by name; the job itself where there is one."""
    route = spec.generate.route
    return {name: spec.taught_by(name) for name in route.order} if route else {"": spec}


def teacher_of(route: Route, example: Example) -> str:
    """Returns who answers an example, by the value of its metadata.

    Raises `DataError` for a value without a teacher.
    """
    value = group_of(example, route.by)
    if (name := route.teacher_of(value)) is None:
        has = f"no {route.key}" if value == NONE else f"{route.key}: {value!r}"
        raise DataError(
            f"generate.route: example {example.id} has {has} in its metadata, and that leads to "
            f"none of the teachers {', '.join(route.order)}; add it to generate.route.to, or name "
            "the teacher of all other values in generate.route.default"
        )
    return name


def asked(spec: JobSpec, examples: Iterable[Example]) -> Iterator[Example]:
    """Yields the examples that the job's teacher, the first of several, is asked."""
    route = spec.generate.route
    for example in examples:
        if not (route and route.key) or teacher_of(route, example) == route.order[0]:
            yield example
