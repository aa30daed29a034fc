"""Questions: open ones with a short answer, and multiple choice for rows with `choices`.

Open answers are compared in their normal form and as numbers, choices by their letter.
"""

import re
import string
from typing import Any

from retort.data.reasoning import conclusion
from retort.data.task_types import read_prompt
from retort.data.task_types._answers import normal, same
from retort.data.task_types._labels import of_truth, whole_number
from retort.records import Example, JsonObject, Prompt, Row
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

    Of several right answers (SQuAD) the first is the expected one, and all are right.
    """
    if choices := _options(row.fields):
        listed = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
        chat, reply, asked = read_prompt(row, knobs, CHOICES, {"choices": listed})
    else:
        chat, reply, asked = read_prompt(row, knobs, OPEN, {})
    options = choices or {label: label for label in knobs.labels}
    own = row.fields.get("answer")
    own = own.get("text") if isinstance(own, dict) else own
    replies = [r for r in (own if isinstance(own, list) else [reply]) if r is not None]
    if not replies:
        return Prompt(chat, options=options or None, asked=asked)
    reply = replies[0]
    if not options:
        right = [*dict.fromkeys(normal(conclusion(str(r))) for r in replies)]
        right = [answer for answer in right if answer]
        several = right if len(right) > 1 else None
        return Prompt(chat, right[0] if right else None, str(reply), None, several, asked)
    letter = _expected(reply, options)
    reference = letter if "question" in row.fields else str(reply)
    return Prompt(chat, letter, reference, options, asked=asked)


def answer(text: str, example: Example) -> str | None:
    """The letter of the choice, or the normal form of an open answer; None if there is none."""
    part = conclusion(text)
    return _letter(part, example.options) if example.options else normal(part) or None


def equal(given: str, expected: str) -> bool:
    """Equal in normal form, or as numbers."""
    return same(given, expected)


def _options(fields: JsonObject) -> dict[str, str]:
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
    """Returns the letter of a row's answer: a letter, an index counted from 0, or a choice's text.

    Numbers and truth values may be written as pandas writes them: 2.0, True.
    """
    letters, text = list(options), str(reply).strip()
    is_truth = text.casefold() in ("true", "false")
    place = None if is_truth else whole_number(text)
    by_place = letters[place] if place is not None and 0 <= place < len(letters) else None
    if isinstance(reply, int | float) and text not in options and by_place:
        return by_place
    if letter := _letter(conclusion(text), options) or of_truth(reply, options) or by_place:
        return letter
    raise ValueError(
        f"the answer {str(reply)[:60]!r} is none of {', '.join(letters)}, none of the choices "
        "and no index in their list, counted from 0"
    )


def _letter(text: str, options: dict[str, str]) -> str | None:
    """Returns the one letter that a text names, by the first pattern that matches."""
    letters = {letter.upper(): letter for letter in options}
    key = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    alone = re.compile(rf"[^\w+-]*({key})[^\w+#-]*", re.IGNORECASE)
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
    """Returns the group of each part that matches as a whole."""
    return [match[1] for part in parts if (match := pattern.fullmatch(part))]


def _choice(text: str, options: dict[str, str]) -> list[str]:
    """Returns the letters of the choices that equal a text, or the rest of "the answer is ..."."""
    rest = re.search(r"\banswer is:?\s+(.+)", text, re.IGNORECASE)
    parts = {normal(text), normal(rest[1]) if rest else ""}
    return [letter for letter, choice in options.items() if normal(choice) in parts]
