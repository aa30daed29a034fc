"""The names that data gives to columns, and the parts that a row of any format may have.

Columns that change the meaning of a row, such as earlier turns or an image, are read or refused.
"""

from typing import Any

from retort.data.formats._chat import MEDIA, turns_in, unquoted
from retort.records import JsonObject, Message, Row

PROMPT = ("prompt",)
COMPLETION = ("completion", "response", "chosen", "output", "answer")
INSTRUCTION = ("instruction",)
QUESTION = ("question", "problem", "query", "question_stem")
CONTEXT = ("context", "passage")
ANSWER = (
    *("answer", "solution", "response", "output", "answers", "answerKey", "correct_answer"),
    "chosen",
)
CHOICES = ("choices", "options")
PREMISE = ("premise", "sentence1", "text1")
HYPOTHESIS = ("hypothesis", "sentence2", "text2")
LABEL = ("label", "gold_label")
ARTICLE = ("article", "document", "text", "dialogue")
SUMMARY = ("summary", "highlights", "abstract")
TEXT = ("text", "sentence")
CONTENTS = "contents"  # Gemini's name of a list of turns; elsewhere a text
CONVERSATION = ("conversations", "conversation", CONTENTS)
SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")
HISTORY = "history"
# Preference data says in one of these whether its answer is a good one.
VERDICTS = ("label", "kto_tag")
TRUTHS = {"true": True, "false": False}
NUMBERED_TRUTHS = {**TRUTHS, "1": True, "0": False}
ID = ("id", "custom_id", "_id", "uid")
# One column for each choice of a question.
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
# The columns that become other parts of a row; all others are its fields.
PLACED = {"id", "metadata", "tools", "messages"}


def first(row: JsonObject, names: tuple[str, ...]) -> Any:
    """Returns the value of the first of the named columns that is neither null nor empty."""
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            return value
    return None


def text(row: JsonObject, names: tuple[str, ...]) -> str:
    """Returns the text in the first of the named columns that the row has.

    Raises ValueError if it is no text or empty.
    """
    value = first(row, names)
    if isinstance(value, str) and value and not value.isspace():
        return value
    name = next((name for name in names if name in row), " or ".join(names))
    raise ValueError(f"{name} is not a text or is empty")


def row_of(
    row: JsonObject,
    fields: JsonObject,
    messages: list[Message] | None = None,
    used: tuple[str, ...] = (),
) -> Row:
    """Returns a row with all its columns as fields: the file's, and ours beside them.

    Columns that are `used` or become other parts of the row are left out, and so are fields of
    ours that are None. Raises ValueError for columns that a text model cannot be asked about, for
    earlier turns that this format does not read, and for tools that are no list.
    """
    refuse_media(row)
    if HISTORY not in used and earlier_turns(row):
        raise ValueError(
            "history holds earlier turns, which are not read from rows of this form; give them as "
            "messages"
        )
    return any_row(row, fields, messages, used)


def any_row(
    row: JsonObject,
    fields: JsonObject,
    messages: list[Message] | None = None,
    used: tuple[str, ...] = (),
) -> Row:
    """Returns a row as `row_of`, without a look at what its columns mean."""
    values = {name: value for name, value in row.items() if name not in PLACED}
    for name in used:
        values.pop(name, None)
    for name, value in fields.items():
        if value is not None:
            values[name] = value
    if messages is None and (system := first(row, SYSTEM)) is not None:
        values["system"] = system
    metadata = unquoted(row.get("metadata"))
    if not isinstance(metadata, dict):
        if metadata is not None:
            values["metadata"] = metadata
        metadata = {}
    return Row(messages, values, identity(row), tools_of(row), metadata)


def refuse_media(row: JsonObject) -> None:
    """Raises ValueError for a row with an image, a sound or a video."""
    for name, value in row.items():
        is_named = name in MEDIA and isinstance(value, str | list | dict)
        if value and (is_named or _is_media(value)):
            raise ValueError(
                f"column {name} holds an image, a sound or a video: only text is read; remove the "
                "column to ask about the text alone"
            )


def _is_media(value: Any) -> bool:
    """Whether a value is an image or the like as `datasets` stores it, or a list of such."""
    if isinstance(value, list):
        return any(_is_media(item) for item in value)
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def earlier_turns(row: JsonObject) -> list[Any]:
    """Returns the turns before a row's question, as LLaMA-Factory's and ms-swift's `history`.

    It is a list of [question, answer] pairs, of turns, or of texts of which the last is an answer.
    A text in this column is no history of a chat. Raises ValueError for another list.
    """
    history = unquoted(row.get(HISTORY))
    if not isinstance(history, list):
        return []
    turns: list[Any] = []
    for number, item in enumerate(reversed(history)):
        if isinstance(item, dict):
            turns.insert(0, item)
        elif isinstance(item, list) and len(item) == 2:
            turns[:0] = [
                {"role": "user", "content": item[0]},
                {"role": "assistant", "content": item[1]},
            ]
        elif isinstance(item, str):
            turns.insert(0, {"role": ("assistant", "user")[number % 2], "content": item})
        else:
            raise ValueError("history must be a list of [question, answer] pairs or of turns")
    return turns


def reply_in(value: Any) -> Any:
    """Returns the text of a reply that is written as turns; any other value unchanged."""
    turns = turns_in(value)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(last, dict) and not last.keys().isdisjoint(("role", "from")):
        return last.get("content", last.get("value"))
    return value


def verdict(row: JsonObject, truths: dict[str, bool] = TRUTHS) -> bool | None:
    """Returns whether a row marks its answer as a good one; None if it does not say."""
    texts = (str(row.get(name)).lower() for name in VERDICTS)
    return next((truths[text] for text in texts if text in truths), None)


def identity(row: JsonObject) -> str | None:
    """Returns the row's own id, if any."""
    for name in ID:
        value = row.get(name)
        if value is not None and value != "" and isinstance(value, str | int | float):
            return str(value)
    return None


def tools_of(row: JsonObject) -> list[JsonObject] | None:
    """Returns the tools of a row; `functions`, OpenAI's older form, become tools.

    Raises ValueError if they are no list of objects.
    """
    if not (value := row.get("tools") or row.get("functions")):
        return None
    tools = unquoted(value)
    if isinstance(tools, list) and not row.get("tools"):
        tools = [{"type": "function", "function": item} for item in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools must be a list of objects")
    return tools


def choices_of(row: JsonObject) -> tuple[list[str], list[str]] | None:
    """Returns the choices of a question with their letters, or None.

    They may be a list, {label: [...], text: [...]}, a list of {label, text}, {letter: text}, or
    columns A, B, C ... or option_a, option_b ... Raises ValueError for anything else.
    """
    if CHOICE_COLUMNS.isdisjoint(row):
        return None
    choices = unquoted(first(row, CHOICES))
    if choices is None:
        columns = next((c for c in LETTERED if c[0] in row and c[1] in row), [])
        return _lettered([row.get(name) for name in columns], LETTERS)
    if isinstance(choices, dict) and isinstance(choices.get("text"), list):
        texts = choices["text"]
        return _lettered(texts, choices.get("label") or LETTERS)
    if isinstance(choices, dict):
        return _lettered(list(choices.values()), list(choices))
    if not isinstance(choices, list):
        raise ValueError("choices must be a list of texts, {label, text} or {letter: text}")
    if all(isinstance(item, dict) and "text" in item for item in choices):
        labels = [
            item.get("label") or letter for item, letter in zip(choices, LETTERS, strict=False)
        ]
        return _lettered([item["text"] for item in choices], labels)
    return _lettered(choices, LETTERS)


def _lettered(texts: list[Any], letters: str | list[Any]) -> tuple[list[str], list[str]] | None:
    """Returns texts with their letters, without empty ones.

    Raises ValueError if there are more texts than letters.
    """
    if not isinstance(letters, str | list):
        raise ValueError("the labels of choices must be a list")
    if len(texts) > len(letters):
        raise ValueError(f"{len(texts)} choices, but {len(letters)} letters for them")
    pairs = zip(texts, letters, strict=False)
    kept = [(str(item), str(letter)) for item, letter in pairs if item is not None and item != ""]
    if not kept:
        return None
    return [item for item, _ in kept], [letter for _, letter in kept]
