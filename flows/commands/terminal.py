"""What a person sees of a job: a live line a stage or plain lines where stderr is no terminal, and
at the end the report as a table."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from retort.events import Event
from retort.metrics.comparison import ReportContent, caption, certainty, table, verdict
from retort.metrics.comparison.formatting import number
from tasks import listeners

PLAIN_EVERY_SECONDS = 10.0
# Short names of the rows below the score: its interval and the student's differences.
INTERVAL_ROWS = ("95% interval", "student minus it", "95% interval")


@contextmanager
def watching() -> Iterator[None]:
    """Shows the stages of jobs that run in this process, on stderr."""
    console = Console(stderr=True)
    with ExitStack() as open_bars:
        shown: LiveLines | PlainLines = PlainLines()
        if console.is_terminal:
            shown = LiveLines(open_bars.enter_context(_bars(console)))
        listeners.terminals.append(shown)
        try:
            yield
        finally:
            listeners.terminals.remove(shown)


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]ok"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]:>22}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class LiveLines:
    """One moving line per stage."""

    def __init__(self, bars: Progress):
        self._bars = bars
        self._ids: dict[str, TaskID] = {}

    def __call__(self, stage: str, event: Event) -> None:
        """Shows one event."""
        if event["kind"] == "note":
            self._bars.console.print(f"[dim]{stage}: {event['text']}", highlight=False)
            return
        if stage not in self._ids:
            self._ids[stage] = self._bars.add_task(stage, total=None, count="", note="")
        line = self._ids[stage]
        if event["kind"] == "progress":
            count = f"{event['done']:,}/{event['total']:,} {event['unit']}"
            self._bars.update(
                line,
                completed=event["done"],
                total=event["total"],
                count=count,
                note=event["note"],
            )
        elif event["kind"] in ("done", "cached"):
            note = "cached" if event["kind"] == "cached" else ""
            self._bars.update(line, total=1, completed=1, note=note)


class PlainLines:
    """Lines for logs and pipes: starts, ends, notes, and progress now and then."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._shown: dict[str, float] = {}

    def __call__(self, stage: str, event: Event) -> None:
        """Prints one event, or not."""
        now = time.monotonic()
        kind = event["kind"]
        if kind == "metrics":
            return
        if kind == "started":
            self._started[stage] = self._shown[stage] = now
        if kind == "progress":
            if now - self._shown.get(stage, 0.0) < PLAIN_EVERY_SECONDS:
                return
            self._shown[stage] = now
        text = listeners.line(stage, event)
        if kind == "done" and stage in self._started:
            text += f" in {now - self._started[stage]:.1f} s"
        print(text, file=sys.stderr, flush=True)


def print_report(content: ReportContent, page: str) -> None:
    """Prints the first table with its score's intervals, the verdict, and where the page is."""
    console, comparison, models = Console(soft_wrap=True), content.comparison, content.models
    heading, *body = table(models, comparison.metric)
    shown = Table()
    for name in heading:
        shown.add_column(name, min_width=len(name))  # a narrow terminal folds numbers, never a name
    intervals = certainty(models, comparison.metric, comparison.differences)
    for row in body:
        shown.add_row(*row)
        if row[0] == comparison.metric:
            for name, (_, *cells) in zip(INTERVAL_ROWS, intervals, strict=True):
                shown.add_row(name, *cells)
    console.print(shown)
    console.print(caption(content), style="dim", highlight=False)
    console.print(verdict(comparison, content.gate), style="bold", highlight=False)
    for text in content.warnings:
        console.print(f"warning: {text}", highlight=False, markup=False)
    for check in content.gate.checks:
        if not check.passed:
            why = check.reason or f"measured {number(check.measured, 4)}"
            text = f"refused: {check.name}: required {check.required}; {why}"
            console.print(text, highlight=False, markup=False)
    console.print(f"report: {page}", highlight=False, markup=False)
