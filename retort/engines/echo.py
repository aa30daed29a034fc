"""The public test double: answers each chat with its last user turn. No model, no signal.

It tries a job's plumbing without a model; its tokens are the UTF-8 bytes of the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from retort.engines import Answer, Request, Settings, Timing, timed_alone
from retort.engines._local import local_raw, parse_local
from retort.errors import SpecError
from retort.records import JsonObject, Response

GIVES_SIGNAL = SCORES = CONTINUES = REMOTE = False


def parse(request_id: str, raw: JsonObject) -> Response:
    """Returns the response in a raw answer, without ids: bytes are no tokenizer's ids."""
    return replace(parse_local(request_id, raw), token_ids=[])


def open_engine(settings: Settings) -> "EchoEngine":
    """Returns an engine that repeats."""
    return EchoEngine(settings)


class EchoEngine:
    """Repeats the last user turn, cut at `max_tokens` bytes."""

    def __init__(self, settings: Settings):
        self._max_tokens = settings.max_tokens
        self.facts: JsonObject = {"engine": "echo", "engine_version": "1", "dtype": "none"}

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the answers in the order of the requests."""
        for request in requests:
            if request is None:
                continue
            prompt = request.messages[-1]["content"].encode()
            ids = prompt[: request.max_tokens or self._max_tokens]
            reason = "stop" if len(ids) == len(prompt) else "length"
            text = ids.decode(errors="ignore")
            yield Answer(request.id, local_raw(list(prompt), list(ids), reason, text))

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Raises `SpecError`: there is no distribution."""
        raise SpecError("engine echo cannot score; use vllm or transformers")

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one answer, which comes all at once."""
        return timed_alone(self.generate, request)

    def forget(self) -> None:
        """Does nothing: no prompt is cached."""
