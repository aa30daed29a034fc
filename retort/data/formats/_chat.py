"""Chats as providers and tools write them, read as turns with role and text.

A turn that a text model cannot be asked about (an image) or roles out of order make a row bad.
Source of the parts of a turn: the API references of OpenAI, Anthropic, Bedrock and Gemini.
"""

import ast
import re
from typing import Any

import orjson

from retort.data.encoding import arguments_of
from retort.records import JsonObject, Message

ROLES = ("system", "user", "assistant", "tool")
OTHER_NAMES = {
    "developer": "system",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
}
# A question and its answer in one object, as some data has them in place of turns.
PAIRS = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("prompt", "response"),
    ("question", "answer"),
)
CALL_ROLES = ("function_call", "tool_call")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal", None)
# What a model only thought, and marks for a provider's cache, are not part of the text.
SKIPPED_PARTS = {
    *("thinking", "redacted_thinking", "reasoning", "reasoning_content", "reasoningContent"),
    *("cachePoint", "cache_point"),
}
MEDIA = frozenset(["image", "images", "audio", "audios", "video", "videos", "attachments"])
NO_TURN = "each turn must be an object with role and text content"
# How numpy prints a list of objects: without commas.
BETWEEN_OBJECTS = re.compile(r"\}\s*\n\s*\{")


def read_chat(turns: Any, system: Any = None) -> list[Message]:
    """Returns a chat with the roles, texts and tool calls of its turns.

    `system` is the row's own system prompt, used if the chat has no system turn. Raises ValueError
    with the reason if it is no chat that can be asked.
    """
    turns = unquoted(turns)
    if isinstance(turns, str) and turns.strip():
        raise ValueError("messages is a text, but neither JSON nor a list as Python writes it")
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages must be a list with at least one turn")
    turns = [turn for item in turns for turn in _unpaired(item)]
    chat = [message for place, turn in enumerate(turns, 1) for message in _messages(turn, place)]
    if system and chat and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": text_of(unquoted(system), 0)})
    _check(chat)
    if is_unwanted(turns[-1]):
        chat.pop()
    return chat


def is_unwanted(turn: Any) -> bool:
    """Whether a turn is the assistant's and marked as one that must not be learned."""
    if not isinstance(turn, dict) or is_asked(turn):
        return False
    return turn.get("weight") == 0 or False in (turn.get("train"), turn.get("loss"))


def unquoted(value: Any) -> Any:
    """Returns the value of a list or object written as a text, in JSON or as Python prints it.

    Cells of CSV hold such texts; pandas writes Python's, and numpy's without commas.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        pass
    for text in (value.strip(), BETWEEN_OBJECTS.sub("}, {", value.strip())):
        try:
            found = ast.literal_eval(text)
            return orjson.loads(orjson.dumps(found))  # tuples become lists
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value


def turns_in(value: Any) -> Any:
    """Returns the turns that a value holds, also as text; the value itself if it holds none."""
    turns = unquoted(value)
    if isinstance(turns, dict) and ("role" in turns or "from" in turns):
        return [turns]
    is_list = isinstance(turns, list) and bool(turns)
    return turns if is_list and all(isinstance(turn, dict) for turn in turns) else value


def is_asked(turn: Any) -> bool:
    """Whether a turn is the user's."""
    return isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")


def text_of(content: Any, place: int) -> str:
    """Returns the text of a turn: a string, or parts of text joined by line ends.

    Raises ValueError for a part of another kind, and for anything that is no text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = content.get("parts", [content])
    if not isinstance(content, list) or not content:
        raise ValueError(NO_TURN)
    texts = [part if isinstance(part, str) else _part(part, place) for part in content]
    return "\n".join(text for text in texts if text is not None)


def _part(part: Any, place: int) -> str | None:
    """Returns the text of a part; None for a part that is left out."""
    if not isinstance(part, dict):
        raise ValueError(NO_TURN)
    kind = part.get("type")
    if not isinstance(kind, str | None):
        raise ValueError(NO_TURN)
    if kind in SKIPPED_PARTS or part.get("thought") is True:
        return None
    names = ("text", "value", "content", "refusal")
    text = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(text, dict):
        text = text.get("value")
    if kind in TEXT_PARTS and isinstance(text, str):
        return text
    key = next((key for key, item in part.items() if item is not None and key != "type"), "none")
    if kind is None and key in SKIPPED_PARTS:
        return None
    if kind in TEXT_PARTS and kind is not None:
        raise ValueError(f"turn {place} holds a part of kind {kind} without a text")
    raise ValueError(f"turn {place} holds a part of kind {kind or key}: only text is read")


def _unpaired(item: Any) -> list[Any]:
    """Returns the turns of an item: itself, or a question and its answer."""
    if not isinstance(item, dict) or "role" in item or "from" in item:
        return [item]
    for names in PAIRS:
        if names[0] in item and names[1] in item:
            turns = [{"role": "user", "content": item[names[0]]}]
            turns.append({"role": "assistant", "content": item[names[1]]})
            system = item.get("system")
            return [{"role": "system", "content": system}, *turns] if system else turns
    return [item]


def _messages(turn: Any, place: int) -> list[Message]:
    """Returns one turn as messages with the keys that a chat template knows.

    It is one message, except that results of tools which stand in a user's turn are several.
    """
    if not isinstance(turn, dict):
        raise ValueError(NO_TURN)
    role, content = turn.get("role"), turn.get("content")
    if len(turn) == 2 and role in ROLES and type(content) is str:
        return [turn]
    if "from" in turn and role is None:
        role, content = turn["from"], turn.get("value")
    if content is None:
        content = turn.get("parts", turn.get("refusal"))
    if isinstance(role, str) and role not in ROLES:
        role = OTHER_NAMES.get(role.lower(), role.lower())
    if held := sorted(name for name in MEDIA.intersection(turn) if turn[name]):
        raise ValueError(f"turn {place} holds {held[0]}: only text is read")
    if role in CALL_ROLES:
        function = unquoted(content)
        named = function if isinstance(function, list) else [function]
        role, turn, content = "assistant", {"tool_calls": named}, None
    content, tool_uses, results = _apart(content)
    if role == "tool" and isinstance(content, dict) and "text" not in content:
        content = orjson.dumps(content).decode()
    written = {"tool_calls": tool_uses} if tool_uses else turn
    calls = _calls(written, place) if role == "assistant" else None
    if role not in ROLES:
        raise ValueError(f"role {turn.get('role', turn.get('from'))!r} is not {', '.join(ROLES)}")
    extra = {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key)}
    if calls:
        extra["tool_calls"] = calls
    if role == "tool" and turn.get("role") == "function":
        extra["tool_call_id"] = f"call_{place - 1}"
    if results and content is None:
        return results
    text = "" if calls and not content else text_of(content, place)
    return [*results, {"role": role, "content": text, **extra}]


def _apart(content: Any) -> tuple[Any, list[Any], list[Message]]:
    """Returns a turn's content without the calls of tools and their results, and these.

    Anthropic, Bedrock and Gemini write both as parts of a turn. The content is None if no other
    part is left.
    """
    if not isinstance(content, list):
        return content, [], []
    rest, calls, results = [], [], []
    for part in content:
        if call := _call_in(part):
            calls.append(call)
        elif result := _result_in(part):
            results.append(result)
        else:
            rest.append(part)
    return rest or (None if calls or results else content), calls, results


def _call_in(part: Any) -> JsonObject | None:
    """Returns the call of a tool that a part of a turn is, if it is one."""
    if not isinstance(part, dict):
        return None
    inner = part.get("toolUse") or part.get("functionCall")
    call = part if part.get("type") == "tool_use" else inner
    if not isinstance(call, dict):
        return None
    function = {"name": call.get("name"), "arguments": call.get("input", call.get("args", {}))}
    identity = call.get("id", call.get("toolUseId"))
    return {**({"id": identity} if identity else {}), "type": "function", "function": function}


def _result_in(part: Any) -> Message | None:
    """Returns the result of a tool that a part of a turn is, if it is one."""
    if not isinstance(part, dict):
        return None
    inner = part.get("toolResult") or part.get("functionResponse")
    result = part if part.get("type") == "tool_result" else inner
    if not isinstance(result, dict):
        return None
    content = result.get("content", result.get("response", ""))
    items = content if isinstance(content, list) else []
    is_text = isinstance(content, str) or any(isinstance(i, dict) and "text" in i for i in items)
    text = text_of(content, 0) if is_text else orjson.dumps(content).decode()
    identity = result.get("tool_use_id", result.get("toolUseId"))
    return {"role": "tool", "content": text, **({"tool_call_id": identity} if identity else {})}


def _calls(turn: JsonObject, place: int) -> list[Any] | None:
    """Returns the calls of tools in a turn, also in the form that OpenAI had before `tool_calls`.

    Raises ValueError if they are no list of objects, or their arguments no JSON object.
    """
    calls = unquoted(turn.get("tool_calls"))
    if not calls and (old := turn.get("function_call")):
        calls = [{"id": f"call_{place}", "type": "function", "function": old}]
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"tool_calls of turn {place} must be a list of objects")
    calls = [
        call
        if "function" in call
        else {"id": f"call_{place}", "type": "function", "function": call}
        for call in calls
    ]
    for call in calls:
        function = call["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"a tool call of turn {place} names no function")
        if arguments_of(function.get("arguments")) is None:
            raise ValueError(f"the arguments of a tool call in turn {place} are no JSON object")
    return calls


def _check(chat: list[Message]) -> None:
    """Raises ValueError if roles do not follow each other, or there is no user turn to answer."""
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
