"""Chats answered by an endpoint that speaks Anthropic's Messages: live or in batches.

Requests and answers have OpenAI's form on our side: system turns, tools and tool calls become
Anthropic's blocks here, and its blocks tool calls. Text only, as with every endpoint.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from retort.engines import Request, Settings
from retort.engines._batch import BatchApi, Intent, open_remote
from retort.engines._endpoint import Api, describe
from retort.engines._official import Caller, read_lines
from retort.engines._replies import make_error, read_answer, read_error
from retort.engines._shapes import count
from retort.records import JsonObject, Message, Response, State

if TYPE_CHECKING:
    from anthropic import Anthropic
    from anthropic.types.messages import MessageBatch

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
# The HTTP status that an error in a batch's results would have as a reply.
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


def _response(request_id: str, body: JsonObject) -> Response:
    blocks, usage = body["content"], body.get("usage") or {}
    reason = body.get("stop_reason") or "end_turn"
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
        text=_text(blocks),
        token_ids=[],
        finish_reason=reason,
        num_prompt_tokens=sum(count(usage.get(name)) for name in prompt),
        num_tokens=count(usage.get("output_tokens")),
        state=state,
        cause=None if state == "accepted" else f"stop_reason: {reason}",
        tool_calls=calls or None,
    )


def _text(blocks: list[JsonObject]) -> str:
    """Returns the text of a reply's blocks, after its thinking in think tags."""
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    thinking = "\n".join(filter(None, thoughts))
    return f"<think>\n{thinking}\n</think>\n\n{text}" if thinking else text


def _body(settings: Settings, request: Request) -> JsonObject:
    body: JsonObject = {
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


def _tool(tool: JsonObject) -> JsonObject:
    """Returns a tool in Anthropic's form."""
    if "function" not in tool:
        return tool
    function = tool["function"]
    schema = function.get("parameters") or {"type": "object"}
    described = {name: function[name] for name in ("name", "description") if name in function}
    return {**described, "input_schema": schema}


def _turns(messages: list[Message]) -> list[Message]:
    """Returns the chat without its system turns, and with tool calls and their results as blocks.

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
    blocks: list[JsonObject] = [{"type": "text", "text": text}] if text else []
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments") or {}
        value = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": value}
        )
    return blocks


def _headers(host: str, key: str) -> dict[str, str]:
    return {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}


def _create(client: "Anthropic", intent_id: str, payload: bytes) -> "MessageBatch":
    from anthropic.types.messages import MessageBatch

    return client.post("/v1/messages/batches", content=payload, cast_to=MessageBatch)


def _claims(caller: Caller, batch: "MessageBatch", intent: Intent) -> bool | None:
    """A batch carries no note of ours: the custom ids of its results tell, once it has ended."""
    if sum(batch.request_counts.to_dict().values()) != len(intent.custom_ids):  # type: ignore[arg-type]
        return False
    if not BATCHES.has_ended(batch):
        return None
    custom_id, _ = next(_results(caller, batch), ("", {}))
    return custom_id in intent.custom_ids


def _results(caller: Caller, batch: "MessageBatch") -> Iterator[tuple[str, JsonObject]]:
    """Yields the result of each row, as raw JSON. The URL is ours: `results` of the client sends
    the key to whatever host the batch names."""
    path = f"/v1/messages/batches/{batch.id}/results"
    for row in read_lines(caller.call(lambda client: client.get(path, cast_to=bytes))):
        yield row["custom_id"], _result(caller, row["result"])


def _result(caller: Caller, result: JsonObject) -> JsonObject:
    if result["type"] == "succeeded":
        return {"body": result["message"]}
    if result["type"] != "errored":
        return {"error": make_error("expired", f"the batch's row has {result['type']}")}
    error = result["error"].get("error", result["error"])
    status = STATUS_OF.get(error["type"], 500)
    return {"error": read_error(status, orjson.dumps(error), caller.connection)}


API = Api(
    name="anthropic",
    endpoint="https://api.anthropic.com/v1",
    key_env="ANTHROPIC_API_KEY",
    path="/messages",
    headers=_headers,
    body=_body,
    client_class="Anthropic",
    version="/v1",
)
BATCHES = BatchApi(
    max_requests=100_000,
    max_bytes=256_000_000,
    row=lambda custom_id, body: {"custom_id": custom_id, "params": body},
    upload=lambda caller, rows: b'{"requests":[' + b",".join(rows) + b"]}",
    create=_create,
    resource=lambda client: client.messages.batches,
    created_at=lambda batch: batch.created_at.timestamp(),
    has_ended=lambda batch: batch.processing_status == "ended",
    claims=_claims,
    results=_results,
)

open_engine = partial(open_remote, api=API, batches=BATCHES)
check = partial(describe, api=API)
parse = partial(read_answer, read=_response)
