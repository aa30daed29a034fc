"""Requests and replies of OpenAI's two endpoints, read as turns of one chat.

Source: the API reference of Chat Completions and of Responses. Items of `reasoning` are left out.
"""

from typing import Any

from retort.data.formats._columns import first

Turn = dict[str, Any]


def request_of(body: dict[str, Any]) -> tuple[list[Any], Any]:
    """Returns the turns of a request, and the system prompt that it has beside them.

    Raises ValueError if it has no turns.
    """
    turns = first(body, ("messages", "input", "prompt"))
    if isinstance(turns, dict):
        turns = turns.get("messages")
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list):
        raise ValueError(f"no messages and no input; the request has {', '.join(body)}")
    return _turns(turns), first(body, ("instructions", "system"))


def reply_of(row: dict[str, Any]) -> list[Any]:
    """Returns the turns of the reply in a row or in its `response`.

    Raises ValueError if there is none.
    """
    response = row.get("response")
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    outer = response if isinstance(response, dict) else {}
    inner = outer.get("body")
    for place in (row, outer, inner if isinstance(inner, dict) else {}):
        choices = place.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            return [choices[0].get("message")]
        output = first(place, ("output", "preferred_output"))
        if isinstance(output, str):
            return [{"role": "assistant", "content": output}]
        if isinstance(output, dict):
            return [output]
        if isinstance(output, list):
            return _turns(output)
    raise ValueError("no reply: neither choices with a message nor output")


def _turns(items: list[Any]) -> list[Any]:
    """Returns the items of a request or a reply as turns; successive tool calls are one turn."""
    turns: list[Any] = []
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not (turns and isinstance(turns[-1], dict) and turns[-1].get("tool_calls")):
                turns.append({"role": "assistant", "content": None, "tool_calls": []})
            turns[-1] = {**turns[-1], "tool_calls": [*turns[-1]["tool_calls"], call]}
        elif kind == "function_call_output":
            content = item.get("output")
            turns.append({"role": "tool", "content": content, "tool_call_id": item.get("call_id")})
        elif kind != "reasoning":
            turns.append(item)
    return turns
