"""`retort gc`: what of a store nothing refers to any more; removed only with --delete.

Exit codes: 0 it was shown or removed; 1 the store or MLflow refuses, and what is still there stays.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.options import DONE
from retort.errors import StoreError
from retort.jobs import cleanup
from retort.store import open_store

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command. It is about a store, and takes no SPEC."""
    it = commands.add_parser("gc", help="show what of a store nothing refers to, or remove it")
    it.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    it.add_argument("--delete", action="store_true", help="remove it; otherwise it is only shown")
    it.add_argument(
        "--keep-days",
        type=float,
        default=cleanup.KEEP_DAYS,
        metavar="N",
        help="what changed in so many days stays (default: %(default)g)",
    )
    it.add_argument(
        "--ledger",
        action="store_true",
        help="also answers that were paid for, where no artifact that stays has them",
    )
    it.add_argument(
        "--no-registry",
        action="store_true",
        help="do not ask MLflow: registered models go, too, where no job refers to them",
    )
    it.add_argument("--json", action="store_true", help="print all of it as JSON, and only that")
    it.add_argument("--debug", action="store_true", help="show tracebacks")
    it.set_defaults(command=collect)


def collect(options: argparse.Namespace) -> int:
    """`retort gc`: prints what would go and what stays, or removes it and says what is gone."""
    made = cleanup.plan(
        open_store(options.store),
        options.keep_days,
        registry=not options.no_registry,
        ledgers=options.ledger,
    )
    gone = _removed(made) if options.delete else None
    left = cleanup.leftovers(made.store, delete=options.delete)
    if options.json:
        content = {**_content(made, gone), "leftovers": left}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print(made, gone)
        if left:
            verb = "goes too" if gone is None else "removed too"
            print(f"{verb}: {left:,} leases and unfinished uploads of processes long gone")
    return DONE


def _removed(made: cleanup.CleanupPlan) -> list[cleanup.StoredFolder]:
    """Removes what a plan says; returns what is gone. A store that fails says how far it came."""
    gone: list[cleanup.StoredFolder] = []
    try:
        for item, is_gone in cleanup.remove(made):
            gone += [item] if is_gone else []
    except StoreError as error:
        if gone:
            raise StoreError(f"{error}; removed before that: {_sum(gone)}") from error
        raise
    return gone


def _content(made: cleanup.CleanupPlan, gone: list[cleanup.StoredFolder] | None) -> dict[str, Any]:
    """Returns the command's JSON: sizes in bytes, ages in days; `removed` without --delete is
    null."""
    shown = made.goes if gone is None else gone
    return {
        "store": made.store.uri,
        "goes": [
            {
                "stage": item.stage,
                "name": item.name,
                "age_days": _days(made, item),
                "bytes": item.num_bytes,
                "is_finished": item.is_finished,
            }
            for item in made.goes
        ],
        "stays": {
            why: {"count": count, "bytes": num_bytes}
            for why, (count, num_bytes) in made.stays.items()
        },
        "bytes": sum(item.num_bytes for item in shown),
        "removed": None if gone is None else [item.name for item in gone],
        "registry_unknown": made.unknown,
    }


def _print(made: cleanup.CleanupPlan, gone: list[cleanup.StoredFolder] | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if made.goes:
        console.print(_table(made, gone))
    if gone is None:
        hint = "; `retort gc --delete` with the same flags removes it" if made.goes else ""
        console.print(f"[bold]would go[/]: {_sum(made.goes)}{hint}")
    else:
        console.print(f"[bold]removed[/]: {_sum(gone)}")
        if late := len(made.goes) - len(gone):
            console.print(f"stays after all: {late:,}, taken up or changed meanwhile")
    for why, (count, num_bytes) in made.stays.items():
        console.print(f"stays: {count:,} {why}, {_size(num_bytes)}")
    if not made.goes and not made.stays:
        console.print(f"there is no artifact in {escape(made.store.uri)}; see --store")
    if made.unknown:
        console.print(f"[yellow]note[/]: {escape(made.unknown)}: all releases are shown as kept")


def _table(made: cleanup.CleanupPlan, gone: list[cleanup.StoredFolder] | None) -> Table:
    shown = Table()
    for heading in ("stage", "name", "age", "size", ""):
        is_number = heading in ("age", "size")
        shown.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    left = {item.key for item in made.goes} if gone is None else {item.key for item in gone}
    for item in made.goes:
        is_part = not item.is_finished and item.stage != "ledger"
        state = "not finished" if is_part else ""
        state = state if item.key in left else "stays after all"
        age = f"{_days(made, item):.0f} days"
        shown.add_row(item.stage, item.name, age, _size(item.num_bytes), state)
    return shown


def _days(made: cleanup.CleanupPlan, item: cleanup.StoredFolder) -> float:
    return round((made.at - item.changed_at) / 86_400, 2)


def _sum(items: Sequence[cleanup.StoredFolder]) -> str:
    """Returns how many folders there are, and how large they are together."""
    folders = "folder" if len(items) == 1 else "folders"
    return f"{len(items):,} {folders}, {_size(sum(item.num_bytes for item in items))}"


def _size(num_bytes: int) -> str:
    for unit, name in UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} bytes"
