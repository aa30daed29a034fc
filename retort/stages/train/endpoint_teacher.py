"""A live teacher behind an endpoint: its distribution at each token of existing ids.

The endpoint is vLLM's server, which scores ids (`prompt_logprobs`).
"""

# K teacher top-k
from dataclasses import replace
from typing import Any

import numpy as np

from retort.data import encoding
from retort.data.encoding import EncodedRow
from retort.engines import Request, Settings, find_engine, openai, resolve
from retort.engines._endpoint import Api, open_connection
from retort.engines._replies import UNREADABLE, EndpointError, cause_of, reason_of
from retort.engines._request_pool import RequestPool
from retort.errors import SpecError, StageError
from retort.records import Example, JsonObject
from retort.spec import JobSpec
from retort.stages import engine_settings
from retort.stages.train.prompt_logprobs import check_token_texts, keep_best, read_lists
from retort.store.signals import Signal, captured

WAYS = (
    "a live teacher is either in memory (generate.engine: vllm or transformers) or behind vLLM's "
    "server (generate.engine: openai with generate.endpoint); or set train.teacher: stored"
)
# The statuses of an endpoint without /tokenize.
NO_ROUTE = (404, 405, 501)
# Probabilities add up to 1, but for rounding.
MOST_MASS = 1.001


def is_remote(spec: JobSpec) -> bool:
    """Whether the live teacher is behind an endpoint, not in memory.

    Raises `SpecError` for an engine whose teacher gives no distribution of existing ids.
    """
    name = resolve(spec.generate.engine, spec.generate.top_k)
    where = f"train.teacher: live with generate.engine: {name}"
    if name == "echo":
        raise SpecError(f"{where}: echo only repeats, so it has no distribution to learn; {WAYS}")
    remote = find_engine(name).REMOTE
    if remote and name != "openai":
        raise SpecError(f"{where}: such an endpoint does not score ids; {WAYS}")
    default = openai.API.endpoint
    if remote and (spec.generate.endpoint or default).startswith(default):
        raise SpecError(f"{where}: {default} does not score ids; {WAYS}")
    return remote


def _ids_body(settings: Settings, request: Request) -> JsonObject:
    return {
        "model": settings.model,
        "prompt": request.response,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": settings.top_k,
    }


def _chat_body(settings: Settings, request: Request) -> JsonObject:
    body = {
        "model": settings.model,
        "messages": request.messages,
        "add_generation_prompt": True,
        "add_special_tokens": False,
    }
    return body | ({"tools": request.tools} if request.tools else {})


SCORING = replace(openai.API, path="/completions", body=_ids_body, rename=None)
TOKENIZING = replace(openai.API, path="/tokenize", body=_chat_body, rename=None)


class EndpointTeacher:
    """Holds the connection, and the signal of each item by its id: 8 K + 12 bytes a token."""

    def __init__(self, spec: JobSpec, vocabulary: int):
        self.k, self.vocabulary = min(spec.train.live_top_k, vocabulary), vocabulary
        self._settings = replace(engine_settings.settings_of(spec, ""), top_k=self.k)
        self._connection = open_connection(self._settings, openai.API)
        self.shown = self._connection.shown
        self._signals: dict[str, Signal] = {}
        self._pending: dict[str, EncodedRow] = {}
        self._pool = RequestPool(self._settings, SCORING, self._connection)

    def expect(self, rows: list[EncodedRow]) -> None:
        """Requests the signals of rows that were never requested, all at once; does not wait."""
        wanted = {row.id: row for row in rows if _supervised(row) and row.id not in self._signals}
        fresh = {name: row for name, row in wanted.items() if name not in self._pending}
        self._pending |= fresh
        self._pool.submit([_request(row) for row in fresh.values()])

    def signals(self, rows: list[EncodedRow]) -> list[Signal]:
        """Returns the signal of each row's labels, in the order of the rows.

        Raises `SpecError` if the endpoint cannot score ids, `StageError` if it fails.
        """
        self.expect(rows)
        while any(row.id in self._pending for row in rows):
            answer = self._pool.next_answer()
            row = self._pending[answer.id]
            signal = self._read(answer.raw, row)
            if signal is not None:
                self._signals[row.id] = signal
                del self._pending[row.id]
        return [self._signals[row.id] if _supervised(row) else _nothing(self.k) for row in rows]

    def check(self, examples: list[Example], tokenizer: Any) -> None:
        """Raises `SpecError` unless the endpoint scores ids and its tokens are the student's.

        If it has /tokenize, its rendering of these chats is compared, which covers template and
        tokenizer; otherwise the texts of its tokens are, and its template stays unknown.
        """
        same = [self._renders_alike(example, tokenizer) for example in examples]
        prompt = encoding.render_one(tokenizer, examples[0].messages, examples[0].tools)
        row = encoding.encode(examples[0].id, prompt[:1], [*prompt[1:], prompt[-1]])
        raw = self._once(SCORING, _request(row))
        while self._read(raw, row) is None:
            raw = self._once(SCORING, _request(row))
        if None in same:
            check_token_texts(raw["body"], tokenizer, self.shown)

    def close(self) -> None:
        """Ends the connection."""
        self._pool.close()

    def _once(self, api: Api, request: Request) -> JsonObject:
        """Returns the raw answer to one request; /tokenize is beside /v1, not below it."""
        connection = self._connection
        if api is TOKENIZING:
            connection = replace(connection, base=connection.base.removesuffix("/v1"))
        pool = RequestPool(self._settings, api, connection)
        try:
            pool.submit([request])
            return pool.next_answer().raw
        finally:
            pool.close()

    def _renders_alike(self, example: Example, tokenizer: Any) -> bool | None:
        """Returns True, or None if the endpoint does not say. Raises `SpecError` for other ids."""
        request = Request(example.id, example.messages, tools=example.tools)
        raw = self._once(TOKENIZING, request)
        if "error" in raw:
            error = raw["error"]
            if error["status"] in NO_ROUTE or error["kind"] == "not_json":
                return None
            raise StageError(f"{self.shown}: /tokenize: {cause_of(error)}")
        theirs = raw["body"].get("tokens")
        if not isinstance(theirs, list):
            return None
        own = encoding.render_one(tokenizer, example.messages, example.tools)
        if theirs != own:
            pairs = enumerate(zip(own, theirs, strict=False))
            at = next((at for at, (a, b) in pairs if a != b), min(len(own), len(theirs)))
            raise SpecError(
                f"generate.endpoint {self.shown} makes other tokens of the chat of example "
                f"{example.id} than the student does: {len(theirs)} against {len(own)}, from token "
                f"{at} on {theirs[at : at + 4]} against {own[at : at + 4]}. Its tokenizer or chat "
                "template is another, so its distribution is not one of the student's tokens; "
                "serve it with the student's template (--chat-template), take a student of the "
                "same family, or set train.losses: [{name: cross_entropy}]"
            )
        return True

    def _read(self, raw: JsonObject, row: EncodedRow) -> Signal | None:
        """Returns the signal in a raw answer; None if padding took places in its lists, so that
        longer lists were requested."""
        if "error" in raw:
            raise self._refusal(raw["error"], row)
        width = self._settings.top_k
        try:
            entries = raw["body"]["choices"][0].get("prompt_logprobs")
            lists = read_lists(entries, row, width) if entries else None
        except UNREADABLE as error:
            raise StageError(
                f"{self.shown} gave lists that do not belong to the ids of item {row.id} "
                f"({type(error).__name__}: {error}); {self._needs()}"
            ) from None
        if lists is None:
            raise SpecError(f"{self.shown} gave no prompt_logprobs; {self._needs()}")
        mass = float(np.exp(lists.logprobs_TW).sum(axis=1).max())
        if not mass <= MOST_MASS:
            raise SpecError(
                f"{self.shown} gave no log-probabilities: those of one token add up to {mass:.4g}; "
                "start vLLM's server with --logprobs-mode raw_logprobs"
            )
        num_short = self.k - int((lists.ids_TW < self.vocabulary).sum(axis=1).min())
        if num_short > 0:
            self._widen(width + num_short)
            return None
        return keep_best(lists, row.labels[row.first :], self.k, self.vocabulary)

    def _widen(self, width: int) -> None:
        """Requests longer lists from now on, and again for all pending rows."""
        self._pool.close()
        self._settings = replace(self._settings, top_k=width)
        self._pool = RequestPool(self._settings, SCORING, self._connection)
        self._pool.submit([_request(row) for row in self._pending.values()])

    def _needs(self) -> str:
        return (
            "a live teacher needs an endpoint that takes token ids as the prompt and gives "
            f"prompt_logprobs: vLLM's server, with --max-logprobs {self._settings.top_k} or more"
        )

    def _refusal(self, error: EndpointError, row: EncodedRow) -> Exception:
        """Returns the exception for an error of the endpoint."""
        cause = cause_of(error)
        if reason_of(error) == "prompt_too_long":
            return SpecError(
                f"{self.shown} takes no text as long as item {row.id} ({len(row.labels) + 1} "
                f"tokens): {cause}; start vLLM's server with a larger --max-model-len, or lower "
                "train.max_length"
            )
        if "logprobs" in f"{error.get('code')} {error['message']}".lower():
            return SpecError(
                f"{self.shown} does not list {self._settings.top_k} log-probabilities a token: "
                f"{cause}; start vLLM's server with --max-logprobs {self._settings.top_k} or more, "
                "or lower train.live_top_k"
            )
        if error["transient"]:
            return StageError(
                f"the live teacher at {self.shown} does not answer: {cause}; once it does, a new "
                "run continues from the last checkpoint"
            )
        return SpecError(f"{self.shown} does not score ids: {cause}; {self._needs()}")


def _request(row: EncodedRow) -> Request:
    """Returns the request to score a row: its ids, and the last label, which they lack."""
    return Request(row.id, [], response=[*row.input_ids, row.labels[-1]])


def _supervised(row: EncodedRow) -> bool:
    return row.first < len(row.labels)


def _nothing(k: int) -> Signal:
    """Returns the signal of a row without labels."""
    none, nothing = np.zeros(0, np.float32), np.zeros((0, k), np.float32)
    return captured(nothing.astype(np.int32), nothing, none.astype(np.int32), none)
