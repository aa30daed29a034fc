"""Short answers in normal form, and whether two of them mean the same.

The normal form is close to SQuAD's (lower case, without punctuation and articles), but keeps every
sign that changes the meaning: the point of 3.14, the minus of -5, the pluses of C++.
Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016).
"""

import re
import string
import unicodedata
from decimal import Decimal

# Raised and lowered digits are not those of the number before them: 5² is not 52.
RAISED = re.compile("([⁰¹²³⁴-⁹]+)")
LOWERED = re.compile("([₀-₉]+)")
STRAIGHT = str.maketrans(
    "\u2044\u2018\u2019\u02bc\u201c\u201d\u2212\u2010\u2011\u2012\u2013", "/'''\"\"-----"
)
GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d,])")
CURRENCIES = "$€£¥₹₩₽¢"
BEFORE_UNIT = re.compile(rf"(?<=\d)\s+(?=[%{CURRENCIES}])")
ARTICLES = re.compile(r"(?<!\S)(?:a|an|the)(?=\s+\S)")
NUMBER = re.compile(
    rf"(?P<sign>-?)(?P<unit>[{CURRENCIES}]?)(?P<sign2>-?)"
    rf"(?P<digits>(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+)(?P<unit2>[%{CURRENCIES}]?)"
)
ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)")
# A sign at one of these places means something; elsewhere it is punctuation, which is dropped.
KEPT = re.compile(
    r"(?<=\d)[.,:/'-](?=\d)"  # 3.14, 1,5 (not grouped), 7:30, 1/2, 5'10, 5-10
    r"|(?<![\w.])\.(?=\d)"  # .5
    rf"|(?<!\w)-(?=\.?\d|[{CURRENCIES}]\.?\d)|(?<=[{CURRENCIES}])-(?=\d)"  # -5, -$5, $-5
    r"|(?<=\w)\++(?!\w)|(?<=\w)\+(?=\w)|(?<=\w)#|(?<!\w\w)(?<=[a-z])-(?![\w-])"  # C++, C#, A-
    rf"|[<>=^~|]|!(?==)|(?<=\w)\*(?=\w)|(?<=\d)\s?%|[{CURRENCIES}](?=-?\.?\d)|(?<=\d)[{CURRENCIES}]"
)


def normal(text: str) -> str:
    """Returns a short answer in lower case without punctuation, articles and extra white space.

    An answer of nothing else, such as the letter A or a smiley, is kept.
    """
    return _bare(text.lower()) or " ".join(text.lower().split())


def same(one: str, two: str) -> bool:
    """Whether two answers in normal form mean the same: equal as texts or as numbers.

    Characters that only look different are equal: the two ways to write an accent, quotation marks
    and the punctuation of other scripts. 3.0 is 3 and $1.50 is 1.5, but 3.14 is not 314, $5 is not
    €5, and version 3.10 is not version 3.1.
    """
    one, two = _canonical(one), _canonical(two)
    if one == two or ZEROS.sub("", one) == ZEROS.sub("", two):
        return True
    numbers = [number for number in map(NUMBER.fullmatch, (one, two)) if number]
    if len(numbers) < 2:
        return False
    values = [_value(number) for number in numbers]
    units = [number["unit"] or number["unit2"] for number in numbers]
    return values[0] == values[1] and (units[0] == units[1] or "" in units)


def _canonical(text: str) -> str:
    """Returns an answer with one character for all that look or mean the same."""
    plain = LOWERED.sub(r" \1 ", RAISED.sub(r"^\1", text.translate(STRAIGHT)))
    plain = unicodedata.normalize("NFKC", plain).translate(STRAIGHT).casefold()
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in plain)
    bare = "".join(" " if _is_foreign_punctuation(c) else c for c in _bare(plain))
    return BEFORE_UNIT.sub("", " ".join(bare.split())) or " ".join(plain.split())


def _is_foreign_punctuation(char: str) -> bool:
    return not char.isascii() and unicodedata.category(char)[0] == "P"


def _bare(text: str) -> str:
    """Returns a text without articles and without the punctuation of ASCII that means nothing."""
    text = GROUPS.sub(lambda match: match[0].replace(",", ""), text)
    parts, end = [], 0
    for kept in KEPT.finditer(text):
        parts += [_without_punctuation(text[end : kept.start()]), kept[0]]
        end = kept.end()
    bare = "".join([*parts, _without_punctuation(text[end:])])
    return " ".join(ARTICLES.sub(" ", " ".join(bare.split())).split())


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text if c not in string.punctuation)


def _value(number: re.Match[str]) -> Decimal:
    """Returns the exact value of a number of any length; Python's integers end at 4300 digits."""
    value = Decimal(number["digits"])
    return value.copy_negate() if number["sign"] or number["sign2"] else value
