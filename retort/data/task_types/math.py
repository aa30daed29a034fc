"""Mathematical reasoning: worked steps and a final number, compared as an exact value.

1,234 and $1234.00 are the same answer, and 12% is 12. A decimal comma is not guessed: 3,5 is no
number. After `####` GSM8K's own rule holds: all commas are taken out.
Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021), grade-school-math.
"""

import re
from fractions import Fraction

from retort.data.reasoning import json_answer, marks, think
from retort.data.task_types import read_prompt
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
# What TeX and typography write otherwise, in this order.
PLAINER = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"[\u2212\u2013]", "-"),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2"),
        (r"(?<=\d)(?:\{,\}|\\[,!;:])(?=\d{3})", ","),
        (r"\\([$%])", r"\1"),
        (r"(?<!\d)\*\*|\*\*(?!\d)", " "),  # bold
        (r" ?(?:\\times|\\cdot|[\u00d7*\u00b7])\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?", r"e\1"),
        (r"(?<![\d.,])10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?", r"1e\1"),
        (r"([^\W\d])\s*\^\s*\{?\s*\d+\s*\}?", r"\1"),  # the 2 of cm^2
    )
]
BOX = re.compile(r"\\f?boxed\s*\{")
ANSWER_IS = re.compile(r"\banswer\s+is\b:?(?=\W*\d)", re.IGNORECASE)
NO_RATIONAL = re.compile(r"\\(?:sqrt|pi|frac|dfrac|infty|ln|log|sin|cos|tan)\b|[√π∞]")
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])-[$€£¥₹]?)?"
    r"(?<![\d^])(?P<whole>\d+ +(?=\d+/\d))?"
    r"(?P<digits>\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?:\.\d+)?(?![\d.,]*\d)"
    r"|\d(?:[\d.,]*\d)?|(?<![\w.])\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d+))?"
    r"(?: ?/ ?(?P<below>\d(?:[\d.,]*\d)?))?(?P<more>[/^:]\S*)?"
)
# By thousands, as in India too, or not grouped at all.
GROUPED = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d*)(?:\.\d+)?")
OPERATOR = re.compile(r"\s*[+*\u00d7\u00f7^/]|\s+-\s|\s*\\(?:times|cdot|div)\b")
MOST_DIGITS = 400  # of a number that is read; more are no answer, but a way to use up memory


def prompt(row: Row, knobs: Prepare) -> Prompt:
    """Reads a chat, `question` (or `problem`) with `answer` (or `solution`), or `prompt`."""
    chat, reply = read_prompt(row, knobs, TEMPLATES, {}, ("answer", "solution", "completion"))
    if reply is None:
        return Prompt(chat)
    expected = _found(str(reply))
    if expected is None:
        raise ValueError(f"the expected answer {str(reply)[:60]!r} holds no number")
    return Prompt(chat, expected, str(reply))


def answer(text: str, example: Example) -> str | None:
    """The number that a text marks as its answer, else the last one in it, or None.

    Marks are a JSON field, `####`, `\\boxed{}`, `Answer:` and "the answer is"; the last one counts.
    """
    return _found(text)


def equal(given: str, expected: str) -> bool:
    """Equal as exact rational numbers."""
    value = _number(given)
    return given == expected or (value is not None and value == _number(expected))


def _found(text: str) -> str | None:
    spoken = think(text)[1]
    places = [*BOX.finditer(spoken), *marks(spoken), *ANSWER_IS.finditer(spoken)]
    if (field := json_answer(spoken)) is not None:
        value = _number(field)
    elif places:
        value = _marked(spoken, max(places, key=lambda place: place.end()))
    else:
        numbers = _numbers(_plain(spoken))
        value = _value(numbers[-1]) if numbers else None
    return None if value is None else _normal(value)


def _marked(text: str, mark: re.Match[str]) -> Fraction | None:
    """Returns the number that a mark points to."""
    if BOX.fullmatch(mark[0]):
        return _number(_within_braces(text, mark.end()))
    return _number(_first_with_number(text[mark.end() :]), any_commas="####" in mark[0])


def _within_braces(text: str, start: int) -> str:
    """Returns what stands before the brace that closes the one before `start`."""
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


def _number(place: str, any_commas: bool = False) -> Fraction | None:
    """Returns the number of a place that an answer stands in.

    That is the first where the place begins with it (18 dollars, which is 9 more), else the last
    (9 * 2 = 18; she makes 18).
    """
    text = re.sub(r"^\W*?-\s+(?=[$\d])", "-", _plain(place))
    numbers = _numbers(text)
    if not numbers or NO_RATIONAL.search(text):
        return None
    first = numbers[0]
    if any_commas:
        return _value(first, any_commas)
    if "=" in text or re.search(r"\w", text[: first.start()]):
        return _value(numbers[-1])
    return None if OPERATOR.match(text, first.end()) else _value(first)


def _plain(text: str) -> str:
    for pattern, plain in PLAINER:
        text = pattern.sub(plain, text)
    return text


def _numbers(text: str) -> list[re.Match[str]]:
    """Returns what looks like a number; those that end a word (m2, x1) only where no others do."""
    found = list(NUMBER.finditer(text))
    return [m for m in found if not text[m.start() - 1 : m.start()].isalpha()] or found


def _value(number: re.Match[str], any_commas: bool = False) -> Fraction | None:
    """Returns the exact value of a match of NUMBER, or None where it is none without guessing."""
    parts = [re.sub(r"\s", "", number[name] or "") for name in ("whole", "digits", "below")]
    if any_commas:
        parts = [part.replace(",", "") for part in parts]
    exponent = int((number["exponent"] or "0")[:6])
    if number["more"] or abs(exponent) > MOST_DIGITS or len(number[0]) > MOST_DIGITS:
        return None
    if not all(GROUPED.fullmatch(part) for part in parts):
        return None
    whole, above, below = (
        Fraction(part.replace(",", "") or default)
        for part, default in zip(parts, "001", strict=True)
    )
    if below == 0:
        return None
    value = whole + above * Fraction(10) ** exponent / below
    return -value if number["sign"] else value


def _normal(value: Fraction) -> str:
    """Returns a value as an integer, as a decimal where that is exact, else as a fraction."""
    below, twos, fives = value.denominator, 0, 0
    while below % 2 == 0:
        below, twos = below // 2, twos + 1
    while below % 5 == 0:
        below, fives = below // 5, fives + 1
    places = max(twos, fives)
    if below > 1 or not places:
        return str(value)
    whole, part = divmod(abs(value.numerator) * 10**places // value.denominator, 10**places)
    return f"{'-' if value < 0 else ''}{whole}.{part:0{places}d}"
