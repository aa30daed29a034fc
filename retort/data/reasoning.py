"""Reasoning before the answer: how the teacher is told to reason, and how its text is split.

The student gets no such instruction; it learns `target_text`. `split` never fails: a text in which
nothing marks an answer is an answer as a whole.
"""

import json
import re
from typing import Literal

from retort.data.task_types import TaskType, reasoning_of
from retort.records import JsonObject, Message
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
# GSM8K's marker: a number follows it, but not the number of a heading (#### 2. Multiply)
MARK = re.compile(r"(?<!#)####(?!#)[ \t]*")
MARKED = re.compile(r"[^\w\n]{0,4}\d(?!\d*[.)][ \t]+\w)")


def instruction(task_type: TaskType, knobs: Generate) -> str | None:
    """Returns the text that is added to each question for the teacher, or None.

    Raises `SpecError` when the task type has no instruction for the kind of reasoning.
    """
    if knobs.instruction is not None:
        return knobs.instruction
    return None if knobs.reasoning == "none" else reasoning_of(task_type, knobs.reasoning)


def instructed(messages: list[Message], text: str) -> list[Message]:
    """Returns a new chat with a text added to the last user turn."""
    last = max(index for index, turn in enumerate(messages) if turn["role"] == "user")
    turn = {**messages[last], "content": f"{messages[last]['content']}\n\n{text}"}
    return [*messages[:last], turn, *messages[last + 1 :]]


def split(text: str) -> tuple[str | None, str]:
    """Returns the rationale and the answer of a text; (None, text) if nothing marks an answer.

    The rationale is the text between <think> tags, and in the rest of the text the field of a JSON
    object with both, or what comes before the last `Answer:` or `####`. The answer is empty if the
    text ends before it.
    """
    thought, rest = think(text)
    fields = _fields(rest)
    if (reason := _value(fields, RATIONALE_KEYS)) is not None:
        answer = _value(fields, ANSWER_KEYS)
        if answer is not None:
            return _joined(thought, reason), answer.strip()
    places = marks(rest)
    if not places:
        return thought, text if thought is None else rest
    mark = max(places, key=lambda place: place.end())
    before, answer = rest[: mark.start()], rest[mark.end() :]
    if "**" in mark[0] and mark[0].count("**") % 2:  # **Answer: x** is closed after the answer
        answer = answer.replace("**", "", 1)
    return _joined(thought, before), answer.strip()


def think(text: str) -> tuple[str | None, str]:
    """Returns the text between <think> tags, and the rest; (None, text) without tags.

    Many chat templates write the opening tag themselves: a closing tag alone is enough. After a
    tag that is not closed, the answer is empty.
    """
    if thought := THOUGHT.match(text):
        inside, rest = thought[0], text[thought.end() :]
    elif text.lstrip().startswith("<think>"):
        inside, rest = text, ""
    elif "</think>" in text and "<think>" not in text:
        inside, _, rest = text.partition("</think>")
    else:
        return None, text
    return re.sub("</?think>", "", inside).strip(), rest.strip()


def marks(text: str) -> list[re.Match[str]]:
    """Returns each `Answer:`, and each `####` before a number or in the last line."""
    last_line = text.rfind("\n", 0, len(text.rstrip())) + 1
    hashes = [mark for mark in MARK.finditer(text) if text[mark.end() : mark.end() + 1].strip()]
    hashes = [m for m in hashes if m.start() >= last_line or MARKED.match(text, m.end())]
    return [*ANSWER.finditer(text), *hashes]


def json_answer(text: str) -> str | None:
    """Returns the answer field of the JSON object in a text, or None."""
    return _value(_fields(text), ANSWER_KEYS)


def conclusion(text: str) -> str:
    """Returns the answer in a text: the answer field of a JSON object, else as `split`."""
    rest = think(text)[1]
    answer = json_answer(rest)
    return split(rest)[1] if answer is None else answer.strip()


def target_text(text: str, style: Literal["drop", "field", "think"]) -> tuple[str, str | None]:
    """Returns the text that the student learns, and the rationale that is stored beside it.

    The text is empty if there is no answer to learn.
    """
    rationale, answer = split(text)
    if style == "field":
        return answer, rationale
    if style == "drop" or not rationale or not answer:
        return answer, None
    return f"<think>\n{rationale}\n</think>\n\n{answer}", None


def _joined(*parts: str | None) -> str | None:
    return "\n\n".join(part.strip() for part in parts if part and part.strip()) or None


def _fields(text: str) -> JsonObject:
    """Returns the JSON object in a text, bare or fenced, with keys in lower case; {} if none."""
    first, last = text.find("{"), text.rfind("}")
    if not 0 <= first < last:
        return {}
    for part in (*reversed(FENCE.findall(text)), text[first : last + 1]):
        try:
            # not strict: models write line breaks into their strings
            value = json.loads(part, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return {key.lower(): item for key, item in value.items()}
    return {}


def _value(fields: JsonObject, keys: tuple[str, ...]) -> str | None:
    """Returns the first field that is not null, as text; a list of texts as lines."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = "\n".join(value)
        if value is not None:
            return value if isinstance(value, str) else json.dumps(value)
    return None
