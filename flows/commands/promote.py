"""`retort promote NAME`, `retort rollback NAME`: which version of a registered model is champion.

Exit codes: 0 the champion is the one asked for, also if it was before; 2 there is no such model, or
no champion to go back to; 3 refused: the gate did, or the comparison was with another champion.
"""

import argparse
from collections.abc import Callable
from typing import Any

from flows.commands.options import DONE, REFUSED
from retort.store import open_store
from retort.tracking import Outcome, open_registry, promote, rollback

Move = Callable[[Any, str], Outcome]


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds both commands. They are about a registered model, and take no SPEC."""
    texts: dict[str, tuple[Move, str]] = {
        "promote": (promote, "make a registered model's challenger its champion"),
        "rollback": (rollback, "make the champion before this one the champion again"),
    }
    for name, (move, text) in texts.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("name", metavar="NAME", help="the registered model's name")
        command.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(command=_command(move))


def _command(move: Move) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        found = move(open_registry(open_store(options.store)), options.name)
        print(found.text if found.done else f"refused: {found.text}")
        return DONE if found.done else REFUSED

    return run
