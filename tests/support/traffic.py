"""One chat as each tool logs it: the shapes are those of the tools' own exports."""

import json
from typing import Any

ASKED = [
    {"role": "system", "content": "You help customers of a bank."},
    {"role": "user", "content": "My card was swallowed in Łódź. What now?"},
]
REPLY = {"role": "assistant", "content": "Call the number on our site, and block it."}
CHAT = [*ASKED, REPLY]
# 2026-11-29T10:00:00.250Z
SECONDS, NANOSECONDS, ISO = 1795946400.25, 1795946400250000000, "2026-11-29T10:00:00.250Z"
TIME = "2026-11-29T10:00:00.250+00:00"


def otlp_value(value: Any) -> dict[str, Any]:
    """A value as OTLP's JSON has it: 64-bit numbers are texts."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp_value(item) for item in value]}}
    return {"kvlistValue": {"values": otlp_attributes(value)}}


def otlp_attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": otlp_value(value)} for key, value in values.items()]


def span(attributes: dict[str, Any], number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": "chat gpt-4o",
        "kind": 3,
        "startTimeUnixNano": str(NANOSECONDS),
        "endTimeUnixNano": str(NANOSECONDS + 10**9),
        "attributes": otlp_attributes(attributes),
        "status": {},
        **more,
    }


def export(*spans: dict[str, Any], service: str = "support") -> dict[str, Any]:
    resource = {"service.name": service, "host.name": "pod-7", "deployment.environment": "prod"}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": otlp_attributes(resource)},
                "scopeSpans": [{"scope": {"name": "opentelemetry.openai"}, "spans": [*spans]}],
            }
        ]
    }


def parts(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": message["role"], "parts": [{"type": "text", "content": message["content"]}]}


CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.conversation.id": "conv-1",
    "gen_ai.usage.input_tokens": 31,
    "customer.tier": "gold",
}
STRUCTURED = {
    **CALL,
    "gen_ai.system_instructions": [{"type": "text", "content": ASKED[0]["content"]}],
    "gen_ai.input.messages": [parts(ASKED[1])],
    "gen_ai.output.messages": [{**parts(REPLY), "finish_reason": "stop"}],
}
AS_TEXT = {
    **CALL,
    "gen_ai.input.messages": json.dumps([parts(turn) for turn in ASKED]),
    "gen_ai.output.messages": json.dumps([{**parts(REPLY), "finish_reason": "stop"}]),
}
NUMBERED = {
    **CALL,
    "llm.request.type": "chat",
    **{f"gen_ai.prompt.{n}.{k}": v for n, turn in enumerate(ASKED) for k, v in turn.items()},
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": REPLY["content"],
    "gen_ai.completion.0.finish_reason": "stop",
}
OLD_EVENTS = [
    {
        "name": "gen_ai.content.prompt",
        "attributes": otlp_attributes({"gen_ai.prompt": json.dumps(ASKED)}),
    },
    {
        "name": "gen_ai.content.completion",
        "attributes": otlp_attributes({"gen_ai.completion": json.dumps([REPLY])}),
    },
]
TURN_EVENTS = [
    *(
        {
            "name": f"gen_ai.{turn['role']}.message",
            "attributes": otlp_attributes({"gen_ai.system": "openai", "content": turn["content"]}),
        }
        for turn in ASKED
    ),
    {
        "name": "gen_ai.choice",
        "attributes": otlp_attributes(
            {"index": 0, "finish_reason": "stop", "message": json.dumps(REPLY)}
        ),
    },
]
OBSERVATION = {
    "id": "obs-1",
    "traceId": "trace-1",
    "type": "GENERATION",
    "name": "answer",
    "startTime": ISO,
    "endTime": "2026-11-29T10:00:01.250Z",
    "model": "gpt-4o",
    "modelParameters": {"temperature": 0.2},
    "input": ASKED,
    "output": REPLY,
    "metadata": {"customer.tier": "gold"},
    "level": "DEFAULT",
    "environment": "prod",
    "usageDetails": {"input": 31, "output": 11},
}
TRACE = {
    "id": "trace-1",
    "timestamp": ISO,
    "name": "support",
    "sessionId": "conv-1",
    "userId": "u-9",
    "input": {"messages": ASKED},
    "output": REPLY["content"],
    "metadata": {"customer.tier": "gold"},
    "tags": ["web"],
    "environment": "prod",
}
LITELLM = {
    "id": "chatcmpl-1",
    "trace_id": "conv-1",
    "call_type": "acompletion",
    "status": "success",
    "startTime": SECONDS,
    "endTime": SECONDS + 1,
    "model": "azure/gpt-4o",
    "model_group": "gpt-4o",
    "messages": ASKED,
    "response": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": REPLY}],
        "usage": {"total_tokens": 42},
    },
    "metadata": {
        "user_api_key_alias": "support",
        "requester_metadata": {"customer.tier": "gold", "environment": "prod"},
    },
    "request_tags": ["web"],
    "error_str": None,
    "response_cost": 0.0001,
}
SPEND_LOG = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "startTime": "2026-11-29T10:00:00.250000+00:00",
    "endTime": "2026-11-29T10:00:01.250000+00:00",
    "model": "gpt-4o",
    "session_id": "conv-1",
    "messages": "{}",
    "proxy_server_request": json.dumps({"model": "gpt-4o", "messages": ASKED}),
    "response": json.dumps(LITELLM["response"]),
    "metadata": json.dumps(LITELLM["metadata"]),
    "spend": 0.0001,
}
MLFLOW_SPAN = {
    "trace_id": "7mM/QA5PQntJiNnZWx/3YQ==",
    "span_id": "LTur54jNAEM=",
    "parent_span_id": "LSxb++FkgCQ=",
    "name": "Completions",
    "start_time_unix_nano": NANOSECONDS,
    "end_time_unix_nano": NANOSECONDS + 10**9,
    "events": [],
    "status": {"code": "STATUS_CODE_OK", "message": ""},
    "attributes": {
        "mlflow.traceRequestId": '"tr-1"',
        "mlflow.spanType": '"CHAT_MODEL"',
        "mlflow.spanInputs": json.dumps({"model": "gpt-4o", "messages": ASKED}),
        "mlflow.spanOutputs": json.dumps(
            {"choices": [{"message": REPLY, "finish_reason": "stop"}], "model": "gpt-4o-2024"}
        ),
        "mlflow.llm.model": '"gpt-4o"',
    },
    "links": [],
}
AGENT_SPAN = {
    **MLFLOW_SPAN,
    "span_id": "LSxb++FkgCQ=",
    "attributes": {
        "mlflow.spanType": '"AGENT"',
        "mlflow.spanInputs": '{"question": "hi"}',
        "mlflow.spanOutputs": '"hi"',
    },
}
MLFLOW = {
    "info": {
        "trace_id": "tr-1",
        "request_time": ISO,
        "state": "OK",
        "trace_metadata": {"mlflow.trace.session": "conv-1", "mlflow.user": "root"},
        "tags": {
            "customer.tier": "gold",
            "environment": "prod",
            "mlflow.traceName": "support",
        },
    },
    "data": {"spans": [AGENT_SPAN, MLFLOW_SPAN]},
}
CHATML = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in ASKED)
BODY = json.dumps({"model": "gpt-4o", "messages": ASKED, "temperature": 0.2})
FROM = "(APIServer pid=7) {} 11-29 10:00:00 [serve/utils/request_logger.py:66] {}"


def vllm_lines(request: str, body: str | None, old: bool = False) -> list[str]:
    """The lines of a log about one request: of the present version, or of one before 0.12."""
    params = "SamplingParams(n=1, temperature=0.2, max_tokens=64)"
    answer = f"output: {REPLY['content']!r}, finish_reason: stop"
    if old:
        tokens = "output_token_ids: [1, 2], "
        prompt = f"{CHATML}<|im_start|>assistant\n"
        said = [
            f"Received request chatcmpl-{request}: prompt: {prompt!r}, params: {params}, "
            "prompt_token_ids: None, prompt_embeds shape: None, lora_request: None.",
            f"Generated response chatcmpl-{request}: "
            + answer.replace("finish", f"{tokens}finish"),
        ]
        return [f"INFO 11-29 10:00:00 [logger.py:43] {line}" for line in said]
    return [
        FROM.format("DEBUG", f"Request {request} JSON body: {body or BODY}"),
        FROM.format("INFO", f"Received request chatcmpl-{request}: params: {params}, lora: None."),
        '(APIServer pid=7) INFO:     127.0.0.1:5000 - "POST /v1/chat/completions" 200 OK',
        FROM.format(
            "INFO", f"Generated response chatcmpl-{request} (streaming complete): {answer}"
        ),
    ]


# Each form: the records of a file, and what is known of its one call.
KNOWN = {"time": TIME, "model": "gpt-4o", "conversation": "conv-1", "service": "support"}
FORMS: dict[str, list[dict[str, Any]]] = {
    "OpenTelemetry, structured": [export(span(STRUCTURED))],
    "OpenTelemetry, JSON in attributes": [export(span(AS_TEXT))],
    "OpenTelemetry, numbered": [export(span(NUMBERED))],
    "OpenTelemetry, events": [export(span(CALL, events=OLD_EVENTS))],
    "OpenTelemetry, an event a turn": [export(span(CALL, events=TURN_EVENTS))],
    "Langfuse, trace": [{**TRACE, "observations": [OBSERVATION]}],
    "Langfuse, downloaded": [{"trace": TRACE, "observations": [OBSERVATION], "scores": []}],
    "Langfuse, trace alone": [TRACE],
    "Langfuse, blob storage": [
        {
            "id": "obs-1",
            "trace_id": "trace-1",
            "type": "GENERATION",
            "start_time": "2026-11-29 10:00:00.250000",
            "session_id": "conv-1",
            "trace_name": "support",
            "provided_model_name": "gpt-4o",
            "input": json.dumps(ASKED),
            "output": json.dumps(REPLY),
            "metadata": json.dumps({"customer.tier": "gold"}),
            "environment": "prod",
        }
    ],
    "LiteLLM, payload": [LITELLM],
    "LiteLLM, spend log": [SPEND_LOG],
    "MLflow": [MLFLOW],
    "MLflow, searched": [
        {"trace_id": "tr-1", "trace": json.dumps(MLFLOW), "trace_metadata": {}, "spans": []}
    ],
}
