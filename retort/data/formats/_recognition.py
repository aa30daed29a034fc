"""The format of a row by its columns: the first that fits, chats before plain columns."""

from collections.abc import Callable
from functools import cache

from retort.data.formats import _columns as names
from retort.data.formats._replies import of_evals
from retort.errors import SpecError
from retort.plugins import find_function
from retort.records import JsonObject, Row

Format = Callable[[JsonObject], Row]
KNOWN = (
    "messages; conversations; contents; body; choices with a message; instruction; question, "
    "problem or query; premise and hypothesis; prompt; chosen and rejected; article, document or "
    "dialogue; text with summary; text with label"
)
# A row has a format if it has one column of each group.
BY_COLUMNS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("nli", (names.PREMISE, names.HYPOTHESIS)),
    ("question_answer", (names.QUESTION,)),
    ("alpaca", (names.INSTRUCTION,)),
    ("prompt_completion", (names.PROMPT,)),
    ("preference", (("chosen",), ("rejected",))),
    ("summarization", (("article", "document", "dialogue"),)),
    ("summarization", (names.ARTICLE, names.SUMMARY)),
    ("text_label", (names.TEXT, names.LABEL)),
)
CONVERSATION = frozenset(names.CONVERSATION) - {names.CONTENTS}
TABLES = [(name, [frozenset(columns) for columns in needed]) for name, needed in BY_COLUMNS]


def read_row(value: JsonObject, format_name: str, columns: dict[str, str]) -> tuple[str, Row]:
    """Returns the name of a row's format, and the row in the form that task types read.

    `format_name` is a format's name or "auto"; `columns` maps our names of columns to the file's.
    Raises ValueError with the reason if the row has no known format or cannot be read in it.
    """
    value = of_evals(value)
    shown = value
    if columns:
        value, shown = _renamed(value, columns)
    name = recognise(shown) if format_name == "auto" else format_name
    return name, find_format(name)(value)


def recognise(row: JsonObject) -> str:
    """Returns the name of the first format whose columns a row has, if possible with values.

    Raises ValueError that lists the row's columns and the known ones.
    """
    filled = row
    if None in row.values():
        filled = {name: value for name, value in row.items() if value is not None}
    name = _chat_format(filled) or _table_format(filled) or _table_format(row)
    if name is None:
        raise ValueError(
            f"no known columns; the row has {', '.join(row) or 'none'}; known are: {KNOWN}; name "
            "them with prepare.format and prepare.columns"
        )
    return name


def _chat_format(row: JsonObject) -> str | None:
    if "messages" in row:
        if "schemaVersion" in row and "bedrock" in str(row["schemaVersion"]):
            return "bedrock"
        return "stored_completion" if _has_reply(row) and not _is_answered(row) else "messages"
    if "body" in row and ("custom_id" in row or isinstance(row["body"], dict)):
        return "openai_batch"
    if ("request" in row or "input" in row) and _is_stored(row):
        return "stored_completion"
    is_chat = isinstance(row.get(names.CONTENTS), list) or not CONVERSATION.isdisjoint(row)
    return "sharegpt" if is_chat else None


def _has_reply(row: JsonObject) -> bool:
    """Whether a row has a reply beside its messages: a completion, or an output."""
    choices = row.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return "message" in choices[0]
    return "output" in row


def _is_answered(row: JsonObject) -> bool:
    turns = row["messages"]
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, dict) and last.get("role") == "assistant" and "choices" not in row


def _is_stored(row: JsonObject) -> bool:
    if isinstance(row.get("request"), dict):
        return any(name in row for name in ("response", "choices", "output"))
    replied = any(name in row for name in ("choices", "output", "preferred_output"))
    return replied and isinstance(row.get("input"), list | dict)


def _table_format(row: JsonObject) -> str | None:
    for name, needed in TABLES:
        if not any(columns.isdisjoint(row) for columns in needed):
            return name
    return None


def _renamed(row: JsonObject, columns: dict[str, str]) -> tuple[JsonObject, JsonObject]:
    """Returns a row with our names added to the file's, and one with ours instead of the file's.

    Raises ValueError for a column that the row does not have.
    """
    for ours, theirs in columns.items():
        if theirs not in row:
            raise ValueError(
                f"no column '{theirs}', which prepare.columns names as {ours}; the row has "
                f"{', '.join(row) or 'none'}"
            )
    mapped = {ours: row[theirs] for ours, theirs in columns.items()}
    taken = set(columns.values())
    return {**row, **mapped}, {**{k: v for k, v in row.items() if k not in taken}, **mapped}


@cache
def find_format(name: str) -> Format:
    """Returns the function of a format. Raises `SpecError` that lists the known ones."""
    function: Format = find_function("format", name, "retort.data.formats")
    if not callable(function):
        raise SpecError(f"format '{name}' is no function; it must take a row and return a Row")
    return function
