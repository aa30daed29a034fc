"""`retort gc`: shows what no job and no registered model of a store uses; --delete removes it.

Exit codes: 0 shown or removed; 1 the store or MLflow failed, and what is not removed is kept.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from flows.commands.options import DONE
from retort.errors import StoreError
from retort.jobs import cleanup
from retort.records import JsonObject
from retort.store import open_store


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command. It works on a store and takes no SPEC."""
    it = commands.add_parser("gc", help="show what of a store nothing uses, or remove it")
    it.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    it.add_argument("--delete", action="store_true", help="remove it; without, it is only shown")
    it.add_argument(
        "--keep-days",
        type=float,
        default=cleanup.KEEP_DAYS,
        metavar="N",
        help="keep what changed in the last N days (default: %(default)g)",
    )
    it.add_argument(
        "--ledger",
        action="store_true",
        help="also remove paid answers that are in no artifact that is kept",
    )
    it.add_argument(
        "--no-registry",
        action="store_true",
        help="do not ask MLflow: also remove registered models that no job uses",
    )
    it.add_argument("--json", action="store_true", help="print JSON only")
    it.add_argument("--debug", action="store_true", help="show tracebacks")
    it.set_defaults(command=collect)


def collect(options: argparse.Namespace) -> int:
    """`retort gc`: prints what it would remove and what it keeps, or what it has removed."""
    plan = cleanup.plan(
        open_store(options.store),
        options.keep_days,
        registry=not options.no_registry,
        ledgers=options.ledger,
    )
    gone = _removed(plan) if options.delete else None
    num_left = cleanup.leftovers(plan.store, delete=options.delete)
    if options.json:
        content = {**_content(plan, gone), "leftovers": num_left}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print(plan, gone)
        if num_left:
            verb = "would also remove" if gone is None else "also removed"
            print(f"{verb}: {num_left:,} leases and unfinished uploads of processes long gone")
    return DONE


def _removed(plan: cleanup.CleanupPlan) -> list[cleanup.StoredFolder]:
    """Removes the folders of a plan; returns those that are gone. The error of a store that fails
    says what was removed before."""
    gone: list[cleanup.StoredFolder] = []
    try:
        for folder, is_gone in cleanup.remove(plan):
            gone += [folder] if is_gone else []
    except StoreError as error:
        if gone:
            raise StoreError(f"{error}; removed before that: {_sum(gone)}") from error
        raise
    return gone


def _content(plan: cleanup.CleanupPlan, gone: list[cleanup.StoredFolder] | None) -> JsonObject:
    """Returns the command's JSON: sizes in bytes, ages in days. `goes` is what would be removed and
    `stays` what is kept; `removed` is null without --delete."""
    shown = plan.to_remove if gone is None else gone
    return {
        "store": plan.store.uri,
        "goes": [
            {
                "stage": folder.stage,
                "name": folder.name,
                "age_days": _days(plan, folder),
                "bytes": folder.num_bytes,
                "is_finished": folder.is_finished,
            }
            for folder in plan.to_remove
        ],
        "stays": {
            reason: {"count": count, "bytes": num_bytes}
            for reason, (count, num_bytes) in plan.to_keep.items()
        },
        "bytes": sum(folder.num_bytes for folder in shown),
        "removed": None if gone is None else [folder.name for folder in gone],
        "registry_unknown": plan.unknown,
    }


def _print(plan: cleanup.CleanupPlan, gone: list[cleanup.StoredFolder] | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if plan.to_remove:
        console.print(_table(plan, gone))
    if gone is None:
        hint = "; `retort gc --delete` with the same flags removes it" if plan.to_remove else ""
        console.print(f"[bold]would remove[/]: {_sum(plan.to_remove)}{hint}")
    else:
        console.print(f"[bold]removed[/]: {_sum(gone)}")
        if num_used := len(plan.to_remove) - len(gone):
            console.print(f"kept: {num_used:,} that were used or changed meanwhile")
    for reason, (count, num_bytes) in plan.to_keep.items():
        console.print(f"kept: {count:,} {reason}, {decimal(num_bytes)}")
    if not plan.to_remove and not plan.to_keep:
        console.print(f"there is no artifact in {escape(plan.store.uri)}; see --store")
    if plan.unknown:
        console.print(f"[yellow]note[/]: {escape(plan.unknown)}: all releases are shown as kept")


def _table(plan: cleanup.CleanupPlan, gone: list[cleanup.StoredFolder] | None) -> Table:
    shown = Table()
    for heading in ("stage", "name", "age", "size", ""):
        is_number = heading in ("age", "size")
        shown.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    removed = {folder.key for folder in (plan.to_remove if gone is None else gone)}
    for folder in plan.to_remove:
        is_part = not folder.is_finished and folder.stage != "ledger"
        state = "not finished" if is_part else ""
        state = state if folder.key in removed else "kept"
        age = f"{_days(plan, folder):.0f} days"
        shown.add_row(folder.stage, folder.name, age, decimal(folder.num_bytes), state)
    return shown


def _days(plan: cleanup.CleanupPlan, folder: cleanup.StoredFolder) -> float:
    return round((plan.at - folder.changed_at) / 86_400, 2)


def _sum(folders: Sequence[cleanup.StoredFolder]) -> str:
    """Returns the number of folders and their size together."""
    noun = "folder" if len(folders) == 1 else "folders"
    return f"{len(folders):,} {noun}, {decimal(sum(folder.num_bytes for folder in folders))}"
