"""Mathematical reasoning: worked steps and a final number, compared as an exact value.

1,234 and $1234.00 are the same answer, and 12% is 12. After `####` GSM8K's own rule holds: all
commas are removed. A row whose own answer is not one rational number, such as 3\\sqrt{13} or
2k + 2, is bad: no right answer is made up.
Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021), grade-school-math.
"""

import re
from fractions import Fraction

from retort.data.reasoning import json_answer, marks, think
from retort.data.task_types import read_prompt
from retort.data.task_types._numbers import exact, is_expression, last_number, normal, number_at
from retort.records import Example, Prompt, Row
from retort.spec.prepare import Prepare

FILTERS = ("finished", "not_refused", "non_empty", "verified")
METRICS = ("accuracy",)
TEMPLATES = ("{question}", "{problem}", "{prompt}")
REASONING = {
    "chain_of_thought": (
        "Reason step by step, one calculation a line. Then end with one last line that holds the "
        "final number alone, in this form:\n#### <number>"
    )
}
BOX = re.compile(r"\\f?boxed\s*\{")
ANSWER_IS = re.compile(r"\banswer\s+is\b:?(?=\W*(?:\d|\\[dtc]?frac))", re.IGNORECASE)
# A row's own answer without a mark is a worked solution if it has several lines, an equation among
# some words, or many words; anything shorter must be a number as a whole.
SOME_WORDS, MANY_WORDS = 3, 9


def prompt(row: Row, knobs: Prepare) -> Prompt:
    """Reads a chat, `question` (or `problem`) with `answer` (or `solution`), or `prompt`."""
    columns = ("answer", "solution", "completion")
    chat, reply, asked = read_prompt(row, knobs, TEMPLATES, {}, columns)
    if reply is None:
        return Prompt(chat, asked=asked)
    expected = _gold(str(reply))
    if expected is None:
        shown = repr(str(reply)[:60])
        if re.search(r"\d", shown):
            raise ValueError(f"the expected answer is not one rational number: {shown}")
        raise ValueError(f"the expected answer {shown} holds no number")
    return Prompt(chat, normal(expected), str(reply), asked=asked)


def answer(text: str, example: Example) -> str | None:
    """The number that a text marks as its answer, else the last one in it, or None.

    Marks are a JSON field, `####`, `\\boxed{}`, `Answer:` and "the answer is"; the last one counts.
    """
    rest = think(text)[1]
    is_marked, value = _marked(rest)
    if not is_marked:
        value = exact(rest)
        value = last_number(rest) if value is None and not is_expression(rest) else value
    return None if value is None else normal(value)


def equal(given: str, expected: str) -> bool:
    """Equal as exact rational numbers."""
    value = number_at(given)
    return given == expected or (value is not None and value == number_at(expected))


def _gold(text: str) -> Fraction | None:
    """Returns the right answer in a row's own answer; None if it is not one rational number."""
    rest = think(text)[1]
    is_marked, value = _marked(rest)
    if is_marked or (value := exact(rest)) is not None:
        return value
    lines = len(rest.strip().splitlines())
    num_words = len(re.findall(r"[^\W\d_]{2,}", rest))
    is_worked = lines > 1 or num_words >= (SOME_WORDS if "=" in rest else MANY_WORDS)
    return last_number(rest) if is_worked and not is_expression(rest) else None


def _marked(text: str) -> tuple[bool, Fraction | None]:
    """Returns whether a text marks its answer, and the number at the last mark."""
    if (field := json_answer(text)) is not None:
        return True, number_at(field)
    places = [*BOX.finditer(text), *marks(text), *ANSWER_IS.finditer(text)]
    if not places:
        return False, None
    mark = max(places, key=lambda place: place.end())
    if BOX.fullmatch(mark[0]):
        inside = _within_braces(text, mark.end())
        value = exact(inside)
        return True, number_at(inside) if value is None and not is_expression(inside) else value
    place, any_commas = _first_with_number(text[mark.end() :]), "####" in mark[0]
    if not any_commas and is_expression(place):
        return True, exact(place)
    return True, number_at(place, any_commas)


def _within_braces(text: str, start: int) -> str:
    """Returns the text before the brace that closes the one before `start`."""
    depth = 1
    for brace in re.compile(r"\\?[{}]").finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return text[start:]


def _first_with_number(text: str) -> str:
    """Returns the first sentence of a text, or its first line, or all of it, that has a digit."""
    line = text.strip().split("\n", 1)[0]
    sentence = re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]
    return next((part for part in (sentence, line) if re.search(r"\d", part)), text)
