"""Engines turn chats into answers and, where they can, into the teacher's signal. One file each.

A file offers `open_engine(settings) -> Engine`, `parse(id, raw) -> Response`, and constants that
say what the engine can do. Answers are stored raw and parsed later, so that a corrected parser
never costs a second answer. An engine is opened in a child process and closed by ending it.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from retort.errors import SpecError
from retort.plugins import find_file
from retort.records import JsonObject, Message, Response, State
from retort.store.signals import Signal

# The state of a response, by its finish reason: those of vLLM, of OpenAI, and our own.
STATE_OF: dict[str, State] = {
    "stop": "accepted",
    "tool_calls": "accepted",
    "length": "truncated",
    "prompt_too_long": "too_long",
    "content_filter": "filtered",
    "refusal": "refused",
}


@dataclass(frozen=True)
class Request:
    """One chat to answer; the answer carries the same id.

    `max_tokens` and `seed` default to those of the settings. `continues` are the ids of a truncated
    answer: the engine continues it, and the new answer begins with these ids. `response` is an
    answer to be scored, as text or ids.
    """

    id: str
    messages: list[Message]
    tools: list[JsonObject] | None = None
    max_tokens: int | None = None
    seed: int | None = None
    continues: list[int] | None = None
    response: str | list[int] | None = None


@dataclass(frozen=True)
class Answer:
    """An engine's answer to one request: raw JSON, and the signal if the settings want one.

    The signal of a continued answer covers the new ids only.
    """

    id: str
    raw: JsonObject
    signal: Signal | None = None


@dataclass(frozen=True)
class Timing:
    """The latency of a request that runs alone, in seconds: to the end of the answer, and to its
    first token, None if the engine does not see single tokens."""

    whole_seconds: float
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class Settings:
    """What an engine needs to know of a job. `runtime` is the spec's EngineRuntime as JSON.

    `endpoint` and `api_key_env` (the *name* of an environment variable) are for remote engines;
    `state` is the URI of a folder where such an engine may store what it must remember. `scores`:
    existing answers are scored, and none is generated. `home` is an artifact, and the folder in it,
    where another machine finds the model, if a store holds it.
    """

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    max_model_len: int | None
    top_k: int
    dtype: str
    seed: int
    runtime: JsonObject
    endpoint: str | None = None
    api_key_env: str | None = None
    state: str | None = None
    scores: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    home: tuple[str, str] | None = None


GenerateFunction = Callable[[Iterable[Request | None]], Iterator[Answer]]


class Engine(Protocol):
    """An open model.

    Some have more, which `_resident` uses: `steps` grows while they work, `reload(folder)` takes
    the weights of a model of the same shape, `rest(keeps_weights)` and `wake()` give back an
    accelerator's memory and take it again. A generator of answers that is closed drops the rest.
    """

    facts: JsonObject

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer when it is finished, in any order. Takes requests as it has room.

        A `None` among the requests means: there is none now, take an answer and try again. It may
        only come while an answer is outstanding.
        """

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of existing answers, in any order (if `SCORES`)."""

    def timed(self, request: Request) -> Timing:
        """Answers one request, alone, and returns its latency."""

    def forget(self) -> None:
        """Drops the cached keys and values of earlier prompts: each prompt is computed anew."""


class EngineModule(Protocol):
    """What an engine's file offers."""

    GIVES_SIGNAL: (
        bool  # generates answers with the teacher's distribution; if REMOTE, in the raw ones
    )
    SCORES: bool  # gives the distribution of existing answers
    CONTINUES: bool  # continues a truncated answer from its ids
    REMOTE: bool  # the model is behind a network: no folder, no tokenizer
    PENALTIES: bool  # supports frequency_penalty and presence_penalty; default True
    TORCH: bool  # its process needs torch; default True

    def open_engine(self, settings: Settings) -> Engine:
        """Returns the engine with its model loaded. Raises `SpecError` for impossible settings."""

    def import_libraries(self) -> None:
        """Imports what `open_engine` does, and touches no accelerator. It may be missing: see
        `libraries_of`."""

    def check(self, settings: Settings) -> str:
        """Returns one line on the endpoint, after checking its URL and key (if `REMOTE`).

        Raises `SpecError`.
        """

    def parse(self, request_id: str, raw: JsonObject) -> Response:
        """Returns the response in a raw answer."""


def libraries_of(engine: EngineModule) -> Callable[[], None] | None:
    """Returns what imports an engine's libraries, before it is opened; None where they are few."""
    return getattr(engine, "import_libraries", None)


def take_requests(
    source: Iterator[Request | None], max_requests: int
) -> tuple[list[Request], bool]:
    """Returns the requests that come before a `None`, and whether more may follow."""
    requests: list[Request] = []
    for request in islice(source, max_requests):
        if request is None:
            return requests, True
        requests.append(request)
    return requests, len(requests) == max_requests


def timed_alone(
    generate: GenerateFunction,
    request: Request,
    first_token_at: Callable[[], float | None] = lambda: None,
) -> Timing:
    """Returns the latency of a request; `first_token_at` is read afterwards (monotonic clock)."""
    started = time.monotonic()
    for _ in generate([request]):
        pass
    whole_seconds, first_at = time.monotonic() - started, first_token_at()
    return Timing(whole_seconds, None if first_at is None else first_at - started)


def cut_at(text: str, stop: tuple[str, ...]) -> str:
    """Returns a text up to the first stop text in it."""
    places = [text.index(end) for end in stop if end in text]
    return text[: min(places)] if places else text


def resolve(name: str, top_k: int) -> str:
    """Returns the engine's name; `auto` is vllm if it is installed, else transformers.

    Raises `SpecError` for an unknown engine, one that is not installed, or one without signals
    when `top_k` asks for a signal.
    """
    if name == "auto":
        name = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    if name == "vllm" and not importlib.util.find_spec("vllm"):
        raise SpecError("engine vllm is not installed here; use engine: transformers, or auto")
    module = find_engine(name)
    if top_k and not module.GIVES_SIGNAL:
        raise SpecError(f"engine {name} gives no signal; set generate.top_k: 0")
    return name


def find_engine(name: str) -> EngineModule:
    """Returns an engine's module; importing it loads nothing heavy."""
    module: EngineModule = find_file("engine", name, importlib.import_module(__name__))
    return module
