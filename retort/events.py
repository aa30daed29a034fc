"""The events of a running stage: progress, metrics and notes. A stage does not know who listens.

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
        """Reports how far the stage is, counted in its own unit; `note` is a short text beside."""
        self.emit({"kind": "progress", "done": done, "total": total, "unit": unit, "note": note})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Reports numbers that change over the steps of a stage."""
        self.emit({"kind": "metrics", "values": values, "step": step})

    def note(self, text: str) -> None:
        """Reports one line of text."""
        self.emit({"kind": "note", "text": text})

    def part(self, name: str, index: int, number: int) -> "Reporter":
        """Returns the reporter of one of `number` equal parts of a stage. Its progress is counted
        within the whole stage and shows the part's name."""

        def emit(event: Event) -> None:
            if event["kind"] == "progress":
                total = event["total"] * number
                done = event["done"] + event["total"] * index
                event = {**event, "done": done, "total": total, "note": f"{name} {event['note']}"}
            self.emit(event)

        return Reporter(emit)


SILENT = Reporter(lambda event: None)
