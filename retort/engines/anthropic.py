"""Chats answered by an endpoint that speaks Anthropic's Messages: live or in batch.

Requests and answers keep OpenAI's form on our side: system turns, tools and tool calls are turned
into Anthropic's blocks here, and back. Text only, as with every endpoint.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson

from retort.engines import Request, Settings
from retort.engines._batch import BatchApi, BatchEngine, Intent
from retort.engines._calls import Caller, lines_of
from retort.engines._endpoint import Api, described, fault, fault_of, read_answer
from retort.engines._request_pool import HttpEngine
from retort.records import Message, Response, State

GIVES_SIGNAL = False
SCORES = False
CONTINUES = False
REMOTE = True
PENALTIES = False

STATES: dict[str, State] = {
    "end_turn": "accepted",
    "stop_sequence": "accepted",
    "tool_use": "accepted",
    "max_tokens": "truncated",
    "model_context_window_exceeded": "truncated",
    "refusal": "refused",
}
# The HTTP status that an error of a batch's row would have had.
STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def open_engine(settings: Settings) -> "HttpEngine | BatchEngine":
    """Returns the endpoint as an engine. Raises `SpecError` for a bad endpoint or no key."""
    if settings.runtime["batch"]:
        return BatchEngine(settings, API, BATCHES)
    return HttpEngine(settings, API)


def check(settings: Settings) -> str:
    """Returns one line on the endpoint. Raises `SpecError` for a bad endpoint or no key."""
    return described(settings, API)


def parse(request_id: str, raw: dict[str, Any]) -> Response:
    """Returns what a raw answer says; one that cannot be read is a failed response."""
    return read_answer(request_id, raw, _response)


def _response(request_id: str, body: dict[str, Any]) -> Response:
    blocks, reason, usage = body["content"], body["stop_reason"], body.get("usage") or {}
    state = STATES.get(reason, "failed")
    prompt = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    return Response(
        id=request_id,
        text="".join(block["text"] for block in blocks if block["type"] == "text"),
        token_ids=[],
        finish_reason=reason,
        num_prompt_tokens=sum(usage.get(name) or 0 for name in prompt),
        num_tokens=usage.get("output_tokens") or 0,
        state=state,
        cause=None if state == "accepted" else f"stop_reason: {reason}",
        tool_calls=calls or None,
    )


def _body(settings: Settings, request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": _turns(request.messages),
        "temperature": settings.temperature,
        "max_tokens": request.max_tokens or settings.max_tokens,
    }
    system = [turn["content"] for turn in request.messages if turn["role"] == "system"]
    if system:
        body["system"] = "\n\n".join(system)
    if settings.top_p != 1.0:
        body["top_p"] = settings.top_p
    if settings.stop:
        body["stop_sequences"] = list(settings.stop)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    return body


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool in Anthropic's form."""
    if "function" not in tool:
        return tool
    function = tool["function"]
    found = {"name": function["name"], "input_schema": function.get("parameters")}
    found["input_schema"] = found["input_schema"] or {"type": "object"}
    return found | ({"description": function["description"]} if "description" in function else {})


def _turns(messages: list[Message]) -> list[Message]:
    """Returns the chat without its system turns, tool calls and their results as blocks.

    The results of one turn's calls belong into one user turn.
    """
    turns: list[Message] = []
    after_tool = False
    for message in messages:
        role = message["role"]
        if role == "tool":
            block = {
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": message["content"],
            }
            if after_tool:
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        elif role != "system":
            turns.append({"role": role, "content": _content(message)})
        after_tool = role == "tool"
    return turns


def _content(message: Message) -> Any:
    """Returns a turn's content, as blocks where it calls tools."""
    text, calls = message.get("content"), message.get("tool_calls") or []
    if not calls:
        return text
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for call in calls:
        function = call["function"]
        given = function.get("arguments") or {}
        value = orjson.loads(given) if isinstance(given, str) else given
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": value}
        )
    return blocks


def _headers(host: str, key: str) -> dict[str, str]:
    return {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}


def _claims(caller: Caller, batch: dict[str, Any], intent: Intent) -> bool | None:
    """A batch carries no note of ours: the custom ids of its results tell, once it has ended."""
    if sum(batch["request_counts"].values()) != len(intent.custom_ids):
        return False
    if batch["processing_status"] != "ended":
        return None
    custom_id, _ = next(_results(caller, batch), ("", {}))
    return custom_id in intent.custom_ids


def _results(caller: Caller, batch: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what came of each row. The address is ours: the key goes to no other host."""
    data = caller.call("GET", f"/messages/batches/{batch['id']}/results")
    for row in lines_of(data):
        yield row["custom_id"], _result(caller, row["result"])


def _result(caller: Caller, result: dict[str, Any]) -> dict[str, Any]:
    if result["type"] == "succeeded":
        return {"body": result["message"]}
    if result["type"] != "errored":
        return {"error": fault("expired", f"the batch's row has {result['type']}")}
    error = result["error"].get("error", result["error"])
    status = STATUS_OF.get(error["type"], 500)
    return {"error": fault_of(status, orjson.dumps(error), caller.door)}


API = Api(
    name="anthropic",
    endpoint="https://api.anthropic.com/v1",
    key_env="ANTHROPIC_API_KEY",
    path="/messages",
    headers=_headers,
    body=_body,
)
BATCHES = BatchApi(
    path="/messages/batches",
    cursor="after_id",
    max_requests=100_000,
    max_bytes=256_000_000,
    row=lambda custom_id, body: {"custom_id": custom_id, "params": body},
    order=lambda caller, intent_id, rows: b'{"requests":[' + b",".join(rows) + b"]}",
    created_at=lambda batch: datetime.fromisoformat(batch["created_at"]).timestamp(),
    has_ended=lambda batch: batch["processing_status"] == "ended",
    claims=_claims,
    results=_results,
)
