"""Chats as providers and tools write them, to turns with role and text, checked the same for all.

What cannot be asked of a text model (an image, roles out of order) is refused with its turn.
"""

from typing import Any

import orjson

from retort.records import Message

ROLES = ("system", "user", "assistant", "tool")
OTHER_NAMES = {
    "developer": "system",
    "function": "tool",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "observation": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text", None)
NO_TURN = "each turn must be an object with role and text content"


def read_chat(turns: Any, system: Any = None) -> list[Message]:
    """Returns a chat with the roles and texts of its turns, and with its calls of tools.

    `system` is what a row says besides, put first where the chat has no system turn of its own.
    Raises ValueError with the reason when it is no chat that can be asked.
    """
    turns = unquoted(turns)
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages must be a list with at least one turn")
    chat = [_turn(turn, place) for place, turn in enumerate(turns, 1)]
    if system and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": text_of(system, 0)})
    _check(chat)
    return chat


def unquoted(value: Any) -> Any:
    """Returns the value of a list or object that is a text of JSON, as cells of CSV are."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def turns_in(value: Any) -> Any:
    """Returns the turns that a value holds, also as JSON; the value itself where it holds none."""
    found = unquoted(value)
    is_list = isinstance(found, list) and bool(found)
    return found if is_list and all(isinstance(turn, dict) for turn in found) else value


def is_asked(turn: dict[str, Any]) -> bool:
    """Whether a turn is the user's."""
    return turn.get("role", turn.get("from")) in ("user", "human")


def text_of(content: Any, place: int) -> str:
    """Returns the text of a turn: a string, or parts of text joined by line ends.

    Raises ValueError for a part of another kind, and for what is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError(NO_TURN)
    return "\n".join(part if isinstance(part, str) else _part(part, place) for part in content)


def _part(part: Any, place: int) -> str:
    if not isinstance(part, dict):
        raise ValueError(NO_TURN)
    text = part.get("text")
    if part.get("type") in TEXT_PARTS and isinstance(text, str):
        return text
    kind = part.get("type") or next((key for key, item in part.items() if item is not None), "none")
    raise ValueError(f"turn {place} holds a part of kind {kind}: only text is read")


def _turn(turn: Any, place: int) -> Message:
    """Returns one turn with the keys that a chat template knows."""
    if not isinstance(turn, dict):
        raise ValueError(NO_TURN)
    role, content = turn.get("role"), turn.get("content")
    if len(turn) == 2 and role in ROLES and type(content) is str:
        return turn
    if "from" in turn and role is None:
        role, content = turn["from"], turn.get("value")
    if isinstance(role, str) and role not in ROLES:
        role = OTHER_NAMES.get(role.lower(), role.lower())
    if role == "function_call":
        role, turn = "assistant", {"function_call": unquoted(content)}
        content = None
    calls = _calls(turn, place) if role == "assistant" else None
    text = "" if calls and content is None else text_of(content, place)
    if role not in ROLES:
        raise ValueError(f"role {turn.get('role', turn.get('from'))!r} is not {', '.join(ROLES)}")
    extra = {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key)}
    if calls:
        extra["tool_calls"] = calls
    if role == "tool" and turn.get("role") == "function":
        extra["tool_call_id"] = f"call_{place - 1}"
    return {"role": role, "content": text, **extra}


def _calls(turn: dict[str, Any], place: int) -> list[Any] | None:
    """Returns the calls of tools in a turn, also in the form that OpenAI had before `tool_calls`.

    Raises ValueError when they are no list of objects.
    """
    calls = turn.get("tool_calls")
    if not calls and (old := turn.get("function_call")):
        calls = [{"id": f"call_{place}", "type": "function", "function": old}]
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"tool_calls of turn {place} must be a list of objects")
    return calls


def _check(chat: list[Message]) -> None:
    """Raises ValueError where roles do not follow each other, and where nobody asks."""
    before: Message = {"role": "", "content": ""}
    last = None
    for place, turn in enumerate(chat, 1):
        role = turn["role"]
        if role == "user":
            last = turn
        if role == before["role"] and role in ("user", "assistant"):
            raise ValueError(f"roles out of order: two {role} turns in a row at turn {place}")
        if role == "system" and place > 1:
            raise ValueError(
                f"roles out of order: a system turn at turn {place}; only the first may be one"
            )
        if role == "tool" and before["role"] != "tool" and not before.get("tool_calls"):
            raise ValueError(f"roles out of order: nobody called the tool of turn {place}")
        before = turn
    if last is None:
        raise ValueError("no user turn")
    if not last["content"].strip():
        raise ValueError("the last user turn is empty")
