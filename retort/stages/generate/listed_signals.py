"""Signals of a teacher behind an endpoint, whose tokenizer nobody here knows.

Ids are places in a table of what the tokens of one artifact's answers spell, in the order of their
first use: `tokens.json`, beside the signals. The table's first k tokens spell nothing and occur in
no list; a list that is shorter than k is filled with them, at the least probability that a record
holds (1e-13). Special tokens spell nothing, either: those that end an answer of this artifact are
ends in all lists, and others are known by their form; one of another form counts as plain text.
"""

import re
import tempfile
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from retort.data.token_bytes import TokenBytes
from retort.engines.openai import MOST_LISTED
from retort.errors import StageError
from retort.records import JsonObject, Response
from retort.spec import JobSpec
from retort.stages.generate.listed_tokens import (
    UNKNOWN,
    Place,
    TextOnlyError,
    Token,
    read_places,
)
from retort.stages.stage import TOKENS
from retort.store import Folder, signals
from retort.store.ledger import StoredAnswer
from retort.store.signals import Signal, SignalFile, StoredTokens, captured

LEARNED = ("accepted", "truncated")
SPECIAL = re.compile(
    r"<[|\uff5c][^<>]*[|\uff5c]>|</?s>|<(unk|pad|bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]"
)
LARGEST = 1 << 24  # the size of a table that is not complete yet: the most that a record can name


class ListedSignals:
    """Makes the signals of an artifact: its answers are added in order, shard by shard.

    The size of the table is known when the last answer is; until then shards wait on the disk.
    """

    def __init__(self, spec: JobSpec, out: Folder):
        self._spec, self._out = spec, out
        self._k = min(spec.generate.top_k, MOST_LISTED)
        self._ids: dict[Token, int] = {}
        self._ends: set[Token] = set()
        self._rows: list[tuple[str, Signal]] = []
        self._waiting = tempfile.TemporaryFile()  # noqa: SIM115 - it lasts as long as this
        self._shards: dict[str, int] = {}  # their sizes
        self._reasons: Counter[str] = Counter()
        self._num_signals = self._num_tokens = 0
        self._mass = 0.0

    def add(self, response: Response, stored: StoredAnswer, signal: StoredTokens | None) -> None:
        """Takes an answer; what is odd about it makes it text only."""
        if response.state not in LEARNED:
            return
        try:
            places = read_places(stored.raw, response, self._k)
        except TextOnlyError as reason:
            self._reasons[str(reason)] += 1
            return
        read = self._signal([_with_own_end(place) for place in places])
        self._rows.append((response.id, read))
        self._num_signals += 1
        self._num_tokens += len(places)
        self._mass += float((1 - np.exp(read.tail_T)).sum())

    def end_shard(self, name: str) -> None:
        """Keeps the signals of the answers since the last shard."""
        if self._rows:
            self._shards[name] = self._waiting.write(signals.pack(self._rows, LARGEST))
            self._rows = []

    def finish(self) -> JsonObject:
        """Writes all shards and their table; returns what the manifest says of them.

        Raises `StageError` where no answer has a signal.
        """
        if self._reasons and not self._num_signals:
            raise StageError(refusal(self._spec, self._most_frequent()))
        table, final = self._table()
        self._waiting.seek(0)
        for name, size in self._shards.items():
            rows = SignalFile.open(self._waiting.read(size)).rows()
            renamed = [(row_id, _renamed(signal, final)) for row_id, signal in rows.items()]
            self._out.write(
                f"signals-{name}.safetensors", signals.pack(renamed, len(table.spelled))
            )
        if self._shards:
            self._out.write(TOKENS, table.to_json().encode())
        return {
            "num_signals": self._num_signals,
            "num_text_only": self._reasons.total(),
            "text_only_for": self._most_frequent(),
            "vocabulary": len(table.spelled),
            "top_k_mass": self._mass / self._num_tokens if self._num_tokens else None,
            "logprobs_mode": "endpoint",
            "no_parity": "a model behind an endpoint cannot be run plainly",
        }

    def _most_frequent(self) -> str | None:
        return next((reason for reason, _ in self._reasons.most_common(1)), None)

    def _signal(self, places: list[Place]) -> Signal:
        """Returns the signal of an answer, its ids as they are numbered so far."""
        self._ends |= {place.token for place in places if place.is_end}
        fillers = range(self._k)
        num_missing = [self._k - len(place.tokens) for place in places]
        pairs = list(zip(places, num_missing, strict=True))
        return captured(
            np.array([[*map(self._id, p.tokens), *fillers[:n]] for p, n in pairs], np.int32),
            np.array([[*p.logprobs, *[UNKNOWN] * n] for p, n in pairs], np.float32),
            np.array([self._id(place.token) for place in places], np.int32),
            np.array([place.logprob for place in places], np.float32),
        )

    def _id(self, token: Token) -> int:
        return self._ids.setdefault(token, self._k + len(self._ids))

    def _table(self) -> tuple[TokenBytes, Any]:
        """Returns the table, and the id in it of each id that was given so far."""
        spelled: list[bytes | None] = [None] * self._k
        final, ids, ends = list(range(self._k)), dict[bytes, int](), set[int]()
        for token in self._ids:
            is_end = token in self._ends
            is_plain = token.is_text or not (is_end or _is_special(token))
            place = ids.setdefault(token.spelled, len(spelled)) if is_plain else len(spelled)
            if place == len(spelled):
                spelled.append(token.spelled if is_plain else None)
            if is_end:
                ends.add(place)
            final.append(place)
        return TokenBytes(tuple(spelled), frozenset(ends)), np.array(final, np.int32)


def _with_own_end(place: Place) -> Place:
    """Returns a place with an end token of its own, where that spells nothing and has no number: in
    other lists such an entry is a part of a character."""
    if not place.is_end or place.token != Token(b""):
        return place
    own = Token(b"", -1)
    tokens = [own if token == place.token else token for token in place.tokens]
    return replace(place, token=own, tokens=tokens)


def _is_special(token: Token) -> bool:
    text = token.spelled.decode(errors="replace")
    return not text or SPECIAL.fullmatch(text) is not None


def _renamed(signal: Signal, final: Any) -> Signal:
    return Signal(
        final[signal.ids_TK],
        signal.logprobs_TK,
        final[signal.target_ids_T],
        signal.target_logprobs_T,
        signal.tail_T,
    )


def check_first(spec: JobSpec, answers: list[tuple[Response, StoredAnswer]]) -> None:
    """Raises `StageError` where the first answers say that the endpoint gives no signal."""
    cause = None
    for response, stored in answers:
        if response.state == "failed" and "logprob" in (response.cause or "").lower():
            cause = response.cause
        elif response.state in LEARNED and not response.tool_calls:
            try:
                read_places(stored.raw, response, min(spec.generate.top_k, MOST_LISTED))
                return
            except TextOnlyError as reason:
                cause = cause or str(reason)
    if cause:
        raise StageError(refusal(spec, cause))


def refusal(spec: JobSpec, cause: str | None) -> str:
    """Returns why a job cannot have the signal that it wants, and the way out."""
    knobs = spec.generate
    where = knobs.endpoint.rpartition("@")[2].partition("?")[0] if knobs.endpoint else knobs.engine
    return (
        f"{knobs.teacher} at {where} gives no log-probabilities that can be learned from "
        f"(generate.top_k: {knobs.top_k}): {cause}. Set generate.top_k: 0 to learn from its text "
        "alone, or take a model that gives them (reasoning models do not); "
        "where it lists fewer than it was asked for, lower generate.top_k. What was answered stays "
        "in the ledger of this top_k"
    )
