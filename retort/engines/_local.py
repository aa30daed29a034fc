"""What the engines that run a model in their own process share: prompts as ids, stored answers."""

from dataclasses import dataclass
from typing import Any

from retort.data import encoding
from retort.engines import STATE_OF, Answer, Request
from retort.records import JsonObject, Response, ids_sha256


@dataclass(frozen=True)
class TokenizedRequest:
    """A request as ids: its prompt, and the part of its answer that exists already."""

    request: Request
    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def ids(self) -> list[int]:
        """All ids that the model reads."""
        return self.prompt_ids + self.answer_ids


def tokenize(
    tokenizer: Any, requests: list[Request], max_length: int
) -> tuple[list[TokenizedRequest], list[Answer]]:
    """Returns the requests that leave room for a token, and the final answers of all others.

    `max_length` counts the tokens of prompt and answer together.
    """
    fitting: list[TokenizedRequest] = []
    answers: list[Answer] = []
    tools = [request.tools for request in requests]
    rendered = encoding.render_each(tokenizer, [r.messages for r in requests], tools)
    for request, prompt in zip(requests, rendered, strict=True):
        if isinstance(prompt, str):
            answers.append(Answer(request.id, local_raw([], [], "error", cause=prompt)))
            continue
        ids = list(request.continues or [])
        if request.response is not None:
            ids = encoding.response_ids(tokenizer, request.response)
        if len(prompt) + len(ids) < max_length:
            fitting.append(TokenizedRequest(request, prompt, ids))
        elif request.continues:
            text = tokenizer.decode(ids, skip_special_tokens=True)
            answers.append(Answer(request.id, local_raw(prompt, ids, "length", text)))
        else:
            answers.append(Answer(request.id, local_raw(prompt, [], "prompt_too_long")))
    return fitting, answers


def local_raw(
    prompt_ids: list[int],
    token_ids: list[int],
    reason: str,
    text: str = "",
    cause: str | None = None,
) -> JsonObject:
    """Returns an answer as it is stored, for `parse_local` to read."""
    raw = {
        "text": text,
        "token_ids": token_ids,
        "finish_reason": reason,
        "num_prompt_tokens": len(prompt_ids),
        "prompt_sha256": ids_sha256(prompt_ids),
    }
    return raw | ({"cause": cause} if cause else {})


def parse_local(request_id: str, raw: JsonObject) -> Response:
    """Returns the response in an answer that `local_raw` made."""
    reason = raw["finish_reason"]
    state = STATE_OF.get(reason, "failed")
    cause = None if state == "accepted" else raw.get("cause", reason)
    return Response(
        id=request_id,
        text=raw["text"],
        token_ids=raw["token_ids"],
        finish_reason=reason,
        num_prompt_tokens=raw["num_prompt_tokens"],
        num_tokens=len(raw["token_ids"]),
        prompt_sha256=raw["prompt_sha256"],
        state=state,
        cause=cause,
    )
