"""Questions: open ones with a short answer, and multiple choice where a row has `choices`.

Open answers are compared after SQuAD's normalisation, choices by their letter.
Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016).
"""

import re
import string
from typing import Any

from retort.data.reasoning import conclusion
from retort.data.task_types import read_prompt
from retort.records import Example, Prompt, Row
from retort.spec.prepare import Prepare

FILTERS = ("finished", "not_refused", "non_empty", "option_valid", "verified")
METRICS = ("accuracy", "exact_match", "token_f1", "macro_f1")
OPEN = ("{context}\n\n{question}", "{question}", "{prompt}")
CHOOSE = "{question}\n\n{choices}\n\nAnswer with the letter of the right choice alone."
CHOICES = (f"{{context}}\n\n{CHOOSE}", CHOOSE, "{prompt}")
REASONING = {
    "chain_of_thought": (
        "Reason step by step before you answer. Then end with one last line that holds nothing "
        "but the answer (of several choices the letter alone), in this form:\nAnswer: <the answer>"
    )
}


def prompt(row: Row, knobs: Prepare) -> Prompt:
    """Reads a chat, `question` (with `context`, with `choices`), or `prompt`; and the `answer`.

    In SQuAD's form of several right answers the first is the expected one, and all are right.
    """
    if choices := _options(row.fields):
        listed = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
        chat, reply = read_prompt(row, knobs, CHOICES, {"choices": listed})
    else:
        chat, reply = read_prompt(row, knobs, OPEN, {})
    options = choices or {label: label for label in knobs.labels}
    given = row.fields.get("answer")
    given = given.get("text") if isinstance(given, dict) else given
    replies = [r for r in (given if isinstance(given, list) else [reply]) if r is not None]
    if not replies:
        return Prompt(chat, options=options or None)
    reply = replies[0]
    if not options:
        right = [*dict.fromkeys(normal(conclusion(str(r))) for r in replies)]
        right = [answer for answer in right if answer]
        several = right if len(right) > 1 else None
        return Prompt(chat, right[0] if right else None, str(reply), answers=several)
    letter = _expected(reply, options)
    return Prompt(chat, letter, letter if "question" in row.fields else str(reply), options)


def answer(text: str, example: Example) -> str | None:
    """The letter of the choice, or the normalised text of an open answer; None for none."""
    part = conclusion(text)
    return _letter(part, example.options) if example.options else normal(part) or None


def equal(given: str, expected: str) -> bool:
    """Equal after normalisation."""
    return normal(given) == normal(expected)


def normal(text: str) -> str:
    """Returns a text in lower case without punctuation, articles and extra white space.

    An answer of nothing else, such as the letter A, stays as it is.
    """
    return squad(text) or " ".join(text.lower().split())


def squad(text: str) -> str:
    """Returns a text as SQuAD's own evaluation normalises it: of the letter A nothing is left."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _options(fields: dict[str, Any]) -> dict[str, str]:
    choices = fields.get("choices")
    if choices is None:
        return {}
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("choices must be a list of at least two texts")
    letters = fields.get("choice_letters") or string.ascii_uppercase[: len(choices)]
    if len(letters) != len(choices) or len({str(letter) for letter in letters}) < len(choices):
        raise ValueError(f"{len(choices)} choices, but {len(letters)} letters for them")
    return {str(letter): str(text) for letter, text in zip(letters, choices, strict=True)}


def _expected(reply: Any, options: dict[str, str]) -> str:
    """Returns the letter that a row gives: as such, as a place counted from 0, or as its text."""
    letters, text = list(options), str(reply).strip()
    place = int(text) if text.isdecimal() else len(letters)
    if isinstance(reply, int) and text not in options and place < len(letters):
        return letters[place]
    if letter := _letter(conclusion(text), options):
        return letter
    if place < len(letters):
        return letters[place]
    raise ValueError(
        f"the answer {str(reply)[:60]!r} is none of {', '.join(letters)}, none of the choices "
        "and no place in their list, counted from 0"
    )


def _letter(text: str, options: dict[str, str]) -> str | None:
    """Returns the one letter that a text names, by the first way of naming that it uses."""
    letters = {letter.upper(): letter for letter in options}
    key = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    alone = re.compile(rf"[^\w+-]*({key})[^\w+-]*", re.IGNORECASE)
    says = r"(?i:\b(?:answer|choice|option)\b(?:\s+(?:is|would\s+be))?)"
    # Yes, ... begins with its answer; A, B and C does not
    first = rf"((?i:{key}))[).:,]" if min(map(len, options)) > 1 else rf"({key})[).:]"
    lines = [line for line in text.splitlines() if line.strip()]
    ways = (
        _whole(alone, [text]),
        _choice(text, options),
        re.findall(rf"\\boxed\{{\W*(?:\\?(?:text|mathrm|textbf)\{{)?\W*({key})\W*\}}", text, re.I),
        re.findall(rf"{says}[\s:*(]*({key})(?![\w'])", text),
        re.findall(rf"{says}[\s:*(]*({key})\W*$", text, re.I | re.M),
        re.findall(rf"^[ \t*#(]*{first}(?![^\s*]|\s+(?:or|and)\b)", text, re.M),
        _whole(alone, lines[:1] + lines[-1:]),
        re.findall(rf"(?<![\w'])({key})\)? is (?:the )?(?:correct|right|best)", text),
        re.findall(rf"\(({key})\)", text),
    )
    for found in ways:
        if named := {letter.upper() for letter in found}:
            return letters[named.pop()] if len(named) == 1 else None
    return None


def _whole(pattern: re.Pattern[str], parts: list[str]) -> list[str]:
    """Returns the group of each part that is nothing but a match."""
    return [found[1] for part in parts if (found := pattern.fullmatch(part))]


def _choice(text: str, options: dict[str, str]) -> list[str]:
    """Returns the letters of the choices that a text, or what it says the answer is, equals."""
    said = re.search(r"\banswer is:?\s+(.+)", text, re.IGNORECASE)
    parts = {normal(text), normal(said[1]) if said else ""}
    return [letter for letter, choice in options.items() if normal(choice) in parts]
