"""Reasoning before the answer: how the teacher is told to, and how its text is split afterwards.

The student is never told; it learns from `target_text`. Whatever a text holds, `split` returns: a text
in which nothing marks an answer is an answer as a whole.
"""

import json
import re
from typing import Any, Literal

from retort.data.task_types import TaskType, reasoning_of
from retort.records import Message
from retort.spec import Generate

RATIONALE_KEYS = ("reasoning", "rationale", "explanation", "thought", "thoughts", "cot")
ANSWER_KEYS = ("answer", "final_answer", "answer_choice", "label", "prediction")
THOUGHT = re.compile(r"(?:\s*<think>.*?</think>)+", re.DOTALL)
FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
# At the start of a line or of a sentence, bold or not: Answer: x, **Final answer:** x
ANSWER = re.compile(
    r"(?:^|(?<=[.!?])[ \t])[ \t>#*_`-]*(?:the[ \t]+)?(?:final[ \t]+)?answer(?:[ \t]+is)?"
    r"[ \t*_]*[:\uff1a](?P<bold>[ \t]*\*\*)?",
    re.IGNORECASE | re.MULTILINE,
)
# GSM8K's marker; a number stands right after it, but not a heading's own (#### 2. Multiply)
MARK = re.compile(r"(?<!#)####(?!#)[ \t]*")
MARKED = re.compile(r"[^\w\n]{0,4}\d(?!\d*[.)][ \t]+\w)")


def instruction(task_type: TaskType, knobs: Generate) -> str | None:
    """Returns what is put to the teacher after each question, or None.

    Raises `SpecError` when the task type has no words for the kind of reasoning.
    """
    if knobs.instruction is not None:
        return knobs.instruction
    return None if knobs.reasoning == "none" else reasoning_of(task_type, knobs.reasoning)


def instructed(messages: list[Message], text: str) -> list[Message]:
    """Returns a chat with a text added to its last user turn; the given chat stays as it is."""
    last = max(index for index, turn in enumerate(messages) if turn["role"] == "user")
    turn = {**messages[last], "content": f"{messages[last]['content']}\n\n{text}"}
    return [*messages[:last], turn, *messages[last + 1 :]]


def split(text: str) -> tuple[str | None, str]:
    """Returns the rationale and the answer of a text; (None, text) where nothing marks an answer.

    Reads thoughts between <think> tags, then in what follows them a JSON object with both, or the
    last `Answer:` or `####`. The answer is empty where the text ends before it comes to one.
    """
    thought, spoken = think(text)
    given = _fields(spoken)
    if (reason := _value(given, RATIONALE_KEYS)) is not None:
        answer = _value(given, ANSWER_KEYS)
        if answer is not None:
            return _joined(thought, reason), answer.strip()
    places = marks(spoken)
    if not places:
        return thought, text if thought is None else spoken
    mark = max(places, key=lambda found: found.end())
    before, answer = spoken[: mark.start()], spoken[mark.end() :]
    if "**" in mark[0] and mark[0].count("**") % 2:  # **Answer: x** is closed after the answer
        answer = answer.replace("**", "", 1)
    return _joined(thought, before), answer.strip()


def think(text: str) -> tuple[str | None, str]:
    """Returns what stands between <think> tags, and what follows; (None, text) without any.

    Many chat templates write the opening tag themselves: a closing tag alone is enough. A thought
    that is not closed leaves no answer.
    """
    begun = text.lstrip().startswith("<think>")
    if found := THOUGHT.match(text):
        inside, rest = found[0], text[found.end() :]
    elif begun:
        inside, rest = text, ""
    elif "</think>" in text and "<think>" not in text:
        inside, _, rest = text.partition("</think>")
    else:
        return None, text
    return re.sub("</?think>", "", inside).strip(), rest.strip()


def marks(text: str) -> list[re.Match[str]]:
    """Returns each `Answer:`, and each `####` with a number after it or in the last line."""
    last_line = text.rfind("\n", 0, len(text.rstrip())) + 1
    found = [mark for mark in MARK.finditer(text) if text[mark.end() : mark.end() + 1].strip()]
    hashes = [m for m in found if m.start() >= last_line or MARKED.match(text, m.end())]
    return [*ANSWER.finditer(text), *hashes]


def json_answer(text: str) -> str | None:
    """Returns the answer's field of the JSON object in a text, or None."""
    return _value(_fields(text), ANSWER_KEYS)


def conclusion(text: str) -> str:
    """Returns the part of a text that holds its answer: the field of a JSON object, or as split."""
    spoken = think(text)[1]
    answer = json_answer(spoken)
    return split(spoken)[1] if answer is None else answer.strip()


def target_text(text: str, style: Literal["drop", "field", "think"]) -> tuple[str, str | None]:
    """Returns the text that the student learns, and what is kept beside it.

    The text is empty where there is no answer to learn.
    """
    rationale, answer = split(text)
    if style == "field":
        return answer, rationale
    if style == "drop" or not rationale or not answer:
        return answer, None
    return f"<think>\n{rationale}\n</think>\n\n{answer}", None


def _joined(*parts: str | None) -> str | None:
    return "\n\n".join(part.strip() for part in parts if part and part.strip()) or None


def _fields(text: str) -> dict[str, Any]:
    """Returns the JSON object in a text, bare or fenced, with keys in lower case; {} if none."""
    first, last = text.find("{"), text.rfind("}")
    if not 0 <= first < last:
        return {}
    for part in (*reversed(FENCE.findall(text)), text[first : last + 1]):
        try:
            # not strict: models write line breaks into their strings
            found = json.loads(part, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return {key.lower(): value for key, value in found.items()}
    return {}


def _value(fields: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """Returns the first of some fields that holds anything, as text; a list as lines."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = "\n".join(value)
        if value is not None:
            return value if isinstance(value, str) else json.dumps(value)
    return None
