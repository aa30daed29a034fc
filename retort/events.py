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

    def part(self, name: str, index: int, number: int) -> "Reporter":
        """Returns who speaks for one of `number` equal parts of a stage: progress counts in the
        whole, with the part's name beside it."""

        def emit(event: Event) -> None:
            if event["kind"] == "progress":
                total = event["total"] * number
                done = event["done"] + event["total"] * index
                event = {**event, "done": done, "total": total, "note": f"{name} {event['note']}"}
            self.emit(event)

        return Reporter(emit)


SILENT = Reporter(lambda event: None)
