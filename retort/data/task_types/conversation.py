"""Conversation: the reply to a user's turn. No reply is the right one, so none is expected.

The row's own reply is only a reference for further metrics; what decides is whether student and
teacher reply with the same text.
"""

from retort.data.reasoning import think
from retort.data.task_types import read_prompt
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
    chat, reply, asked = read_prompt(row, knobs, TEMPLATES, {})
    return Prompt(chat, reference=None if reply is None else str(reply), asked=asked)


def answer(text: str, example: Example) -> str | None:
    """The whole text with white space folded, without the text between <think> tags."""
    return " ".join(think(text)[1].split()) or None


def equal(given: str, expected: str) -> bool:
    """The same text."""
    return given == expected
