"""Chats answered by any OpenAI-compatible endpoint: OpenAI, Azure, vLLM's server; live or in batch.

Text only: the teacher's distribution stays behind the endpoint.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from retort.engines import STATE_OF, Request, Settings
from retort.engines._batch import BatchApi, BatchEngine, Intent
from retort.engines._calls import Caller, lines_of
from retort.engines._endpoint import Api, described, fault, fault_of, read_answer
from retort.engines._request_pool import HttpEngine
from retort.records import Response

GIVES_SIGNAL = False
SCORES = False
CONTINUES = False
REMOTE = True


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
    choice, usage = body["choices"][0], body.get("usage") or {}
    message, reason = choice["message"], choice["finish_reason"]
    state, cause = STATE_OF.get(reason, "failed"), None
    if message.get("refusal"):
        state, cause = "refused", f"refusal: {message['refusal']}"
    elif state != "accepted":
        cause = f"finish_reason: {reason}"
    return Response(
        id=request_id,
        text=message.get("content") or "",
        token_ids=choice.get("token_ids") or [],
        finish_reason=reason,
        num_prompt_tokens=usage.get("prompt_tokens", 0),
        num_tokens=usage.get("completion_tokens", 0),
        state=state,
        cause=cause,
        tool_calls=message.get("tool_calls") or None,
    )


def _body(settings: Settings, request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": request.messages,
        "temperature": settings.temperature,
        "max_tokens": request.max_tokens or settings.max_tokens,
    }
    if settings.top_p != 1.0:
        body["top_p"] = settings.top_p
    for name in ("frequency_penalty", "presence_penalty"):
        if value := getattr(settings, name):
            body[name] = value
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.temperature > 0:
        body["seed"] = settings.seed if request.seed is None else request.seed
    if request.tools:
        body["tools"] = request.tools
    return body


def _headers(host: str, key: str) -> dict[str, str]:
    if not key:
        return {}
    bearer = {"Authorization": f"Bearer {key}"}
    # Azure OpenAI reads api-key, a serverless endpoint of Azure the bearer; each leaves the other.
    return {**bearer, "api-key": key} if host.endswith(".azure.com") else bearer


def _row(custom_id: str, body: Any) -> dict[str, Any]:
    url = "/v1/chat/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def _order(caller: Caller, intent_id: str, rows: list[bytes]) -> bytes:
    """Uploads the rows; returns what makes a batch of them."""
    form: dict[str, str | bytes] = {"purpose": "batch", "file": b"\n".join(rows)}
    return orjson.dumps(
        {
            "input_file_id": orjson.loads(caller.call("POST", "/files", form))["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"retort_intent": intent_id},
        }
    )


def _claims(caller: Caller, batch: dict[str, Any], intent: Intent) -> bool:
    return (batch.get("metadata") or {}).get("retort_intent") == intent.id


def _results(caller: Caller, batch: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what came of each row that has a result: answers in one file, errors in another."""
    for name in ("output_file_id", "error_file_id"):
        data = caller.call("GET", f"/files/{batch[name]}/content") if batch.get(name) else b""
        for row in lines_of(data):
            yield row["custom_id"], _result(caller, row)


def _result(caller: Caller, row: dict[str, Any]) -> dict[str, Any]:
    response, error = row.get("response"), row.get("error") or {}
    if not response:
        code = str(error.get("code"))
        kind = "expired" if code in ("batch_expired", "batch_cancelled") else "batch_error"
        return {"error": fault(kind, str(error.get("message")), code=code)}
    if response["status_code"] == 200:
        return {"body": response["body"]}
    data = orjson.dumps(response["body"])
    return {"error": fault_of(response["status_code"], data, caller.door)}


API = Api(
    name="openai",
    endpoint="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    path="/chat/completions",
    headers=_headers,
    body=_body,
    rename=("max_tokens", "max_completion_tokens"),
)
BATCHES = BatchApi(
    path="/batches",
    cursor="after",
    max_requests=50_000,
    max_bytes=200_000_000,
    row=_row,
    order=_order,
    created_at=lambda batch: float(batch["created_at"]),
    has_ended=lambda batch: batch["status"] in ("completed", "failed", "expired", "cancelled"),
    claims=_claims,
    results=_results,
)
