"""The input of a filter, and the check of a filter's options before a run.

A filter is `def name(item: Candidate, *, option: type = default) -> str | None`; it returns the
reason to reject the response, or None.
"""

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from retort.data import reasoning
from retort.data.task_types import TaskType
from retort.errors import SpecError, did_you_mean
from retort.plugins import find_function
from retort.records import Example, JsonObject, Response
from retort.spec import JobSpec

Rejects = Callable[..., str | None]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One response that filters judge, and everything that they may read.

    `text` is the answer: the response's text without its `rationale`. `second` is the second
    teacher's answer, `score` the judge's score from 1 to 5. `peers` are the answers to the same
    turn of the same example that earlier filters kept, this one included, in the order of the
    samples. Note: all peers share one list. The token ids are left out; `num_tokens` counts them.
    """

    example: Example
    response: Response
    task_type: TaskType
    text: str
    rationale: str | None = None
    second: str | None = None
    score: float | None = None
    peers: list["Candidate"] = field(default_factory=list, repr=False)

    @cached_property
    def answer(self) -> str | None:
        """The answer that the task type finds in the text, in normal form."""
        return self.task_type.answer(self.text, self.example)

    @cached_property
    def is_right(self) -> bool | None:
        """Whether the answer equals a right one; None if no right answer is known."""
        if self.example.expected is None:
            return None
        answer, right = self.answer, self.example.answers or [self.example.expected]
        return answer is not None and any(self.task_type.equal(answer, each) for each in right)

    @property
    def calls_tool(self) -> bool:
        """Whether the response is a tool call without text."""
        return bool(self.response.tool_calls) and not self.text.strip()


def item_of(spec: JobSpec, task_type: TaskType, example: Example, response: Response) -> Candidate:
    """Returns a response as a candidate without peers.

    The rationale is split from the answer only if the job asks for reasoning or the text holds
    <think> tags.
    """
    text = response.text
    if (
        spec.generate.reasoning != "none"
        or spec.curate.rationale != "keep"
        or "<think>" in text
        or "</think>" in text
    ):
        reason, text = reasoning.split(text)
        return Candidate(example, response, task_type, text, reason)
    return Candidate(example, response, task_type, text)


def check(name: str, options: JsonObject) -> Rejects:
    """Returns the filter of a name after checking its options.

    Raises `SpecError` for an unknown filter, an unknown or missing option, or a value of the wrong
    type or out of bounds; the message lists what is allowed.
    """
    rejects: Rejects = find_function("filter", name, "retort.data.filters")
    if not callable(rejects):
        raise SpecError(f"filter {name} is no function")
    parameters = list(inspect.signature(rejects).parameters.values())[1:]
    allowed = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    takes_all = len(allowed) < len(parameters)
    listed = ", ".join(map(_shown, allowed.values())) or "none"
    for key in options:
        if key not in allowed and not takes_all:
            near = did_you_mean(key, allowed)
            raise SpecError(f"filter {name}: unknown option '{key}'{near}; its options: {listed}")
    for key, parameter in allowed.items():
        if parameter.default is parameter.empty and key not in options:
            raise SpecError(f"filter {name}: needs the option {key}; its options: {listed}")
    hints = _hints(rejects)
    for key, value in options.items():
        try:
            TypeAdapter(hints.get(key, Any), config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise SpecError(
                f"filter {name}: option {key}: {value!r}: {reason}; its options: {listed}"
            ) from None
    return rejects


def _hints(function: Rejects) -> dict[str, Any]:
    """Returns the types of a function's options; none if its annotations cannot be resolved."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        return {}


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"
