"""Open questions with a short answer, compared after SQuAD's normalisation.

Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016).
"""

import re
import string
from typing import Any

from retort.records import Message
from retort.task_types import read_chat, read_question


def prompt(row: dict[str, Any]) -> tuple[list[Message], str | None]:
    """Reads `messages`, or `question` (with `context` put before it) and `answer`."""
    if "messages" in row:
        return read_chat(row)
    chat = read_question(row, "question", "prompt")
    if row.get("context"):
        chat[0]["content"] = f"{row['context']}\n\n{chat[0]['content']}"
    reply = row.get("answer")
    return chat, None if reply is None else str(reply)


def answer(text: str) -> str | None:
    """The whole text, lower-cased, without punctuation, articles and extra white space."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()) or None


def equal(given: str, expected: str) -> bool:
    """Equal after normalisation."""
    return given == answer(expected)
