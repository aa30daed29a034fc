"""The events of a running stage: progress, metrics and notes. A stage does not know who listens.

An event is a small JSON value, so that it crosses from a child process unchanged.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
# Embeddings, overrides and isolates of Unicode's bidirectional algorithm.
REORDER = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def shown(text: str) -> str:
    """Returns a text that a terminal may print: a control character becomes `\\x1b` or the like.

    What rows, models and files say could otherwise clear the screen or fake a line. Line breaks and
    tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def _escape(character: str) -> str:
    # Marks and joiners of scripts and emoji are not "printable" to Python, and do no harm; those
    # that reorder a line do.
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in REORDER:
        return repr(character)[1:-1]
    return character


SILENT = Reporter(lambda event: None)
