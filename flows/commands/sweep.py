"""`retort sweep`: the knobs of a job's training that make the best student of what is stored."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.options import DONE, load_spec, open_store, say
from retort.events import shown

if TYPE_CHECKING:
    from retort.jobs.sweep import Found


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    it = commands.add_parser(
        "sweep", parents=[on_spec], help="search the training's knobs on stored answers"
    )
    it.add_argument("--out", metavar="FILE", help="write the winner's job file here, too")
    it.add_argument("--json", action="store_true", help="print all of it as JSON, and only that")
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort sweep`: tries what the job's section `sweep` names, and prints what is best."""
    from flows.commands.run import in_flow, prefect
    from retort.jobs.preflight import check
    from retort.spec.variants import sweep_of

    spec, notes = load_spec(options)
    for note in notes:
        say(f"spec: {note}")
    sweep_of(spec)
    store = open_store(options)
    with prefect(store) as wait:
        check(spec, store)
        from flows.sweep import finished, sweep
        from retort.jobs.sweep import WINNER

        in_flow(spec, store, wait, lambda: sweep(spec, store.uri), finished)
    found, latest = finished.pop(spec.name), store.job(spec.name)
    if options.out:
        Path(options.out).write_bytes(latest.read(WINNER))
    if options.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        store_flag = "" if options.store == ".retort" else f" --store {options.store}"
        _print(found, f"{options.out or f'{latest.uri}/{WINNER}'}{store_flag}")
    return DONE


def _print(found: "Found", winner: str) -> None:
    from flows.commands.tables import open_console, table_of
    from retort.jobs.sweep import words

    console = open_console()
    console.print(table_of(words.table(found)))
    console.print(shown(words.headline(found)), style="bold")
    for line in words.lines(found):
        console.print(shown(line))
    console.print(f"its student is cached: retort run {winner}")
