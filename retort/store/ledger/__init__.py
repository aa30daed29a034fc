"""The ledger: every answer ever paid for, raw, found by the key of its complete request.

It is only ever added to. Answers are committed in segments, files that are written once and whole:
at most `MAX_UNCOMMITTED` finished answers, none older than 5 seconds, are ever outside one. Several
writers, also on several machines, may add to one ledger without a lock, for no two write the same
file. No clock decides which answer of a request counts, nor which run asked for it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from retort.records import STATES, JsonObject, Response
from retort.store import Folder
from retort.store.ledger.checks import defect_of, is_transient, response_of
from retort.store.ledger.segment import (
    StoredAnswer,
    answer_of,
    open_segment,
    read_segment,
    segment_names,
)
from retort.store.ledger.writer import MAX_UNCOMMITTED, Writer
from retort.store.signals import Signal, SignalFile, StoredTokens
from retort.store.urls import public_json

__all__ = ["CONTEXT_FILE", "MAX_UNCOMMITTED", "NO_LIMIT", "Ledger", "LedgerEntry", "StoredAnswer"]

# What the requests of a ledger have in common; the file has this name since the first ledgers.
CONTEXT_FILE = "manner.json"
ENGINE_FILE = "engine.json"
# Answers that list log-probabilities take a thousand times the room of others.
CACHED_SEGMENTS, CACHED_BYTES = 256, 1 << 30
NO_LIMIT = (1 << 31) - 1
TRANSIENT = 0x80  # the bit beside a state in the index


@dataclass(frozen=True)
class LedgerEntry:
    """What the index knows of the answer that counts for a request.

    `of_this_run`: the ledger's run has asked this request, whichever answer counts.
    """

    place: int
    state: str
    limits: tuple[int, int]
    at: float
    transient: bool
    of_this_run: bool


class Ledger:
    """The answers to the requests of one context, open for reading and, after `start`, for adding.

    `parse` turns a raw answer into a response. Whatever it raises makes that one answer a failed
    response. `run` names the run that adds; without it no entry is of this run.
    """

    def __init__(self, folder: Folder, parse: Callable[[str, JsonObject], Response], run: str = ""):
        self.folder, self._parse, self._run = folder, parse, run
        self._places: dict[bytes, int] = {}
        # By place: where the answer that counts is, and what is known of it.
        self._segment, self._row = array("I"), array("I")
        self._state, self._at, self._attempt = array("B"), array("d"), array("I")
        self._limits = array("i"), array("i")
        # By place, of all answers to the request.
        self._last_attempt, self._of_this_run = array("I"), array("B")
        self._names: list[str] = []
        self._open_segments: OrderedDict[int, tuple[list[bytes], SignalFile | None]] = OrderedDict()
        self._num_cached = 0  # bytes of their lines
        self._writer: Writer | None = None

    def load(self, seen: Callable[[StoredAnswer, Response], None] | None = None) -> None:
        """Reads the index from all committed segments; calls `seen` with every entry.

        Called again, it reads those that other writers have committed since. Raises `DamagedError`
        for a segment that is not as it was written.
        """
        known = set(self._names)
        names = [name for name in segment_names(self.folder) if name not in known]
        for name, data in self.folder.read_all(names):
            segment = read_segment(f"{self.folder.uri}/{name}", data)
            self._names.append(name)
            for row, line in enumerate(segment.lines):
                answer = answer_of(line)
                response = self.response(answer)
                self._index(answer, response, len(self._names) - 1, row)
                if seen:
                    seen(answer, response)

    def start(self, facts: JsonObject) -> None:
        """Opens the ledger for adding answers of an engine with these facts."""
        self.folder.write_json(ENGINE_FILE, public_json(facts))
        self._writer = Writer(self.folder, facts.get("vocabulary", 0))

    def describe(self, context: JsonObject) -> None:
        """Stores what the requests have in common, addresses without secrets."""
        self.folder.write_json(CONTEXT_FILE, public_json(context))

    def engine(self) -> JsonObject:
        """Returns the facts of the engine that answered last; empty where none ever did."""
        facts: JsonObject = {}
        if self.folder.has(ENGINE_FILE):
            facts = self.folder.read_json(ENGINE_FILE)
        return facts

    def add(self, answer: StoredAnswer, signal: Signal | None) -> Response:
        """Hands an answer to the writer, raw, then returns it parsed.

        Waits while too much is uncommitted. Raises `StoreError` when it cannot be committed.
        """
        assert self._writer, "start() comes first"
        place = self._places.get(bytes.fromhex(answer.key))
        attempt = 1 if place is None else self._last_attempt[place] + 1
        defect = defect_of(signal, self._writer.vocabulary) if signal is not None else ""
        answer = replace(
            answer,
            run=self._run,
            attempt=attempt,
            defect=defect,
            raw=_without_secrets(answer.raw),
        )
        name, row = self._writer.add(answer, None if defect else signal)
        if not self._names or self._names[-1] != name:
            self._names.append(name)
        response = self.response(answer)
        self._index(answer, response, len(self._names) - 1, row)
        return response

    def commit(self) -> None:
        """Commits everything that was added; returns when it is written."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Commits everything and ends the writer."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def find(self, key: str) -> LedgerEntry | None:
        """Returns the entry that counts for a key: the last that did not fail, or the last."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        state = self._state[place]
        return LedgerEntry(
            place,
            STATES[state & ~TRANSIENT],
            (self._limits[0][place], self._limits[1][place]),
            self._at[place],
            transient=bool(state & TRANSIENT),
            of_this_run=bool(self._of_this_run[place]),
        )

    def read(self, entry: LedgerEntry) -> tuple[StoredAnswer, StoredTokens | None]:
        """Returns a committed answer, and its signal as it is stored."""
        lines, stored = self._opened(self._segment[entry.place])
        row = self._row[entry.place]
        has_signal = stored is not None and str(row) in stored.ids
        return answer_of(lines[row]), stored.raw(str(row)) if stored and has_signal else None

    def signal(self, entry: LedgerEntry) -> Signal | None:
        """Returns the signal of a committed answer."""
        stored = self._opened(self._segment[entry.place])[1]
        row = str(self._row[entry.place])
        return stored.row(row) if stored and row in stored.ids else None

    def response(self, answer: StoredAnswer) -> Response:
        """Returns an answer parsed; a failed response where it cannot be."""
        return response_of(answer, self._parse)

    def __len__(self) -> int:
        return len(self._places)

    def _index(self, answer: StoredAnswer, response: Response, segment: int, row: int) -> None:
        """Keeps the better of two answers to one request."""
        key, state = bytes.fromhex(answer.key), STATES.index(response.state)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._segment)
            for column in (
                *(self._segment, self._row, self._state, self._at, self._attempt),
                *(*self._limits, self._last_attempt, self._of_this_run),
            ):
                column.append(0)
            is_better = True
        else:
            before = self._state[place], self._attempt[place], self._at[place]
            is_better = _rank(state, answer.attempt, answer.at) >= _rank(*before)
        self._last_attempt[place] = max(self._last_attempt[place], answer.attempt)
        if self._run and answer.run == self._run:
            self._of_this_run[place] = 1
        if is_better:
            self._segment[place], self._row[place] = segment, row
            is_passing = response.state == "failed" and is_transient(answer)
            self._state[place] = state | (TRANSIENT if is_passing else 0)
            self._at[place], self._attempt[place] = answer.at, answer.attempt
            self._limits[0][place], self._limits[1][place] = answer.limits

    def _opened(self, number: int) -> tuple[list[bytes], SignalFile | None]:
        """Returns a segment's lines and signals, from memory where it was read recently."""
        if number in self._open_segments:
            self._open_segments.move_to_end(number)
            return self._open_segments[number]
        name = self._names[number]
        if self._writer and self._writer.is_uncommitted(name):
            self._writer.flush()
        found = open_segment(self.folder, name)
        self._open_segments[number] = found
        self._num_cached += sum(map(len, found[0]))
        while len(self._open_segments) > 1 and (
            len(self._open_segments) > CACHED_SEGMENTS or self._num_cached > CACHED_BYTES
        ):
            lines, _ = self._open_segments.popitem(last=False)[1]
            self._num_cached -= sum(map(len, lines))
        return found


def _rank(state: int, attempt: int, at: float) -> tuple[bool, int, float]:
    """Orders the answers to one request: any that did not fail, then the later attempt. The time
    only orders what two writers added at once, and the answers of older ledgers."""
    return STATES[state & ~TRANSIENT] != "failed", attempt, at


def _without_secrets(raw: JsonObject) -> JsonObject:
    """Returns a raw answer whose error, if it is one, names addresses without secrets."""
    error = raw.get("error") if isinstance(raw, dict) else None
    return {**raw, "error": public_json(error)} if isinstance(error, dict) else raw
