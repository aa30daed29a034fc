"""Conversation: the reply to the last user turn. There is rarely one right answer.

An expected reply, where a row has one, counts only when the text is the same; the agreement of
student and teacher is the score to look at.
"""

from typing import Any

from retort.records import Message
from retort.task_types import read_chat, read_question


def prompt(row: dict[str, Any]) -> tuple[list[Message], str | None]:
    """Reads `messages` or `prompt`. What the teacher replies is the lesson: none is expected."""
    if "messages" in row:
        return read_chat(row)[0], None
    return read_question(row, "prompt"), None


def answer(text: str) -> str | None:
    """The whole text with white space folded."""
    return " ".join(text.split()) or None


def equal(given: str, expected: str) -> bool:
    """The same text."""
    return given == expected
