"""Engines turn chats into answers and, where they can, give the teacher's signal. One file each.

A file offers `open_engine(settings) -> Engine`, `parse(id, raw) -> Response`, and says what it can
do in four constants. An answer is stored raw and parsed later, so that a mended parser never costs
a second answer. Engines are opened inside a child process and closed by ending it.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from retort.data import encoding
from retort.errors import SpecError
from retort.plugins import find_file
from retort.records import Message, Response, State, ids_sha256
from retort.store.signals import Signal


@dataclass(frozen=True)
class Request:
    """One chat to answer; the id joins the answer to it.

    `max_tokens` and `seed` are the settings' where not given. `continues` are the ids of an answer
    that was cut off: the engine goes on from them, and its answer begins with them. `response` is
    the text, or the ids, of an answer that is to be scored.
    """

    id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    seed: int | None = None
    continues: list[int] | None = None
    response: str | list[int] | None = None


@dataclass(frozen=True)
class Answer:
    """What an engine gave for one request: JSON as it came, and the signal where asked for.

    Of an answer that continues another, the signal belongs to the new ids alone.
    """

    id: str
    raw: dict[str, Any]
    signal: Signal | None = None


@dataclass(frozen=True)
class Timing:
    """How long a request alone took, seconds: to its whole answer, and to its first token where
    the engine sees that."""

    whole_seconds: float
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class Settings:
    """All that an engine needs to know of a job. `runtime` is the spec's EngineRuntime as JSON.

    `endpoint` and `api_key_env` (the *name* of an environment variable) are for engines behind a
    network; `state` is the URI of a folder where such an engine may keep what it must remember.
    `scores` says that answers are only scored, none is generated.
    """

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    max_model_len: int | None
    top_k: int
    dtype: str
    seed: int
    runtime: dict[str, Any]
    endpoint: str | None = None
    api_key_env: str | None = None
    state: str | None = None
    scores: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()


GenerateFunction = Callable[[Iterable[Request | None]], Iterator[Answer]]


class Engine(Protocol):
    """An open model."""

    facts: dict[str, Any]

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer as it finishes, in any order. Requests are taken as room allows.

        A `None` among the requests says: nothing now, ask again when an answer has been taken. It
        is only given while an answer is outstanding.
        """

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of answers that exist already, in any order (where `SCORES`)."""

    def timed(self, request: Request) -> Timing:
        """Answers one request while nothing else is under way; returns how long it took."""

    def forget(self) -> None:
        """Drops what was kept of earlier prompts: the next one costs what a new one costs."""


class EngineModule(Protocol):
    """What an engine's file offers."""

    GIVES_SIGNAL: bool  # generates with the teacher's distribution
    SCORES: bool  # gives the distribution of answers that exist already
    CONTINUES: bool  # goes on from the ids of an answer that was cut off
    REMOTE: bool  # the model is behind a network: no folder, no tokenizer
    PENALTIES: bool  # knows frequency_penalty and presence_penalty; True if not said

    def open_engine(self, settings: Settings) -> Engine:
        """Returns the engine, its model loaded. Raises `SpecError` for settings it cannot have."""

    def check(self, settings: Settings) -> str:
        """Returns a line on what will be asked, after looking at URL and key (where `REMOTE`).

        Raises `SpecError`.
        """

    def parse(self, request_id: str, raw: dict[str, Any]) -> Response:
        """Returns what a raw answer says."""


def timed_whole(generate: GenerateFunction, request: Request) -> Timing:
    """Returns the time of a whole answer, of an engine that does not see single tokens."""
    started = time.monotonic()
    for _ in generate([request]):
        pass
    return Timing(time.monotonic() - started)


STATE_OF: dict[str, State] = {
    "stop": "accepted",
    "tool_calls": "accepted",
    "length": "truncated",
    "prompt_too_long": "too_long",
    "content_filter": "filtered",
    "refusal": "refused",
}


def parse_local(request_id: str, raw: dict[str, Any]) -> Response:
    """Returns what an answer of an engine in this process says: it stored a response's fields."""
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


def local_raw(
    prompt_ids: list[int],
    token_ids: list[int],
    reason: str,
    text: str = "",
    cause: str | None = None,
) -> dict[str, Any]:
    """Returns what an engine in this process stores of an answer: `parse_local` reads it."""
    raw = {
        "text": text,
        "token_ids": token_ids,
        "finish_reason": reason,
        "num_prompt_tokens": len(prompt_ids),
        "prompt_sha256": ids_sha256(prompt_ids),
    }
    return raw | ({"cause": cause} if cause else {})


def cut_at(text: str, stop: tuple[str, ...]) -> str:
    """Returns a text up to the first of the texts that end it."""
    places = [text.index(end) for end in stop if end in text]
    return text[: min(places)] if places else text


def render_each(tokenizer: Any, requests: list[Request]) -> list[list[int] | str]:
    """Returns the prompt's ids of each request, or why its chat cannot be rendered."""
    try:
        return [*encoding.render(tokenizer, [r.messages for r in requests], _tools(requests))]
    except Exception:  # a template refuses in many ways; one by one it is seen which row is meant
        found: list[list[int] | str] = []
        for request in requests:
            try:
                found.append(encoding.render_one(tokenizer, request.messages, request.tools))
            except Exception as error:
                found.append(f"chat template: {type(error).__name__}: {error}")
        return found


def _tools(requests: list[Request]) -> list[Any]:
    return [request.tools for request in requests]


def resolve(name: str, top_k: int) -> str:
    """Returns the engine's name with `auto` decided: vllm where it is installed.

    Raises `SpecError` for an unknown engine, one that is not installed, or one without signals
    where a signal is asked for.
    """
    if name == "auto":
        name = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    if name == "vllm" and not importlib.util.find_spec("vllm"):
        raise SpecError("engine vllm is not installed here; use engine: transformers, or auto")
    module = find_engine(name)
    if top_k and not module.GIVES_SIGNAL:
        raise SpecError(f"engine {name} gives no signal; set generate.top_k: 0")
    return name


def device_of(wanted: str) -> str:
    """Returns the device that torch computes on, with `auto` decided: cuda where there is one."""
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_engine(name: str) -> EngineModule:
    """Returns an engine's module; importing it loads nothing heavy."""
    module: EngineModule = find_file("engine", name, importlib.import_module(__name__))
    return module
