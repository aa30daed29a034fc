"""Reads chat completions as servers "compatible with OpenAI" write them.

Seen in vLLM, llama.cpp, Azure, DeepSeek, Mistral, Gemini's compatible API, OpenRouter, LiteLLM and
TGI: content as parts, reasoning beside it, finish reasons by other names, usage as text or null.
"""

from typing import Any

import orjson

from retort.engines import STATE_OF
from retort.records import JsonObject, Response, State

# Other names of OpenAI's finish reasons, in lower case. A missing reason is that of a whole answer.
FINISH_REASONS = {
    "": "stop",
    "complete": "stop",
    "completed": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "finish_reason_unspecified": "stop",
    "stop_sequence": "stop",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "max_length": "length",
    "max_output_tokens": "length",
    "max_tokens": "length",
    "model_length": "length",
    "blocklist": "content_filter",
    "content_filtered": "content_filter",
    "prohibited_content": "content_filter",
    "recitation": "content_filter",
    "safety": "content_filter",
    "spii": "content_filter",
}
THINKING = ("thinking", "reasoning", "reasoning_content")


def read_completion(request_id: str, body: JsonObject) -> Response:
    """Returns the response in a chat completion; reasoning stands before the text, in think tags.

    Raises `ValueError` with what is wrong where there is no answer to read.
    """
    choices = body.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise ValueError(message_of(body.get("error")) or "the reply has no choices")
    choice, usage = choices[0], body.get("usage")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("the choice has no message")
    content, thinking = _content(message.get("content"))
    if not thinking and not content.lstrip().startswith("<think>"):
        thinking = _reasoning(message)
    calls = _tool_calls(message)
    said = choice.get("finish_reason") or ""
    if not isinstance(said, str):
        raise ValueError(f"the finish reason is {type(said).__name__}, not text")
    reason = FINISH_REASONS.get(said.lower(), said.lower())
    state: State = STATE_OF.get(reason, "failed")
    cause = None if state == "accepted" else f"finish_reason: {said}"
    if refusal := message.get("refusal"):
        state, cause = "refused", f"refusal: {refusal}"
    counts = usage if isinstance(usage, dict) else {}
    return Response(
        id=request_id,
        text=f"<think>\n{thinking}\n</think>\n\n{content}" if thinking else content,
        token_ids=_ids(choice.get("token_ids")),
        finish_reason=reason,
        num_prompt_tokens=count(counts.get("prompt_tokens")),
        num_tokens=count(counts.get("completion_tokens")),
        state=state,
        cause=cause,
        tool_calls=calls or None,
    )


def count(value: Any) -> int:
    """Returns a number of tokens that may be written as a text or be absent: then 0."""
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def message_of(error: Any) -> str:
    """Returns the text of an error in a reply; empty where there is none."""
    while isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("detail")
    return str(error or "")


def _content(content: Any) -> tuple[str, str]:
    """Returns the text of a message's content, and the thinking among its parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise ValueError(f"the message's content is {type(content).__name__}, not text")
    texts: dict[bool, list[str]] = {False: [], True: []}
    for part in content:
        if isinstance(part, str):
            texts[False].append(part)
            continue
        if not isinstance(part, dict):
            raise ValueError(f"a part of the content is {type(part).__name__}, not text")
        is_thinking = part.get("type") in THINKING
        kind = str(part.get("type")) if is_thinking else "text"
        inner = part.get(kind, part.get("text"))
        texts[is_thinking].append(_content(inner)[0])
    return "".join(texts[False]), "".join(texts[True])


def _reasoning(message: JsonObject) -> str:
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name].strip():
            return str(message[name]).strip("\n")
    return ""


def _tool_calls(message: JsonObject) -> list[JsonObject]:
    """Returns the tool calls, with the arguments as a text of JSON, as OpenAI writes them."""
    calls = message.get("tool_calls") or []
    if function := message.get("function_call"):  # OpenAI's older form
        calls = [{"id": "call_0", "type": "function", "function": function}]
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise ValueError("the tool calls are no list of objects")
    return [_with_text(call) for call in calls]


def _with_text(call: JsonObject) -> JsonObject:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return call
    arguments = orjson.dumps(function.get("arguments") or {}).decode()
    return {**call, "function": {**function, "arguments": arguments}}


def _ids(value: Any) -> list[int]:
    is_ids = isinstance(value, list) and all(isinstance(each, int) for each in value)
    return value if is_ids else []
