"""Columns under the names that people give them, to ours; and what every row may carry besides."""

from typing import Any

from retort.data.formats._chat import unquoted
from retort.records import Message, Row

PROMPT = ("prompt",)
COMPLETION = ("completion", "response", "chosen", "output", "answer")
INSTRUCTION = ("instruction",)
QUESTION = ("question", "problem", "query", "question_stem")
CONTEXT = ("context", "passage")
ANSWER = ("answer", "solution", "response", "output", "answers", "answerKey", "correct_answer")
CHOICES = ("choices", "options")
PREMISE = ("premise", "sentence1", "text1")
HYPOTHESIS = ("hypothesis", "sentence2", "text2")
LABEL = ("label", "gold_label")
ARTICLE = ("article", "document", "text", "dialogue")
SUMMARY = ("summary", "highlights", "abstract")
TEXT = ("text", "sentence")
CONVERSATION = ("conversations", "conversation")
SYSTEM = ("system", "system_prompt")
ID = ("id", "custom_id", "_id", "uid")
# Columns for the choices of a question, one each.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERED = [
    [start + letter for letter in letters]
    for start, letters in (
        ("", LETTERS),
        *((start, LETTERS.lower()) for start in ("option_", "choice_", "op")),
        *((start, LETTERS) for start in ("option_", "choice_", "option", "Option ")),
    )
]
CHOICE_COLUMNS = frozenset([*CHOICES, *(names[1] for names in LETTERED)])
# What a row has a place of its own for; everything else is one of its fields.
PLACED = {"id", "metadata", "tools", "messages"}


def first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Returns the value of the first of the named columns that is not null or an empty cell."""
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            return value
    return None


def text(row: dict[str, Any], names: tuple[str, ...]) -> str:
    """Returns the text in the first of the named columns that the row has.

    Raises ValueError where it is none or is empty.
    """
    value = first(row, names)
    if isinstance(value, str) and value and not value.isspace():
        return value
    name = next((name for name in names if name in row), " or ".join(names))
    raise ValueError(f"{name} is not a text or is empty")


def row_of(
    row: dict[str, Any],
    fields: dict[str, Any],
    messages: list[Message] | None = None,
    used: tuple[str, ...] = (),
) -> Row:
    """Returns a row with all its columns as fields, ours beside those of the file.

    Columns of the file that are `used` up, and what a row has another place for, are left out; so
    are fields of ours that are None. Raises ValueError for tools that are no list.
    """
    found = {name: value for name, value in row.items() if name not in PLACED}
    for name in used:
        found.pop(name, None)
    for name, value in fields.items():
        if value is not None:
            found[name] = value
    if messages is None and (system := first(row, SYSTEM)) is not None:
        found["system"] = system
    metadata = unquoted(row.get("metadata"))
    if not isinstance(metadata, dict):
        if metadata is not None:
            found["metadata"] = metadata
        metadata = {}
    return Row(messages, found, identity(row), tools_of(row), metadata)


def identity(row: dict[str, Any]) -> str | None:
    """Returns the id that a row has of its own, if any."""
    for name in ID:
        value = row.get(name)
        if value is not None and value != "" and isinstance(value, str | int | float):
            return str(value)
    return None


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the tools that a row offers; `functions` are put into the form of tools.

    Raises ValueError when they are no list of objects.
    """
    if not (given := row.get("tools") or row.get("functions")):
        return None
    tools = unquoted(given)
    if isinstance(tools, list) and not row.get("tools"):
        tools = [{"type": "function", "function": item} for item in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools must be a list of objects")
    return tools


def choices_of(row: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    """Returns the choices of a question with their letters, or None where it has none.

    They may be a list, {label: [...], text: [...]}, a list of {label, text}, {letter: text}, or
    columns A, B, C ... or option_a, option_b ... Raises ValueError for anything else.
    """
    if CHOICE_COLUMNS.isdisjoint(row):
        return None
    given = unquoted(first(row, CHOICES))
    if given is None:
        columns = next((c for c in LETTERED if c[0] in row and c[1] in row), [])
        return _lettered([row.get(name) for name in columns], LETTERS)
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        texts = given["text"]
        return _lettered(texts, given.get("label") or LETTERS)
    if isinstance(given, dict):
        return _lettered(list(given.values()), list(given))
    if not isinstance(given, list):
        raise ValueError("choices must be a list of texts, {label, text} or {letter: text}")
    if all(isinstance(item, dict) and "text" in item for item in given):
        labels = [item.get("label") or letter for item, letter in zip(given, LETTERS, strict=False)]
        return _lettered([item["text"] for item in given], labels)
    return _lettered(given, LETTERS)


def _lettered(texts: list[Any], letters: str | list[Any]) -> tuple[list[str], list[str]] | None:
    """Returns texts with their letters, without those that are empty in this row.

    Raises ValueError for more texts than letters.
    """
    if len(texts) > len(letters):
        raise ValueError(f"{len(texts)} choices, but {len(letters)} letters for them")
    pairs = zip(texts, letters, strict=False)
    kept = [(str(item), str(letter)) for item, letter in pairs if item is not None and item != ""]
    if not kept:
        return None
    return [item for item, _ in kept], [letter for _, letter in kept]
