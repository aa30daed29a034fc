"""Mathematical reasoning: worked steps, and a final number after `####` (the GSM8K convention).

Answers are compared as values: 1,234 and $1234.00 are the same answer.
"""

import re
from fractions import Fraction
from typing import Any

from retort.records import Message
from retort.task_types import read_chat, read_question

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+")


def prompt(row: dict[str, Any]) -> tuple[list[Message], str | None]:
    """Reads `messages`, or `question` (or `problem`) with the expected value in `answer`."""
    if "messages" in row:
        chat, reply = read_chat(row)
    else:
        chat, reply = read_question(row, "question", "problem"), row.get("answer")
    if reply is None:
        return chat, None
    expected = answer(str(reply))
    if expected is None:
        raise ValueError(f"the expected answer {str(reply)[:60]!r} holds no number")
    return chat, expected


def answer(text: str) -> str | None:
    """The number after the last `####`, else in the last `\\boxed{}`, else the last number."""
    after = text.rsplit("####", 1)
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    place = after[1] if len(after) == 2 else boxed[-1] if boxed else text
    numbers = NUMBER.findall(place)
    if not numbers:
        return None
    number = numbers[0] if len(after) == 2 else numbers[-1]
    return str(number.replace(",", ""))


def equal(given: str, expected: str) -> bool:
    """Equal as exact rational numbers."""
    try:
        return Fraction(given) == Fraction(expected)
    except (ValueError, ZeroDivisionError):
        return given == expected
