"""Filters of curation: each a function that returns why a response is rejected, or None.

They are named in `curate.filters` in order, and the first reason wins. A filter sees one example,
one response and the job's task type.
"""

from retort.records import Example, Response
from retort.task_types import TaskType


def finished(example: Example, response: Response, task_type: TaskType) -> str | None:
    """Rejects answers that were cut off or never given; a cut answer would teach not to end."""
    return None if response.state == "accepted" else response.state


def non_empty(example: Example, response: Response, task_type: TaskType) -> str | None:
    """Rejects answers of white space only; a call of a tool is an answer."""
    return None if response.text.strip() or response.tool_calls else "empty"


def verified(example: Example, response: Response, task_type: TaskType) -> str | None:
    """Rejects answers that differ from the expected one, where the example carries one."""
    if example.expected is None:
        return None
    given = task_type.answer(response.text)
    if given is None:
        return "no answer found"
    return None if task_type.equal(given, example.expected) else "wrong answer"
