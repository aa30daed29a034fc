"""`retort compare`: finished jobs side by side, in the terminal, as JSON or as a page.

The table `details` is too wide for a terminal; JSON and the page have it.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.options import DONE, say
from retort.errors import SpecError
from retort.store import open_store

if TYPE_CHECKING:
    from retort.jobs.compare import ComparedRuns


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command; it reads finished jobs and no spec, so `on_spec` gives it no options."""
    it = commands.add_parser("compare", help="put finished jobs side by side")
    it.add_argument(
        "runs", nargs="+", metavar="RUN", help="a job's name, a report.json, or a folder with one"
    )
    it.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    it.add_argument("--json", action="store_true", help="print all of it as JSON, and only that")
    it.add_argument("--html", metavar="FILE", help="also write a page that needs no network")
    it.add_argument("--debug", action="store_true", help="show tracebacks")
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort compare`: prints tables, and which of every two students is better."""
    from retort.jobs.compare import compare, find, page

    if len(options.runs) < 2:
        raise SpecError("compare: only one run is named; name two or more")
    content = compare(find(open_store(options.store), options.runs))
    if options.html:
        path = Path(options.html).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page(content))
    if options.json:
        print(json.dumps(content.as_json(), indent=2, ensure_ascii=False))
        return DONE
    _print(content)
    if options.html:
        say(f"page: {options.html}")
    return DONE


def _print(content: "ComparedRuns") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    for heading, *rows in (content.models, content.gains):
        shown = Table()
        for at, cell in enumerate(heading):
            widest = max(len(row[0]) for row in rows) if at == 0 else len(cell)
            shown.add_column(Text(cell), min_width=min(widest, 24), overflow="fold")
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
    for pair in content.pairs:
        style = "" if pair.outcome in (None, "unclear") else "bold"
        console.print(pair.words, style=style, highlight=False, markup=False)
    for note in content.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
