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
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from retort.events import Event, shown
from retort.metrics.comparison import (
    ReportContent,
    caption,
    certainty,
    exports,
    table,
    verdict,
)
from retort.metrics.comparison.formatting import number
from tasks import listeners

PLAIN_EVERY_SECONDS = 10.0
# In a narrower terminal there is room for numbers, but for no bar and no second time beside them.
WIDE = 110
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
    times: list[ProgressColumn] = [TimeElapsedColumn(table_column=Column(no_wrap=True))]
    bar: list[ProgressColumn] = []
    if console.width >= WIDE:
        bar.append(BarColumn(bar_width=24))
        times.append(TimeRemainingColumn(table_column=Column(no_wrap=True)))
    return Progress(
        SpinnerColumn(finished_text="[green]ok"),
        TextColumn("{task.description}", markup=False),
        *bar,
        TextColumn("{task.fields[count]:>22}", markup=False),
        *times,
        TextColumn("{task.fields[note]}", markup=False),
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
            self._bars.console.print(Text(listeners.line(stage, event), style="dim"))
            return
        if stage not in self._ids:
            self._ids[stage] = self._bars.add_task(stage, total=None, count="", note="")
        line = self._ids[stage]
        if event["kind"] == "progress":
            count = shown(f"{event['done']:,}/{event['total']:,} {event['unit']}")
            self._bars.update(
                line,
                completed=event["done"],
                total=event["total"],
                count=count,
                note=shown(event["note"]),
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
    """Prints the first table with its score's intervals, the verdict, the exported students where
    there are any, and where the page is."""
    console, comparison, models = Console(soft_wrap=True), content.comparison, content.models
    heading, *body = table(models, comparison.metric)
    scores = Table()
    for name in heading:
        # A narrow terminal folds numbers, never a name.
        scores.add_column(Text(shown(name)), min_width=len(name))
    intervals = certainty(models, comparison.metric, comparison.differences)
    for row in body:
        scores.add_row(*(Text(shown(cell)) for cell in row))
        if row[0] == comparison.metric:
            for name, (_, *cells) in zip(INTERVAL_ROWS, intervals, strict=True):
                scores.add_row(name, *(Text(shown(cell)) for cell in cells))
    console.print(scores)
    console.print(Text(shown(caption(content)), style="dim"))
    console.print(Text(shown(verdict(comparison, content.gate)), style="bold"))
    if content.exports:
        _print_exports(console, content)
    for text in content.warnings:
        console.print(shown(f"warning: {text}"), highlight=False, markup=False)
    for check in content.gate.checks:
        if not check.passed:
            why = check.reason or f"measured {number(check.measured, 4)}"
            text = f"refused: {check.name}: required {check.required}; {why}"
            console.print(shown(text), highlight=False, markup=False)
    for export in content.exports.values():
        if not (check := export.check).passed:
            why = check.reason or f"measured {number(check.measured, 4)}"
            text = f"refused: {export.format}: required {check.required}; {why}"
            console.print(shown(text), highlight=False, markup=False)
    console.print(f"report: {page}", highlight=False, markup=False)


def _print_exports(console: Console, content: ReportContent) -> None:
    """Prints the table of the exported students."""
    heading, *body = exports(content)
    shown_exports = Table()
    for name in heading:
        # Of `compressed_tensors:w8a8` each part may have a line of its own.
        shown_exports.add_column(Text(shown(name).replace(":", ":\n"), overflow="fold"))
    for row in body:
        shown_exports.add_row(*(Text(shown(cell)) for cell in row))
    console.print(shown_exports)
