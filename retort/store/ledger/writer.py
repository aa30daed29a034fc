"""The ledger's writer: commits answers in batches on a thread of its own, so that no engine waits
for a disk.

A batch is one segment, written once and whole; while it is written the next one fills.
"""

import threading
import time
import uuid

from retort.errors import StoreError
from retort.store import Folder, signals
from retort.store.folder import listed_file
from retort.store.ledger.segment import StoredAnswer, signals_of, write_segment
from retort.store.signals import Signal

MAX_UNCOMMITTED = 256
# One batch is written while another fills: together they are what may be uncommitted.
BATCH = MAX_UNCOMMITTED // 2
COMMIT_SECONDS = 2.0
WRITE_ATTEMPTS = 8
Batch = list[tuple[StoredAnswer, Signal | None]]


class Writer:
    """Takes answers and commits them in the order they came."""

    def __init__(self, folder: Folder, vocabulary: int):
        self._folder, self.vocabulary = folder, vocabulary
        # Names sort by the time at which their writers began; nothing depends on that order.
        self._prefix = f"segments/{int(time.time() * 1000):013d}-{uuid.uuid4().hex[:8]}"
        self._number = 0
        self._pending: Batch = []
        self._oldest = 0.0
        self._is_writing = self._is_closed = self._is_flushed = False
        self._committed: set[str] = set()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, answer: StoredAnswer, signal: Signal | None) -> tuple[str, int]:
        """Returns the name of the segment, and the row in it, that the answer will have."""
        with self._changed:
            while len(self._pending) >= BATCH and not self._error:
                self._changed.wait()
            self._raise()
            if not self._pending:
                self._oldest = time.monotonic()
            self._pending.append((answer, signal))
            if len(self._pending) in (1, BATCH):
                self._changed.notify_all()
            return self._name(), len(self._pending) - 1

    def is_uncommitted(self, name: str) -> bool:
        """Whether a segment is one of this writer's that is not committed yet."""
        return name.startswith(self._prefix) and name not in self._committed

    def flush(self) -> None:
        """Returns when all answers are committed. Raises what prevented it."""
        with self._changed:
            self._is_flushed = True
            self._changed.notify_all()
            while (self._pending or self._is_writing) and not self._error:
                self._changed.wait()
            self._is_flushed = False
            self._raise()

    def close(self) -> None:
        """Commits what is pending and ends the thread."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            self._thread.join()

    def _name(self) -> str:
        return f"{self._prefix}-{self._number:06d}.jsonl"

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    if self._is_closed:
                        return
                    self._changed.wait(self._seconds_left())
                batch, self._pending, name = self._pending, [], self._name()
                self._number += 1
                self._is_writing = True
                self._changed.notify_all()
            try:
                self._write(name, batch)
            except BaseException as error:  # raised in the thread that adds or flushes next
                self._error = error
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                if self._error:
                    return

    def _is_due(self) -> bool:
        if not self._pending:
            return False
        waited = time.monotonic() - self._oldest
        return self._is_flushed or len(self._pending) >= BATCH or waited >= COMMIT_SECONDS

    def _seconds_left(self) -> float | None:
        if not self._pending:
            return None
        return max(0.01, self._oldest + COMMIT_SECONDS - time.monotonic())

    def _write(self, name: str, batch: Batch) -> None:
        """Writes a segment. The signals come first: an answer exists once its line does."""
        rows = [(str(row), signal) for row, (_, signal) in enumerate(batch) if signal is not None]
        packed = signals.pack(rows, self.vocabulary) if rows else b""
        facts = listed_file(packed) if rows else None
        data = write_segment([answer for answer, _ in batch], facts)
        for attempt in range(WRITE_ATTEMPTS):
            try:
                if rows:
                    self._folder.write(signals_of(name), packed)
                self._folder.write(name, data)
                self._committed.add(name)
                return
            except StoreError as error:
                if not error.transient or attempt == WRITE_ATTEMPTS - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
