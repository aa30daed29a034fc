"""Task types: how rows of a kind become prompts, and how answers are read and compared.

One file each, with three functions: `prompt(row)`, `answer(text)` and `equal(given, expected)`.
Rows in the chat form (`{"messages": [...]}`) are the same for all and are read here.
"""

from typing import Any, Protocol

from retort.records import Message

ROLES = ("system", "user", "assistant", "tool")


class TaskType(Protocol):
    """What a task type's file offers."""

    def prompt(self, row: dict[str, Any]) -> tuple[list[Message], str | None]:
        """Returns the chat that asks the row, and the expected answer where the row has one.

        Raises `ValueError` with the reason when the row cannot be asked.
        """

    def answer(self, text: str) -> str | None:
        """Returns the answer found in a response's text, in normal form, or None."""

    def equal(self, given: str, expected: str) -> bool:
        """Whether two answers in normal form say the same."""


def read_chat(row: dict[str, Any]) -> tuple[list[Message], str | None]:
    """Returns the chat of a `messages` row up to its last user turn, and the answer after it.

    Raises `ValueError` with the reason when the row is not such a chat.
    """
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one turn")
    chat = [_turn(turn) for turn in messages]
    users = [index for index, turn in enumerate(chat) if turn["role"] == "user"]
    if not users:
        raise ValueError("no user turn")
    last = users[-1]
    if not chat[last]["content"].strip():
        raise ValueError("the last user turn is empty")
    reply = chat[last + 1]["content"] if last + 1 < len(chat) else None
    return chat[: last + 1], reply


def read_reference(row: dict[str, Any]) -> str | None:
    """Returns the row's own answer as it stands: the reply to the last user turn, or a column."""
    if isinstance(row.get("messages"), list):
        return read_chat(row)[1]
    named = (row.get(name) for name in ("answer", "completion", "response", "output"))
    return next((text for text in named if isinstance(text, str) and text.strip()), None)


def _turn(turn: Any) -> Message:
    """Returns one turn with the keys that a chat template knows.

    Raises `ValueError` with the reason when it is none.
    """
    if not isinstance(turn, dict):
        raise ValueError("each turn must be an object with role and text content")
    calls = turn.get("tool_calls") if turn.get("role") == "assistant" else None
    content = "" if calls and turn.get("content") is None else turn.get("content")
    if not isinstance(content, str):
        raise ValueError("each turn must be an object with role and text content")
    if turn.get("role") not in ROLES:
        raise ValueError(f"role {turn.get('role')!r} is not {', '.join(ROLES)}")
    extra = {key: turn[key] for key in ("tool_calls", "tool_call_id", "name") if turn.get(key)}
    return {"role": turn["role"], "content": content, **extra}


def read_question(row: dict[str, Any], *names: str) -> list[Message]:
    """Returns a chat of one user turn from the first of the named columns that the row has.

    Raises `ValueError` with the reason when none is there or it is empty.
    """
    for name in names:
        if name in row:
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"{name} is not a text or is empty")
            return [{"role": "user", "content": row[name]}]
    raise ValueError(f"no messages and no {' or '.join(names)}; the row has {', '.join(row)}")
