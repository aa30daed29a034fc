"""The ledger: every answer ever paid for, raw, keyed by its complete request. Only ever added to.

Answers are committed in segments, files that are written once and whole: at most `MAX_UNCOMMITTED`
finished answers, none older than 5 seconds, are ever outside one. Several writers, also on several
machines, may add to one ledger at a time; no lock is needed, for no two write the same file.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from retort.records import STATES, Response
from retort.store import Folder
from retort.store.ledger.writer import MAX_UNCOMMITTED, StoredAnswer, Writer, signals_of
from retort.store.signals import Signal, SignalFile, StoredTokens

# Where a ledger says what its requests have in common; named so since the first ledgers.
CONTEXT_FILE = "manner.json"
CACHED_SEGMENTS = 256
NO_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class LedgerEntry:
    """What the index knows of the best entry of a key."""

    place: int
    state: str
    limits: tuple[int, int]
    at: float
    transient: bool


class Ledger:
    """One way of asking (one context), open for reading and, once `start`ed, for adding.

    `parse` turns a raw answer into a response; it runs on what is committed, or about to be.
    """

    def __init__(self, folder: Folder, parse: Callable[[str, dict[str, Any]], Response]):
        self.folder, self._parse = folder, parse
        self._places: dict[bytes, int] = {}
        self._segment, self._row = array("I"), array("I")
        self._state, self._at = array("B"), array("d")
        self._limits = array("i"), array("i")
        self._names: list[str] = []
        self._open_segments: OrderedDict[int, tuple[list[bytes], SignalFile | None]] = OrderedDict()
        self._writer: Writer | None = None

    def load(self, seen: Callable[[StoredAnswer, Response], None] | None = None) -> None:
        """Reads the index from all segments that stand; `seen` is told of every entry.

        Called again, it reads those that other writers have committed since.
        """
        names = [n for n in self.folder.files() if n.startswith("segments/") and _is_lines(n)]
        known = set(self._names)
        for name, data in self.folder.read_all([n for n in names if n not in known]):
            self._names.append(name)
            for row, line in enumerate(data.splitlines()):
                entry = StoredAnswer(**orjson.loads(line))
                response = self.response(entry)
                self._index(entry, response, len(self._names) - 1, row)
                if seen:
                    seen(entry, response)

    def start(self, facts: dict[str, Any]) -> None:
        """Opens the ledger for adding what an engine with these facts gives."""
        self.folder.write_json("engine.json", facts)
        self._writer = Writer(self.folder, facts.get("vocabulary", 0))

    def engine(self) -> dict[str, Any]:
        """Returns the facts of the engine that was asked last; none where none ever was."""
        found: dict[str, Any] = {}
        if self.folder.has("engine.json"):
            found = self.folder.read_json("engine.json")
        return found

    def add(self, entry: StoredAnswer, signal: Signal | None) -> Response:
        """Hands a finished answer to the writer, then returns what it says.

        Waits while too much is uncommitted. Raises `StoreError` when it cannot be committed.
        """
        assert self._writer, "start() comes first"
        name, row = self._writer.add(entry, signal)
        if not self._names or self._names[-1] != name:
            self._names.append(name)
        response = self.response(entry)
        self._index(entry, response, len(self._names) - 1, row)
        return response

    def commit(self) -> None:
        """Commits everything that was added; returns when it stands."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Commits everything and ends the writer."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def find(self, key: str) -> LedgerEntry | None:
        """Returns what stands for a key: the latest that did not fail, or the latest."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        state = self._state[place]
        return LedgerEntry(
            place,
            STATES[state & 0x7F],
            (self._limits[0][place], self._limits[1][place]),
            self._at[place],
            bool(state & 0x80),
        )

    def read(self, standing: LedgerEntry) -> tuple[StoredAnswer, StoredTokens | None]:
        """Returns a committed entry and its signal as it lies in the file."""
        segment, row = self._segment[standing.place], self._row[standing.place]
        lines, stored = self._opened(segment)
        entry = StoredAnswer(**orjson.loads(lines[row]))
        has_signal = stored is not None and str(row) in stored.ids
        return entry, stored.raw(str(row)) if stored and has_signal else None

    def signal(self, standing: LedgerEntry) -> Signal | None:
        """Returns the signal of a committed entry."""
        stored = self._opened(self._segment[standing.place])[1]
        row = str(self._row[standing.place])
        return stored.row(row) if stored and row in stored.ids else None

    def response(self, entry: StoredAnswer) -> Response:
        """Returns what an entry says."""
        return self._parse(entry.key, entry.raw)

    def __len__(self) -> int:
        return len(self._places)

    def _index(self, entry: StoredAnswer, response: Response, segment: int, row: int) -> None:
        """Keeps the better of two entries of one key; of equals the later."""
        transient = response.state == "failed" and bool(entry.raw.get("error", {}).get("transient"))
        key, state = bytes.fromhex(entry.key), STATES.index(response.state)
        place = self._places.get(key)
        if place is None:
            self._places[key] = len(self._segment)
            for column in (self._segment, self._row, self._state, self._at, *self._limits):
                column.append(0)
            place = len(self._segment) - 1
        elif _rank(state, entry.at) < _rank(self._state[place], self._at[place]):
            return
        self._segment[place], self._row[place] = segment, row
        self._state[place], self._at[place] = state | (0x80 if transient else 0), entry.at
        self._limits[0][place], self._limits[1][place] = entry.limits

    def _opened(self, segment: int) -> tuple[list[bytes], SignalFile | None]:
        """Returns a segment's lines and signals, from memory where it was read lately."""
        if segment in self._open_segments:
            self._open_segments.move_to_end(segment)
            return self._open_segments[segment]
        name = self._names[segment]
        if self._writer and self._writer.holds(name):
            self._writer.flush()
        lines = self.folder.read(name).splitlines()
        beside = signals_of(name)
        stored = SignalFile.open(self.folder.read(beside)) if self.folder.has(beside) else None
        self._open_segments[segment] = (lines, stored)
        if len(self._open_segments) > CACHED_SEGMENTS:
            self._open_segments.popitem(last=False)
        return lines, stored


def _rank(state: int, at: float) -> tuple[bool, float]:
    """A response that was given stands before one that failed; of equals the later one."""
    return STATES[state & 0x7F] != "failed", at


def _is_lines(name: str) -> bool:
    return name.endswith(".jsonl")


__all__ = ["MAX_UNCOMMITTED", "NO_LIMIT", "Ledger", "LedgerEntry", "StoredAnswer"]
