"""`retort doctor`: what is missing or misconfigured here, each finding with its remedy."""

import argparse
from typing import Any

from flows.commands.options import DONE, FAILED, on_store, open_store
from retort.events import shown

STYLES = {"ok": "green", "note": "yellow", "bad": "red"}


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    it = commands.add_parser("doctor", help="show what is missing or misconfigured on this machine")
    it.add_argument(
        "spec", metavar="SPEC", nargs="?", help="a job file, whose keys are checked too"
    )
    on_store(it)
    it.set_defaults(command=examine)


def examine(options: argparse.Namespace) -> int:
    """`retort doctor`: a line for each finding; fails where something is bad."""
    from rich.console import Console
    from rich.text import Text

    from retort.jobs import doctor
    from retort.spec import load

    spec = None
    if options.spec:
        spec, _ = load(options.spec, [])
    console, num_bad = Console(soft_wrap=True), 0
    for finding in doctor.examine(open_store(options), spec):
        mark = Text(f"{finding.state:4} ", style=STYLES[finding.state])
        console.print(mark + Text(shown(finding.text), style=""))
        if finding.remedy:
            console.print(Text(f"     {shown(finding.remedy)}", style="dim"))
        num_bad += finding.state == "bad"
    return FAILED if num_bad else DONE
