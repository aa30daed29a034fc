"""`retort verify`: compares the files of a store with what was written; --repair keeps what it can.

Exit codes: 0 all is as written, or was repaired; 1 something is damaged, or the store failed.
"""

import argparse
import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from flows.commands.options import DONE, FAILED
from retort.jobs import verify
from retort.store import open_store


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command. It works on a store and takes no SPEC."""
    it = commands.add_parser("verify", help="find files of a store that are damaged or missing")
    it.add_argument("job", nargs="?", metavar="JOB", help="a job's name; without, the whole store")
    it.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    it.add_argument(
        "--repair",
        action="store_true",
        help="first keep the readable answers of damaged ledgers, so that the next run asks the "
        "teacher only for the others again",
    )
    it.add_argument("--json", action="store_true", help="print JSON only")
    it.add_argument("--debug", action="store_true", help="show tracebacks")
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort verify`: reads all files, and prints which of them are not as written."""
    store = open_store(options.store)
    repaired = list(verify.repair(store)) if options.repair else []
    checked = list(verify.verify(store, options.job))
    damaged = [folder for folder in checked if folder.damages]
    if options.json:
        content = {
            "store": store.uri,
            "repaired": [
                {"segment": path, "num_kept": kept, "num_lost": lost}
                for path, kept, lost in repaired
            ],
            "checked": [dataclasses.asdict(folder) for folder in checked],
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return FAILED if damaged else DONE
    console = Console(soft_wrap=True, highlight=False)
    for path, kept, lost in repaired:
        console.print(
            f"[bold]repaired[/] {escape(path)}: {kept:,} answers kept, {lost:,} lost; the next run "
            "asks for these again"
        )
    for folder in damaged:
        for message in folder.damages:
            console.print(f"[bold red]damaged[/] {folder.kind} {escape(folder.name)}: ", end="")
            console.print(escape(message))
    num_files = sum(folder.num_files for folder in checked)
    num_bytes = sum(folder.num_bytes for folder in checked)
    if not checked:
        console.print(f"there is nothing in {escape(store.uri)}; see --store")
        return DONE
    verdict = f"{len(damaged):,} of them damaged" if damaged else "all as written"
    console.print(
        f"{num_files:,} files in {len(checked):,} folders ({decimal(num_bytes)}): {verdict}"
    )
    return FAILED if damaged else DONE
