"""Numbers as people and models write them, in TeX or plain, read as exact rational values.

A decimal comma is not guessed: 3,5 is no number, and 1,234 is grouped by thousands.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

FRACTION = re.compile(r"(\S?)[ ]*\\[dtc]?frac\s*(\{[^{}]*\}|\d)\s*(\{[^{}]*\}|\d)")


def _fraction(match: re.Match[str]) -> str:
    """Returns a fraction of TeX as a/b; behind a number it is the rest of a mixed number."""
    before, above, below = match[1], match[2].strip("{} "), match[3].strip("{} ")
    return f"{before}{'' if before in ('', '-', '+', '(', '$') else ' '}{above}/{below}"


def _vulgar(match: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/")


Plain = str | Callable[[re.Match[str]], str]
# What TeX and typography write, and the plain notation for it, in the order of replacement.
PLAINER: list[tuple[re.Pattern[str], Plain]] = [
    (re.compile(r"[\u2212\u2013]"), "-"),
    (re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]"), _vulgar),
    (re.compile("\u2044"), "/"),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|rm)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[()\[\]]"), " "),  # around a formula
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,;:]|['\u2019])(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\[,;: ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])|\u00b0"), " degrees "),
    (FRACTION, _fraction),
    (re.compile(r"(?<!\d)\*\*|\*\*(?!\d)"), " "),  # bold
    (
        re.compile(r" ?(?:\\times|\\cdot|[\u00d7*\u00b7])\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?"),
        r"e\1",
    ),
    (re.compile(r"(?<![\d.,])10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?"), r"1e\1"),
    # the 2 of cm^2 and of m^2, but not of x^2
    (re.compile(r"(?<=[^\W\d_]{2})\s*\^\s*\{?\s*\d+\s*\}?"), ""),
    (re.compile(r"(?<![^\W\d_])(m|g|s)\s*\^\s*\{?\s*\d+\s*\}?"), r"\1"),
]
NO_RATIONAL = re.compile(r"\\(?:sqrt|pi|frac|dfrac|infty|ln|log|sin|cos|tan)\b|[√π∞]")
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])-[$€£¥₹]?)?"
    r"(?<![\d^])(?P<whole>\d+ +(?=\d+/\d))?"
    r"(?P<digits>\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?:\.\d+)?(?![\d.,]*\d)"
    r"|\d(?:[\d.,]*\d)?|(?<![\w.])\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d+))?"
    r"(?: ?/ ?(?P<below>\d(?:[\d.,]*\d)?))?(?P<more>[/^:]\S*)?"
)
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALE = re.compile(rf"\s*(?:{'|'.join(SCALES)})s?\b", re.IGNORECASE)
# Grouped by thousands, also as in India, or not grouped.
GROUPED = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d*)(?:\.\d+)?")
OPERATOR = re.compile(r"\s*[+*\u00d7\u00f7^/]|\s+-\s|\s*\\(?:times|cdot|div)\b")
MOST_DIGITS = 400  # of a number; longer ones would only use up memory
# What may be around the number of an answer that is nothing else: brackets, currencies, a unit.
BEFORE = re.compile(r"[\s$€£¥₹(\[{]*(?:[A-Z]{2,3}\$?\s?)?[-+]?\s*")
POINT = re.compile(r"[(\[{].*,.*[)\]}]")
LETTER = r"[^\W\d_]"
UNIT = re.compile(
    rf"\s*[%$€£¥₹]?(?:[\s-]*(?:{LETTER}{{2,}}|[mgshlLCFKNJWVA])(?!{LETTER})\.?(?:\s*/)?)*"
    r"(?:\s*\([^()]*\)|\s*\[[^\[\]\d]*\])?[\s.)\]}]*"
)
NO_UNIT = re.compile(
    r"\b(?:and|or|to|by|half|halves|thirds?|quarters?|dozens?|hundreds?|squared|cubed)\b", re.I
)
# A command of TeX, a power, or a letter that is a variable: an expression, not a number.
VARIABLE = rf"(?<![^\W_])[a-zA-Z](?!{LETTER})"
EXPRESSION = re.compile(
    rf"\\[A-Za-z]|[_^|√π∞±]|\d(?![mgshlL])[a-zA-Z](?!{LETTER})|{VARIABLE}\s*[-+*/]|[-+*/]\s*{VARIABLE}"
)


def exact(text: str) -> Fraction | None:
    """Returns the one number that a text is, maybe with its unit; None if it is anything else.

    Of an equation it is the right side. 5 dollars, -\\frac12 and x = 3 are numbers; 2k + 2,
    3\\sqrt{13}, (2, 12) and "3 or 5" are not.
    """
    plain = plainer(text.strip().strip("$")).strip()
    if "=" in plain:
        if re.search(r"[,;]\s|\b(?:and|or)\b", plain) or EXPRESSION.search(plain.rsplit("=")[-1]):
            return None
        plain = plain.rpartition("=")[2].strip()
    plain = plain.rstrip(".")
    found = list(NUMBER.finditer(plain))
    if len(found) > 1 and (note := re.search(r"\s\(", plain)):  # 18 (that is 9 * 2)
        found = [match for match in found if match.start() < note.start()]
    if len(found) != 1 or POINT.fullmatch(plain):
        return None
    number = found[0]
    value, end = _scaled(number)
    before, after = plain[: number.start()], plain[end:]
    if value is None or not BEFORE.fullmatch(before) or NO_UNIT.search(after.partition("(")[0]):
        return None
    negative = "-" in before and not number["sign"]
    return (-value if negative else value) if UNIT.fullmatch(after) else None


def number_at(place: str, any_commas: bool = False) -> Fraction | None:
    """Returns the number of a place that holds an answer, such as the rest of "Answer: ...".

    It is the first if the place begins with it (18 dollars, which is 9 more), else the last
    (9 * 2 = 18; she makes 18). `any_commas` removes every comma, as GSM8K's own rule does.
    """
    if not any_commas and (value := exact(place)) is not None:
        return value
    text = re.sub(r"^\W*?-\s+(?=[$\d])", "-", plainer(place))
    found = _numbers(text)
    if not found or NO_RATIONAL.search(text):
        return None
    first = found[0]
    if any_commas:
        return _value(first, any_commas)
    if "=" in text or re.search(r"\w", text[: first.start()]):
        return _scaled(found[-1])[0]
    return None if OPERATOR.match(text, first.end()) else _scaled(first)[0]


def last_number(text: str) -> Fraction | None:
    """Returns the last number in a text, or None."""
    found = _numbers(plainer(text))
    return _scaled(found[-1])[0] if found else None


def is_expression(text: str) -> bool:
    """Whether a text is an expression of TeX or with variables, from which no number is taken."""
    plain = plainer(text.strip().strip("$"))
    is_prose = len(re.findall(rf"{LETTER}{{2,}}", plain)) > 2
    return not is_prose and EXPRESSION.search(plain) is not None


def plainer(text: str) -> str:
    """Returns a text with plain notation in place of TeX's and typography's."""
    for pattern, plain in PLAINER:
        text = pattern.sub(plain, text)
    return text


def normal(value: Fraction) -> str:
    """Returns a value as an integer, as a decimal if that is exact, else as a fraction."""
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


def _numbers(text: str) -> list[re.Match[str]]:
    """Returns what looks like a number; those behind a letter (m2, x1) only without others."""
    found = list(NUMBER.finditer(text))
    return [m for m in found if not text[m.start() - 1 : m.start()].isalpha()] or found


def _scaled(number: re.Match[str]) -> tuple[Fraction | None, int]:
    """Returns the value of a number with a word such as "million" behind it, and where it ends."""
    value, scale = _value(number), SCALE.match(number.string, number.end())
    if value is None or not scale:
        return value, number.end()
    name = scale[0].strip().lower()
    power = next(power for word, power in SCALES.items() if name.startswith(word))
    return value * 10**power, scale.end()


def _value(number: re.Match[str], any_commas: bool = False) -> Fraction | None:
    """Returns the exact value of a match of NUMBER, or None if it would have to be guessed."""
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
