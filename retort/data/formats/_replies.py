"""Requests and replies of OpenAI's two endpoints, read as turns of one chat; rows of its Evals.

Source: the API reference of Chat Completions, of Responses and of Evals. Items of `reasoning` are
left out.
"""

from typing import Any

from retort.data.formats._columns import first
from retort.records import JsonObject

Turn = JsonObject
# Where a row of Evals' data files, or an output item of one of its runs, holds the row itself.
ITEMS = ("item", "datasource_item")


def of_evals(row: JsonObject) -> JsonObject:
    """Returns the row inside a row of OpenAI's Evals, with its columns as metadata too, so that
    graders find them; any other row unchanged.

    What a run's `sample` was asked and answered becomes the chat of a row that has none.
    """
    item = next((row[name] for name in ITEMS if isinstance(row.get(name), dict)), None)
    if item is None or not ("sample" in row or row.keys() <= {*ITEMS, "id"}):
        return row
    sample = row["sample"] if isinstance(row.get("sample"), dict) else {}
    asked, replied = sample.get("input"), sample.get("output")
    chat = {}
    if isinstance(asked, list) and isinstance(replied, list) and "messages" not in item:
        chat = {"messages": [*asked, *replied]}
    identity = {"id": row["id"]} if "id" in row and "id" not in item else {}
    return {**identity, **item, **chat, "metadata": item}


def request_of(body: JsonObject) -> tuple[list[Any], Any]:
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


def reply_of(row: JsonObject) -> list[Any]:
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
