"""`retort plan`: what more of the teacher's answers would cost and bring."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from flows.commands import choose
from flows.commands.options import DONE, load_spec, open_store, say
from retort.events import shown

if TYPE_CHECKING:
    from retort.jobs.plan import Plan


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    it = commands.add_parser(
        "plan", parents=[on_spec], help="say what more of the teacher's answers would be worth"
    )
    it.add_argument("--json", action="store_true", help="print all of it as JSON, and only that")
    choose.add_flags(it)
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort plan`: trains on subsets of what is stored, and prints what follows from them; with
    --choose, chooses rows of a pool instead."""
    if choose.is_wanted(options):
        return choose.run(options)
    from flows.commands.run import in_flow, prefect
    from retort.jobs.preflight import check

    spec, notes = load_spec(options)
    for note in notes:
        say(f"spec: {note}")
    store = open_store(options)
    with prefect(store) as wait:
        check(spec, store)
        from flows.plan import PAGE, finished, plan

        in_flow(spec, store, wait, lambda: plan(spec, store.uri), finished)
    found = finished.pop(spec.name)
    if options.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(found, f"{store.job(spec.name).uri}/{PAGE}")
    return DONE


def _print(found: "Plan", page: str) -> None:
    from flows.commands.tables import open_console, table_of
    from retort.jobs.plan import words

    console = open_console()
    for rows in (words.measured(found), words.forecasts(found)):
        console.print(table_of(rows))
    console.print(shown(words.headline(found)), style="bold")
    for line in words.lines(found):
        console.print(shown(line))
    for note in found.notes:
        console.print(shown(f"note: {note}"))
    console.print(f"page: {page}")
