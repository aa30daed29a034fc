"""Task types: how rows of a kind become prompts, and how answers are read, compared and scored.

Each is one file, here or in the user's own code; `load` finds it by its name in the spec. All of
them read chats and plain prompts with the functions in this file.
"""

import importlib
import re
from typing import Any, NamedTuple, Protocol

from retort.errors import SpecError
from retort.plugins import find_file
from retort.records import Example, JsonObject, Message, Prompt, Row
from retort.spec.prepare import Prepare

FILTERS = ("finished", "not_refused", "non_empty")
METRICS = ("accuracy",)
# Source: Wei et al., "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models"
# (2022, arXiv:2201.11903)
REASONING = {
    "chain_of_thought": (
        "Reason step by step before you answer. Then end with one last line that holds nothing "
        "but the answer, in this form:\nAnswer: <the answer>"
    )
}
ANSWER_COLUMNS = ("answer", "completion")
PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TaskType(Protocol):
    """The functions that a task type's file must define.

    Three constants are optional, and read through the functions below: FILTERS (names of curation's
    filters if the spec gives none), METRICS (names of functions in `retort.metrics`; the first
    that applies decides) and REASONING (the teacher's instruction for each kind of reasoning).
    """

    def prompt(self, row: Row, knobs: Prepare) -> Prompt:
        """Returns the chat to send for a row, and what is known of its answer.

        Raises `ValueError` with the reason if the row cannot be used.
        """

    def answer(self, text: str, example: Example) -> str | None:
        """Returns the answer found in a text, in normal form, or None."""

    def equal(self, given: str, expected: str) -> bool:
        """Whether two answers in normal form mean the same."""


def load(name: str) -> TaskType:
    """Returns the task type of a name: a file of this folder, or `package.module`.

    Raises `SpecError` if it is unknown or lacks one of the three functions.
    """
    task_type: TaskType = find_file("task type", name, importlib.import_module(__name__))
    needed = ("prompt", "answer", "equal")
    if missing := [part for part in needed if not callable(getattr(task_type, part, None))]:
        raise SpecError(
            f"task type '{name}' has no function {' and no '.join(missing)}; it needs "
            "prompt(row, knobs), answer(text, example) and equal(given, expected)"
        )
    return task_type


def check_labels(labels: tuple[str, ...]) -> None:
    """Raises `SpecError` for labels that no answer could tell apart, and for an empty one."""
    from retort.data.task_types import _labels

    _labels.check(labels)


def filters_of(task_type: TaskType) -> tuple[str, ...]:
    """Returns the names of the filters that curation runs if the spec names none."""
    return tuple(getattr(task_type, "FILTERS", FILTERS))


def metrics_of(task_type: TaskType) -> tuple[str, ...]:
    """Returns the names of the metrics; the first that applies decides."""
    return tuple(getattr(task_type, "METRICS", METRICS))


def reasoning_of(task_type: TaskType, kind: str) -> str:
    """Returns the instruction that makes the teacher reason before it answers.

    Raises `SpecError` if the task type has none for this kind of reasoning.
    """
    known: dict[str, str] = getattr(task_type, "REASONING", REASONING)
    if kind not in known:
        name = getattr(task_type, "__name__", "of your own").split(".")[-1]
        raise SpecError(
            f"generate.reasoning: {kind} is not for task type {name}, which has "
            f"{', '.join(known) or 'none'}; name one of these, or write generate.instruction"
        )
    return known[kind]


def chat_of(row: Row) -> tuple[list[Message], str | None]:
    """Returns a row's chat up to its last user turn, and the assistant's last text after it.

    Raises `ValueError` if there is no user turn.
    """
    messages = row.messages or []
    users = [index for index, turn in enumerate(messages) if turn["role"] == "user"]
    if not users:
        raise ValueError("no user turn")
    last = users[-1] + 1
    texts = (turn["content"] or "" for turn in messages[last:] if turn["role"] == "assistant")
    replies = [text for text in texts if text.strip()]
    return messages[:last], replies[-1] if replies else None


class AskedRow(NamedTuple):
    """The chat to send for a row, the row's own answer, and the row's own parts of the chat."""

    messages: list[Message]
    reply: Any
    asked: tuple[str, ...] | None


def read_prompt(
    row: Row,
    knobs: Prepare,
    templates: tuple[str, ...],
    extra: dict[str, str],
    replies: tuple[str, ...] = ANSWER_COLUMNS,
) -> AskedRow:
    """Returns what is asked of a row.

    The columns of a row fill the spec's template, else the first of `templates` whose columns it
    has; `extra` are further values for a template. A column `system` becomes the system message.
    The answer is the first non-empty column of `replies`, or None; of several right answers, the
    first. Raises `ValueError` with the reason.
    """
    if row.messages is not None:
        return AskedRow(*chat_of(row), None)
    template = knobs.template or _fitting(row, templates, extra)
    text = fill(template, {**row.fields, **extra})
    if not text.strip():
        raise ValueError("the question is empty")
    reply = next((row.fields[name] for name in replies if not _blank(row.fields.get(name))), None)
    if isinstance(reply, list):
        reply = reply[0] if reply else None
    system = row.fields.get("system")
    own = [{"role": "system", "content": system}] if _is_text(system) else []
    return AskedRow([*own, {"role": "user", "content": text}], reply, _asked(row, template))


def _asked(row: Row, template: str) -> tuple[str, ...]:
    """Returns the columns of a row that a template asks, the choices before a question."""
    names = [name for name in dict.fromkeys(_columns(template, {})) if name in row.fields]
    choices = row.fields["choices"] if "choices" in names else []
    return (*map(str, choices), *(str(row.fields[name]) for name in names if name != "choices"))


def fill(template: str, fields: JsonObject) -> str:
    """Returns a template with each `{column}` replaced by its value; `{{` and `}}` are braces.

    Raises `ValueError` for an unknown column, a column without a value and an unpaired brace.
    """

    def value(place: re.Match[str]) -> str:
        name = place[1]
        if place[0] in ("{{", "}}"):
            return place[0][0]
        if name is None:
            raise ValueError("the template has an unpaired brace; write {{ or }} for a brace")
        if name not in fields:
            raise ValueError(
                f"the template names {{{name}}}, but the row has {', '.join(fields)}; "
                "write {{ and }} for braces that name no column"
            )
        if fields[name] is None:
            raise ValueError(f"the template names {{{name}}}, which is empty in this row")
        return str(fields[name])

    return PLACE.sub(value, template)


def _columns(template: str, extra: dict[str, str]) -> list[str]:
    """Returns the columns that a template needs, in their order."""
    return [name for name in re.findall(r"\{([^{}]+)\}", template) if name not in extra]


def _fitting(row: Row, templates: tuple[str, ...], extra: dict[str, str]) -> str:
    needed = {template: _columns(template, extra) for template in templates}
    for template, names in needed.items():
        if all(_is_text(row.fields.get(name)) for name in names):
            return template
    for names in needed.values():
        if all(name in row.fields for name in names):
            bad = next(name for name in names if not _is_text(row.fields[name]))
            raise ValueError(f"{bad} is not a text or is empty")
    least = [
        names for names in needed.values() if not any(set(n) < set(names) for n in needed.values())
    ]
    reads = " or ".join(dict.fromkeys(" and ".join(names) for names in least))
    raise ValueError(
        f"no messages and no {reads}, which is what this task type reads; "
        f"the row has {', '.join(row.fields) or 'no columns'}"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _blank(value)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
