"""The public test double: answers each chat with its last user turn. No model, no signal.

For trying a job's plumbing without a model; its tokens are the UTF-8 bytes of the text.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from retort.engines import Answer, Request, Settings
from retort.records import Response, ids_sha256

GIVES_SIGNAL = False


def open_engine(settings: Settings) -> "EchoEngine":
    """Returns an engine that repeats."""
    return EchoEngine(settings)


class EchoEngine:
    """Repeats the last user turn, cut at `max_tokens` bytes."""

    def __init__(self, settings: Settings):
        self._max_tokens = settings.max_tokens
        self.facts: dict[str, Any] = {"engine": "echo", "engine_version": "1", "dtype": "none"}

    def generate(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields the answers in the order of the requests."""
        for request in requests:
            prompt = list(request.messages[-1]["content"].encode())
            ids = prompt[: self._max_tokens]
            reason = "stop" if len(ids) == len(prompt) else "length"
            text = bytes(ids).decode(errors="ignore")
            yield Response(request.id, text, ids, reason, len(prompt), ids_sha256(prompt)), None
