"""A sample of requests that do not depend on one another: at most one of a conversation.

The turns of one conversation are alike, so that an interval or a test over all of them would claim
more than it knows. Which are taken follows from hashes and a seed, not from the order of the log.
"""

import hashlib
import heapq
from collections.abc import Iterable

from retort.records import Example


class Sample:
    """Keeps the conversations of least hash, and of each the request of least hash."""

    def __init__(self, most: int, seed: int):
        self._most, self._salt = most, f"sample:{seed}:".encode()
        self._kept: dict[int, tuple[int, Example]] = {}
        self._largest: list[int] = []

    def add(self, example: Example) -> None:
        """Takes a request, or not."""
        place = self._hash(str(example.metadata.get("conversation") or example.id))
        if place in self._kept:
            own = self._hash(example.id)
            if own < self._kept[place][0]:
                self._kept[place] = own, example
            return
        if len(self._kept) >= self._most:
            if not self._kept or place > -self._largest[0]:
                return
            del self._kept[-heapq.heappop(self._largest)]
        self._kept[place] = self._hash(example.id), example
        heapq.heappush(self._largest, -place)

    def add_all(self, examples: Iterable[Example]) -> "Sample":
        """Takes of many requests; returns itself."""
        for example in examples:
            self.add(example)
        return self

    def examples(self, most: int | None = None) -> list[Example]:
        """Returns the sample, or the first of it, in an order by hash."""
        return [self._kept[place][1] for place in sorted(self._kept)[:most]]

    def _hash(self, text: str) -> int:
        data = self._salt + text.encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
