"""What a running stage says: progress, metrics and notes. Stages speak; who listens is not theirs.

An event is a small JSON value, so that it crosses from a child process unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]


@dataclass(frozen=True)
class Reporter:
    """Hands events to one listener."""

    emit: Callable[[Event], None]

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Says how far the stage is, in its own unit; `note` is a short text beside it."""
        self.emit({"kind": "progress", "done": done, "total": total, "unit": unit, "note": note})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Gives numbers over time."""
        self.emit({"kind": "metrics", "values": values, "step": step})

    def note(self, text: str) -> None:
        """Says one thing worth a line."""
        self.emit({"kind": "note", "text": text})


SILENT = Reporter(lambda event: None)
