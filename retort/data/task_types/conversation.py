"""Conversation: the reply to a user's turn. There is no right one, so none is ever expected.

A reply that stands in the row is only the reference: answers are held against it, but what decides
is the agreement of student and teacher, which is the same text.
"""

from retort.data.reasoning import think
from retort.data.task_types import asked
from retort.records import Example, Prompt, Row
from retort.spec.prepare import Prepare

FILTERS = ("finished", "not_refused", "non_empty", "roles_alternate")
METRICS = (
    "agreement",
    "rouge_l",
    "rouge_1",
    "rouge_2",
    "bleu",
    "length_ratio",
    "entity_coverage",
)
TEMPLATES = ("{prompt}",)
REASONING = {
    "chain_of_thought": (
        "Before you reply, reason step by step about what is asked and what helps. Then end with "
        "the reply alone, as it shall be read, in this form:\nAnswer: <the reply>"
    )
}


def prompt(row: Row, knobs: Prepare) -> Prompt:
    """Reads a chat, or `prompt` with `completion`."""
    chat, reply = asked(row, knobs, TEMPLATES, {})
    return Prompt(chat, reference=None if reply is None else str(reply))


def answer(text: str, example: Example) -> str | None:
    """The whole text with white space folded, without thoughts between <think> tags."""
    return " ".join(think(text)[1].split()) or None


def equal(given: str, expected: str) -> bool:
    """The same text."""
    return given == expected
