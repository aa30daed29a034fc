"""The ledger's writer: commits batches on a thread of its own, so that no engine waits for a disk.

A batch is one file, written once and whole; while it is written the next one fills.
"""

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from retort.errors import StoreError
from retort.records import write_lines
from retort.store import Folder, signals
from retort.store.signals import Signal

MAX_UNCOMMITTED = 256
# One batch is written and one fills: together they are what may be uncommitted.
BATCH = MAX_UNCOMMITTED // 2
COMMIT_SECONDS = 2.0
WRITE_ATTEMPTS = 8


@dataclass(frozen=True)
class StoredAnswer:
    """One committed answer. `limits` are the (max_tokens, max_model_len) it was asked with.

    `by` names the artifact that paid for it, `at` is the time in seconds since 1970.
    """

    key: str
    limits: tuple[int, int]
    by: str
    at: float
    raw: dict[str, Any]


def signals_of(name: str) -> str:
    """Returns the name of the file with the signals of a segment."""
    return name.removesuffix(".jsonl") + ".safetensors"


class Writer:
    """Takes entries, and commits them in the order they came."""

    def __init__(self, folder: Folder, vocabulary: int):
        self._folder, self._vocabulary = folder, vocabulary
        self._prefix = f"segments/{int(time.time() * 1000):013d}-{uuid.uuid4().hex[:8]}"
        self._sequence = 0
        self._pending: list[tuple[StoredAnswer, Signal | None]] = []
        self._oldest = 0.0
        self._writing = self._closed = self._hurry = False
        self._committed: set[str] = set()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, entry: StoredAnswer, signal: Signal | None) -> tuple[str, int]:
        """Returns the segment's name and the row that the entry will stand in."""
        with self._changed:
            while len(self._pending) >= BATCH and not self._error:
                self._changed.wait()
            self._raise()
            if not self._pending:
                self._oldest = time.monotonic()
            self._pending.append((entry, signal))
            if len(self._pending) in (1, BATCH):
                self._changed.notify_all()
            return f"{self._prefix}-{self._sequence:06d}.jsonl", len(self._pending) - 1

    def holds(self, name: str) -> bool:
        """Whether a segment is not committed yet."""
        return name.startswith(self._prefix) and name not in self._committed

    def flush(self) -> None:
        """Returns when all that was added stands."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while (self._pending or self._writing) and not self._error:
                self._changed.wait()
            self._hurry = False
            self._raise()

    def close(self) -> None:
        """Commits what is pending and ends the thread."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._thread.join()

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due():
                    if self._closed:
                        return
                    self._changed.wait(self._patience())
                batch, self._pending = self._pending, []
                name = f"{self._prefix}-{self._sequence:06d}.jsonl"
                self._sequence += 1
                self._writing = True
                self._changed.notify_all()
            try:
                self._write(name, batch)
            except BaseException as error:  # handed to whoever adds next
                self._error = error
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                if self._error:
                    return

    def _due(self) -> bool:
        if not self._pending:
            return False
        waited = time.monotonic() - self._oldest
        return self._hurry or len(self._pending) >= BATCH or waited >= COMMIT_SECONDS

    def _patience(self) -> float | None:
        if not self._pending:
            return None
        return max(0.01, self._oldest + COMMIT_SECONDS - time.monotonic())

    def _write(self, name: str, batch: list[tuple[StoredAnswer, Signal | None]]) -> None:
        """The signals first: an answer stands once its line does."""
        rows = [(str(row), signal) for row, (_, signal) in enumerate(batch) if signal is not None]
        data = write_lines([entry for entry, _ in batch])
        packed = signals.pack(rows, self._vocabulary) if rows else None
        for attempt in range(WRITE_ATTEMPTS):
            try:
                if packed is not None:
                    self._folder.write(signals_of(name), packed)
                self._folder.write(name, data)
                self._committed.add(name)
                return
            except StoreError as error:
                if not error.transient or attempt == WRITE_ATTEMPTS - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
