"""`retort promote NAME`, `retort rollback NAME`: which version of a registered model is champion.

Exit codes: 0 the wanted version is champion, also if it was before; 2 there is no such model, or no
champion to go back to; 3 refused: by the gate, or because the comparison was with another champion.
"""

import argparse
from collections.abc import Callable
from typing import Any

from flows.commands.options import DONE, REFUSED, on_store, open_store

TEXTS = {
    "promote": "make a registered model's challenger its champion",
    "rollback": "make the champion before this one the champion again",
}


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds both commands. They are about a registered model, and take no SPEC."""
    for name, text in TEXTS.items():
        it = commands.add_parser(name, help=text)
        it.add_argument("name", metavar="NAME", help="the registered model's name")
        on_store(it)
        it.set_defaults(command=_command(name))


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        from retort import tracking

        move = {"promote": tracking.promote, "rollback": tracking.rollback}[name]
        outcome = move(tracking.open_registry(open_store(options)), options.name)
        print(outcome.text if outcome.done else f"refused: {outcome.text}")
        return DONE if outcome.done else REFUSED

    return run
