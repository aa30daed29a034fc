"""Whether the teacher agrees with itself: it answers a prompt several times, and all must mean the
same. A prompt that it cannot answer alike has no answer, more than one, or is beyond it."""

from dataclasses import replace

from retort.data import task_types
from retort.data.filters.candidate import item_of
from retort.records import Example, Response
from retort.spec import JobSpec


def is_verified(spec: JobSpec) -> bool:
    """Whether the answers to new prompts are compared: the task type can, and the job wants it."""
    assert spec.expand
    kind = task_types.load(spec.prepare.task_type)
    return spec.expand.samples > 0 and "verified" in task_types.filters_of(kind)


def agreed(spec: JobSpec, example: Example, texts: dict[str, str]) -> Example | str:
    """Returns an example with the answer that the teacher gave every time as the expected one, or
    why there is none. `texts` are the teacher's finished answers by the ids of responses."""
    assert spec.expand
    kind = task_types.load(spec.prepare.task_type)
    names = [f"{example.id}#{n}.0" if n else example.id for n in range(spec.expand.samples)]
    answers = []
    for name in names:
        response = Response(name, texts.get(name, ""), [], "stop", 0, 0)
        answer = item_of(spec, kind, example, response).answer
        if answer is None:
            return "the teacher gave no answer that can be verified"
        answers.append(answer)
    if not all(kind.equal(answer, answers[0]) for answer in answers[1:]):
        return "the teacher disagrees with itself"
    return replace(example, expected=answers[0])
