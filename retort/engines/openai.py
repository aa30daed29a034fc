"""Chats answered by an endpoint that speaks OpenAI's protocol: OpenAI, Azure, vLLM's server.

Live or in batches. Where a signal is wanted, answers list their tokens with log-probabilities;
they are stored as they are, and read by the stage that wants the signal. Existing answers are
scored by vLLM's server alone, as the last message of a chat of which it lists every token
(`prompt_logprobs`): what the teacher's tokens are, nobody here knows.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import orjson

from retort.engines import Request, Settings
from retort.engines._batch import BatchApi, Intent, open_remote
from retort.engines._endpoint import Api, describe
from retort.engines._official import Caller, read_lines
from retort.engines._replies import make_error, read_answer, read_error
from retort.engines._shapes import count, read_completion
from retort.errors import SpecError
from retort.records import JsonObject, Response

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

    from retort.engines._batch import BatchEngine
    from retort.engines._request_pool import HttpEngine

GIVES_SIGNAL = True
SCORES = True
CONTINUES = False
REMOTE = True

# As many tokens as OpenAI lists at each place, and vLLM's server unless it is told otherwise.
MOST_LISTED = 20

# In a batch and its rows.
CHATS_URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"


def _body(settings: Settings, request: Request) -> JsonObject:
    body: JsonObject = {
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
    if settings.top_k:
        body |= {"logprobs": True, "top_logprobs": min(settings.top_k, MOST_LISTED)}
    return body


def _score_body(settings: Settings, request: Request) -> JsonObject:
    reply = {"role": "assistant", "content": request.response}
    body: JsonObject = {
        "model": settings.model,
        "messages": [*request.messages, reply],
        "add_generation_prompt": False,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": min(settings.top_k, MOST_LISTED),
    }
    return body | ({"tools": request.tools} if request.tools else {})


def _headers(host: str, key: str) -> dict[str, str]:
    if not key:
        return {}
    bearer = {"Authorization": f"Bearer {key}"}
    # Azure OpenAI reads api-key, Azure's serverless endpoints the bearer; both ignore the other.
    return {**bearer, "api-key": key} if host.endswith(".azure.com") else bearer


def _row(custom_id: str, body: Any) -> JsonObject:
    return {"custom_id": custom_id, "method": "POST", "url": CHATS_URL, "body": body}


def _upload(caller: Caller, rows: list[bytes]) -> str:
    """Returns the id of a file with the rows."""
    file = ("rows.jsonl", b"\n".join(rows))
    uploaded = caller.call(lambda client: client.files.create(file=file, purpose="batch"))
    return str(uploaded.id)


def _create(client: "OpenAI", intent_id: str, file_id: str) -> "Batch":
    return client.batches.create(
        input_file_id=file_id,
        endpoint=CHATS_URL,
        completion_window="24h",
        metadata={"retort_intent": intent_id},
    )


def _claims(caller: Caller, batch: "Batch", intent: Intent) -> bool:
    return (batch.metadata or {}).get("retort_intent") == intent.id


def _results(caller: Caller, batch: "Batch") -> Iterator[tuple[str, JsonObject]]:
    """Yields the result of each row that has one: answers are in one file, errors in another."""
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        for row in read_lines(caller.call(partial(_download, file_id))):
            yield row["custom_id"], _result(caller, row)


def _download(file_id: str, client: "OpenAI") -> bytes:
    return client.files.content(file_id).content


def _result(caller: Caller, row: JsonObject) -> JsonObject:
    response, error = row.get("response"), row.get("error") or {}
    if not response:
        code = str(error.get("code"))
        kind = "expired" if code in ("batch_expired", "batch_cancelled") else "batch_error"
        return {"error": make_error(kind, str(error.get("message")), code=code)}
    if response["status_code"] == 200:
        return {"body": response["body"]}
    data = orjson.dumps(response["body"])
    return {"error": read_error(response["status_code"], data, caller.connection)}


API = Api(
    name="openai",
    endpoint="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    path="/chat/completions",
    headers=_headers,
    body=_body,
    client_class="OpenAI",
    rename=("max_tokens", "max_completion_tokens"),
)
BATCHES = BatchApi(
    max_requests=50_000,
    max_bytes=200_000_000,
    row=_row,
    upload=_upload,
    create=_create,
    resource=lambda client: client.batches,
    created_at=lambda batch: float(batch.created_at),
    has_ended=lambda batch: batch.status in ("completed", "failed", "expired", "cancelled"),
    claims=_claims,
    results=_results,
)

SCORING = replace(API, body=_score_body, rename=None)


def open_engine(settings: Settings) -> "BatchEngine | HttpEngine":
    """Returns the endpoint as an engine; what exists is scored live, never in batches."""
    if settings.scores:
        settings = replace(settings, runtime={**settings.runtime, "batch": False})
    return open_remote(settings, SCORING if settings.scores else API, BATCHES)


def check(settings: Settings) -> str:
    """Returns a line on the endpoint. Raises `SpecError` for a bad one, a missing key, and one that
    cannot score existing answers where that is wanted."""
    line = describe(settings, API)
    if settings.scores and (settings.endpoint or API.endpoint).startswith(API.endpoint):
        raise SpecError(
            f"{API.endpoint} does not score existing answers; vLLM's server does: name it in "
            "generate.endpoint, or run the teacher here with generate.engine: vllm or transformers"
        )
    return line


def parse(request_id: str, raw: JsonObject) -> Response:
    """Returns the response in a raw answer; of scores, the answer that was scored."""
    read = partial(_scored, raw["scored"]) if "scored" in raw else read_completion
    return read_answer(request_id, raw, read)


def _scored(text: str, request_id: str, body: JsonObject) -> Response:
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    num_prompt, num_tokens = (
        count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens")
    )
    return Response(request_id, text, [], "stop", num_prompt, num_tokens)
