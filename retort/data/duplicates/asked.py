"""The text by which a row is compared: what it asks, without what all rows of its job share."""

from retort.data.formats import read_row
from retort.records import JsonObject, Message, Prompt, Row, chat_text

# The columns that a row of a file of an unknown job asks; the question comes last.
ASKED = ("context", "premise", "choices", "article", "text", "prompt", "question", "hypothesis")
SHORT_COLUMN, MUCH_LONGER = 8, 3  # words; times as many characters


def texts_of_row(value: JsonObject) -> list[str]:
    """Returns what a row of any form asks; of an unknown form, each of its texts by itself."""
    try:
        return [_columns(read_row(value, "auto", {})[1])]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return [item for item in value.values() if isinstance(item, str)]


def text_of_prompt(prompt: Prompt) -> tuple[str, tuple[str, ...]]:
    """Returns the text by which a row is compared, and the short ones of several parts of it.

    A template's own words are left out, as all rows share them. A part that is much longer than
    the others, such as a text to read, comes before them: the question is last.
    """
    parts = list(prompt.asked or ())
    if len(parts) < 2:
        return "".join(parts) or without_system(prompt.messages), ()
    short = [part for part in parts if len(part.split()) <= SHORT_COLUMN]
    *others, longest = sorted(map(len, parts))
    if longest >= MUCH_LONGER * others[-1] and len(parts[0]) < longest:
        place = next(place for place, part in enumerate(parts) if len(part) == longest)
        parts.insert(0, parts.pop(place))
        short.append(f"from {place}")
    return "\n".join(parts), tuple(short)


def _columns(row: Row) -> str:
    """Returns what a row of a file of an unknown job asks: its chat, or columns of usual names."""
    if row.messages:
        last = max(i for i, message in enumerate(row.messages) if message["role"] == "user")
        return without_system(row.messages[: last + 1])
    parts: list[str] = []
    for name in ASKED:
        value = row.fields.get(name)
        parts += [str(item) for item in value] if isinstance(value, list) else []
        parts += [value] if isinstance(value, str) else []
    return "\n".join(parts)


def without_system(turns: list[Message]) -> str:
    """Returns a chat as text, its instructions left out."""
    return chat_text(turn for turn in turns if turn["role"] != "system")
