"""`retort doctor`: what is missing or misconfigured here, each with its remedy."""

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.commands.options import DONE, FAILED, look_beside
from retort.spec import load
from retort.store import open_store

MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


def add(commands: Any) -> None:
    """Adds the command."""
    ask = commands.add_parser("doctor", help="say what is missing or misconfigured here")
    ask.add_argument("spec", metavar="SPEC", nargs="?", help="a job file, to look at its keys too")
    ask.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    ask.add_argument("--debug", action="store_true", help="show tracebacks")
    ask.set_defaults(command=examine)


def examine(options: argparse.Namespace) -> int:
    """`retort doctor`: a line for each finding; fails where something is bad."""
    from retort.jobs import doctor

    spec = None
    if options.spec:
        look_beside(options.spec)
        spec, _ = load(options.spec, [])
    console, bad = Console(soft_wrap=True), 0
    for finding in doctor.examine(open_store(options.store), spec):
        console.print(MARKS[finding.state], escape(finding.text), highlight=False)
        if finding.remedy:
            console.print(f"     [dim]{escape(finding.remedy)}[/]", highlight=False)
        bad += finding.state == "bad"
    return FAILED if bad else DONE
