"""Spans of OpenTelemetry and of MLflow: each call of a chat model in a trace.

Sources: the JSON of OTLP (opentelemetry.io/docs/specs/otlp, `opentelemetry/proto/trace/v1`); the
semantic conventions for generative AI, the present attributes (`gen_ai.input.messages`), the events
before them (`gen_ai.user.message`, `gen_ai.choice`; `gen_ai.content.prompt`) and OpenLLMetry's
numbered attributes (`gen_ai.prompt.0.content`, opentelemetry-semantic-conventions-ai); MLflow 3.17,
`Trace.to_json` and `mlflow.tracing.constant.SpanAttributeKey`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import orjson

from retort.data.formats._chat import unquoted
from retort.data.sources.traffic.call import (
    EMBEDDINGS,
    FAILED,
    NOT_RECORDED,
    Call,
    LeftOut,
    Turn,
    asked,
    replied,
    scalars,
    seconds_of,
)
from retort.records import JsonObject

ANY_VALUE = ("stringValue", "boolValue", "doubleValue", "bytesValue")
NO_CALL = "a span that is no call of a chat model"
CHATS = {"chat", "text_completion", "generate_content", "completion"}
# Of a conversation, in this order; else all calls of a trace belong together.
CONVERSATION = (
    *("gen_ai.conversation.id", "session.id", "langfuse.session.id"),
    *("traceloop.association.properties.session_id", "traceloop.association.properties.chat_id"),
)
MODEL = ("gen_ai.request.model", "gen_ai.response.model", "llm.request.model", "mlflow.llm.model")
# Attributes of these beginnings describe the call, the machine or the person, not what it was for.
DESCRIBING = re.compile(
    r"(gen_ai|llm|mlflow|traceloop\.entity|telemetry|otel|http|net|server|url|ai|service|host|process"
    r"|os|k8s|container|deployment|user|enduser|exception)\."
)
NUMBERED = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(.+)")
TOOL_CALL = re.compile(r"tool_calls\.(\d+)\.(id|name|arguments)")
# The older events by what they hold: a turn of the request.
EVENTS = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
ERRORS = (2, "STATUS_CODE_ERROR", "ERROR")


@dataclass(frozen=True)
class Resource:
    """What sent spans: its attributes, and those of them that are metadata of each call."""

    attributes: Turn
    trace: str | None = None

    @cached_property
    def own(self) -> Turn:
        """The metadata."""
        return _own(self.attributes)


def of_export(request: JsonObject) -> Iterator[Call | LeftOut]:
    """Yields the calls in an export request of OTLP, or in one of its `resourceSpans`."""
    for group in request.get("resourceSpans") or [request]:
        resource = Resource(_attributes(group.get("resource")))
        for scope in group.get("scopeSpans") or group.get("instrumentationLibrarySpans") or ():
            for span in scope.get("spans") or ():
                yield _guarded(span, resource)


def of_trace(trace: JsonObject) -> Iterator[Call | LeftOut]:
    """Yields the calls in a trace of MLflow."""
    if isinstance(inner := unquoted(trace.get("trace")), dict):  # a row of `search_traces`
        trace = inner
    info, data = trace.get("info") or {}, unquoted(trace.get("data")) or trace
    metadata, tags = info.get("trace_metadata") or {}, scalars(info.get("tags"))
    known = {
        **tags,
        "session.id": metadata.get("mlflow.trace.session"),
        "service.name": tags.get("mlflow.traceName"),
    }
    resource = Resource(known, info.get("trace_id") or info.get("request_id"))
    for span in data.get("spans") or ():
        yield _guarded(span, resource)


def _guarded(span: Any, resource: Resource) -> Call | LeftOut:
    try:
        return _call(span, resource)
    except LeftOut as reason:
        return reason
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return LeftOut(f"a broken span: {type(error).__name__}: {error}")


def _call(span: JsonObject, resource: Resource) -> Call:
    """Returns the call that a span is. Raises `LeftOut` where it is none."""
    attributes = _attributes(span)
    events = [(e.get("name") or "", _attributes(e)) for e in span.get("events") or ()]
    for name, more in events:
        if name == "gen_ai.client.inference.operation.details":
            attributes |= more
    _check_kind(attributes)
    status = span.get("status") or {}
    if status.get("code", status.get("status_code")) in ERRORS or attributes.get("error.type"):
        raise LeftOut(FAILED)
    chat = _of_mlflow(attributes) if "mlflow.spanInputs" in attributes else _of_otel(attributes)
    chat = chat if chat.turns else _of_events(events)
    both = resource.attributes | attributes
    trace = resource.trace or span.get("traceId") or span.get("trace_id")
    environment = both.get("deployment.environment.name") or both.get("deployment.environment")
    return Call(
        chat.turns,
        chat.reply,
        conversation=_first(both, CONVERSATION) or trace,
        seconds=seconds_of(span.get("startTimeUnixNano", span.get("start_time_unix_nano"))),
        model=_first(attributes, MODEL) or chat.model,
        service=both.get("service.name"),
        request=span.get("spanId") or span.get("span_id"),
        tools=chat.tools or _tools(attributes),
        more=resource.own
        | _own(attributes)
        | ({"environment": environment} if environment else {}),
    )


def _own(attributes: Turn) -> Turn:
    """Returns the attributes that say what a call was for."""
    return scalars({name: attributes[name] for name in attributes if _is_own(name)})


@lru_cache(4096)
def _is_own(name: str) -> bool:
    return not DESCRIBING.match(name) and name not in CONVERSATION


def _check_kind(attributes: Turn) -> None:
    """Raises `LeftOut` for a span that says of itself that it is no chat."""
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type")
    kind = unquoted(attributes.get("mlflow.spanType") or "").strip('"')
    if operation in ("embeddings", "embedding") or kind == "EMBEDDING":
        raise LeftOut(EMBEDDINGS)
    if (operation and operation not in CHATS) or (kind and kind not in ("CHAT_MODEL", "LLM")):
        raise LeftOut(NO_CALL)
    if not (kind or operation or any(name.startswith("gen_ai.") for name in attributes)):
        raise LeftOut(NO_CALL)


def _of_otel(attributes: Turn) -> Call:
    """Returns the chat in the attributes of a span, an empty one where they hold none."""
    if (given := attributes.get("gen_ai.input.messages")) is not None:
        turns = [turn for message in _listed(given) for turn in _turns(message)]
        system = _listed(attributes.get("gen_ai.system_instructions") or [])
        turns = [*_turns({"role": "system", "parts": system}), *turns] if system else turns
        output = _listed(attributes.get("gen_ai.output.messages") or [])[:1]
        return Call(turns, [turn for message in output for turn in _turns(message)])
    sides: dict[str, dict[int, Turn]] = {"prompt": {}, "completion": {}}
    for name, value in attributes.items():
        if found := NUMBERED.fullmatch(name):
            sides[found[1]].setdefault(int(found[2]), {})[found[3]] = value
    turns = [_numbered(turn, "user") for _, turn in sorted(sides["prompt"].items())]
    reply = [_numbered(turn, "assistant") for _, turn in sorted(sides["completion"].items())[:1]]
    if not turns and attributes.get("gen_ai.prompt"):
        turns, _ = asked(attributes["gen_ai.prompt"])
        reply = replied(attributes.get("gen_ai.completion"))
    return Call(turns, reply)


def _of_events(events: list[tuple[str, Turn]]) -> Call:
    """Returns the chat in the events of a span. Raises `LeftOut` where there is none."""
    turns: list[Any] = []
    reply: list[Any] = []
    for name, values in events:
        if name == "gen_ai.content.prompt":
            turns += asked(values.get("gen_ai.prompt"))[0]
        elif name == "gen_ai.content.completion":
            reply = reply or replied(values.get("gen_ai.completion"))
        elif name in EVENTS:
            turns.append(_message({"role": EVENTS[name], **values}))
        elif name == "gen_ai.choice":
            message = unquoted(values.get("message") or values)
            reply = reply or [_message({"role": "assistant", **message})]
    if not turns:
        raise LeftOut(NOT_RECORDED)
    return Call(turns, reply)


def _of_mlflow(attributes: Turn) -> Call:
    """Returns the chat in the inputs and outputs of a span of MLflow."""
    inputs = unquoted(attributes["mlflow.spanInputs"])
    turns, tools = asked(inputs)
    model = inputs.get("model") if isinstance(inputs, dict) else None
    outputs = attributes.get("mlflow.spanOutputs")
    outputs = orjson.loads(outputs) if isinstance(outputs, str) else outputs
    return Call(turns, replied(outputs), model=model, tools=tools)


def _turns(message: Any) -> list[Turn]:
    """Returns a message of the conventions as turns: calls of tools beside its text, and a turn for
    each result of one."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        return [_message(message)]
    if len(message["parts"]) == 1 and _is_text(only := message["parts"][0]):
        return [{"role": message.get("role"), "content": only.get("content")}]
    content, calls, results = [], [], list[Turn]()
    for part in message["parts"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "tool_call":
            call = {"name": part.get("name"), "arguments": part.get("arguments") or {}}
            calls.append({"id": part.get("id"), "type": "function", "function": call})
        elif kind == "tool_call_response":
            text = part.get("response", part.get("result", ""))
            text = text if isinstance(text, str) else orjson.dumps(text).decode()
            results.append({"role": "tool", "content": text, "tool_call_id": part.get("id")})
        else:
            content.append(part)
    turn: Turn = {"role": message.get("role"), "content": content or None}
    if calls:
        turn["tool_calls"] = calls
    return [*results, *([turn] if content or calls else [])]


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("text", None)


def _message(message: Any) -> Turn:
    """Returns a turn with its own keys alone; a content that is a list of parts written as JSON is
    that list."""
    if not isinstance(message, dict):
        raise LeftOut("a call whose input is no chat")
    parts = unquoted(content := message.get("content"))
    if (
        isinstance(parts, list)
        and parts
        and all(isinstance(p, dict) and "type" in p for p in parts)
    ):
        content = parts
    calls, own = unquoted(message.get("tool_calls")), ("role", "tool_call_id", "name")
    kept = {key: message[key] for key in own if message.get(key)}
    if "id" in message and kept.get("role") == "tool":
        kept.setdefault("tool_call_id", message["id"])
    return {**kept, "content": content, **({"tool_calls": calls} if calls else {})}


def _numbered(values: Turn, role: str) -> Turn:
    """Returns the turn of numbered attributes, its calls of tools numbered in it too."""
    calls: dict[int, Turn] = {}
    for name, value in values.items():
        if found := TOOL_CALL.fullmatch(name):
            calls.setdefault(int(found[1]), {})[found[2]] = value
    made = [
        {
            **({"id": call["id"]} if "id" in call else {}),
            "type": "function",
            "function": {"name": call.get("name"), "arguments": call.get("arguments") or {}},
        }
        for _, call in sorted(calls.items())
    ]
    return _message({"role": role, **values, "tool_calls": made})


def _tools(attributes: Turn) -> Any:
    """Returns the tools that a request names, as OpenAI's."""
    given = attributes.get("gen_ai.tool.definitions") or attributes.get("mlflow.chat.tools")
    tools = unquoted(given) if given else None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return None
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]


def _listed(value: Any) -> list[Any]:
    value = unquoted(value)
    if not isinstance(value, list):
        raise LeftOut("a call whose input is no chat")
    return value


def _first(values: Turn, names: tuple[str, ...]) -> str | None:
    found = next((values[name] for name in names if values.get(name)), None)
    return None if found is None else str(found).strip('"')


def _attributes(holder: Any) -> Turn:
    """Returns the attributes of a span, an event or a resource: OTLP's list of keys and values, or
    an object."""
    found = (holder or {}).get("attributes") or {}
    if isinstance(found, dict):
        return dict(found)
    return {
        item["key"]: item["value"]["stringValue"]  # as nearly all are
        if "stringValue" in (item.get("value") or ())
        else _value(item.get("value"))
        for item in found
    }


def _value(value: Any) -> Any:
    """Returns what an `AnyValue` of OTLP holds."""
    if not isinstance(value, dict):
        return value
    for name in ANY_VALUE:
        if name in value:
            return value[name]
    if "intValue" in value:  # JSON writes 64 bits as a text
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_value(item) for item in (value["arrayValue"] or {}).get("values") or ()]
    pairs = (value.get("kvlistValue") or {}).get("values") or ()
    return {item["key"]: _value(item.get("value")) for item in pairs}
