"""Labels of a closed set: which one a text names, and whether a set can be told apart at all."""

import functools
import unicodedata
from collections.abc import Iterable
from typing import Any

import regex

from retort.data.text_stats import UNSPACED
from retort.errors import SpecError

# Punctuation and markup around a label are none of it, unless it is nothing else: ":)", "**". The
# signs before -1 and at the end of C++, C# and 50% belong to the label.
START, SIGNED, KEPT_AT_END = regex.compile(r"[\s\p{P}]*"), regex.compile(r"[+-]\d"), "#%&@/+-"
BETWEEN_WORDS = regex.compile(r"(?<=[\p{L}\p{M}\p{N}])[\s_-]+(?=[\p{L}\p{M}\p{N}])")
LETTER = r"[\p{L}\p{M}\p{N}]"
# Chinese, Japanese and Thai put no spaces between words; Korean puts its particles behind them.
NO_SPACES, PARTICLES = regex.compile(f"[{UNSPACED}]"), regex.compile(r"\p{Hangul}")
MOST_DIGITS = 18
TRUE_WORDS, FALSE_WORDS = ("true", "yes", "1"), ("false", "no", "0")


def plain(label: str) -> str:
    """Returns a label without case, with one space between words and no punctuation around it."""
    text = unicodedata.normalize("NFKC", label).casefold().strip()
    text = str(BETWEEN_WORDS.sub(" ", text))
    start, end = START.match(text).end(), len(text)
    if start and SIGNED.match(text, start - 1):
        start -= 1
    while end > start and text[end - 1] not in KEPT_AT_END and START.fullmatch(text[end - 1]):
        end -= 1
    return text[start:end] or text


def check(labels: tuple[str, ...]) -> None:
    """Raises `SpecError` for labels that no answer could tell apart, and for an empty one."""
    first: dict[str, str] = {}
    for label in labels:
        if not label.strip():
            raise SpecError("prepare.labels: a label is empty; give each label a name")
        if (other := first.setdefault(plain(label), label)) is not label or labels.count(label) > 1:
            raise SpecError(
                f"prepare.labels: {other!r} and {label!r} are the same label, as case, spaces and "
                "punctuation around a label do not count; rename one"
            )


def in_text(text: str, labels: tuple[str, ...]) -> str | None:
    """Returns the label that a text names, as written in the set; None for none or several."""
    by_plain = {plain(label): label for label in labels}
    for exact in ({plain(text)}, {plain(line) for line in text.splitlines()}):
        if len(named := exact & set(by_plain)) == 1:
            return by_plain[named.pop()]
    spoken = unicodedata.normalize("NFKC", text).casefold()
    named = {plain(found) for found in _pattern(tuple(by_plain)).findall(spoken)}
    return by_plain[named.pop()] if len(named) == 1 else None


@functools.lru_cache(maxsize=256)
def _pattern(names: tuple[str, ...]) -> Any:
    """Returns what finds labels in a sentence, the longest first: "not entailment" is no
    "entailment". Labels without a letter or a digit are only found alone."""
    lettered = [name for name in names if regex.search(LETTER, name)]
    ways = [_way(name) for name in sorted(lettered, key=len, reverse=True)]
    return regex.compile("|".join(ways) or r"(?!)")


def _way(name: str) -> str:
    words = r"[\s_-]+".join(map(regex.escape, name.split()))
    before, after = rf"(?<!{LETTER})(?<!{LETTER}[_-])", rf"(?!{LETTER})(?![_-]{LETTER})(?![+#])"
    if len(name) > 1 and NO_SPACES.match(name[0]):
        before = ""
    if len(name) > 1 and (NO_SPACES.match(name[-1]) or PARTICLES.match(name[-1])):
        after = ""
    return f"{before}{words}{after}"


def of_truth(value: Any, labels: Iterable[str]) -> str | None:
    """Returns the label for a truth value, also as text: the one that says yes or true, or no."""
    text = str(value).strip().casefold()
    if text not in ("true", "false"):
        return None
    words = TRUE_WORDS if text == "true" else FALSE_WORDS
    return next((label for word in words for label in labels if plain(label) == word), None)


def whole_number(value: Any) -> int | None:
    """Returns a whole number or truth value, also as pandas writes it (2.0, True); else None."""
    text = str(value).strip()
    if text.casefold() in ("true", "false"):
        return int(text.casefold() == "true")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, point, zeros = digits.partition(".")
    is_long = len(whole) > MOST_DIGITS  # no index, and Python refuses integers of 4300 digits
    if not whole.isdecimal() or is_long or (point and zeros.strip("0")):
        return None
    return int(sign + whole)
