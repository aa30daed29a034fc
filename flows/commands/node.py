"""`retort node`: lends this machine to students that train on several, until SIGTERM.

The job itself runs elsewhere, and reports there what happens here.
"""

import argparse
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from flows.commands.options import DONE, say
from retort.processes.nodes import VARIABLE

# What a process that was ended by SIGTERM is known by: to Kubernetes, it has not done its work.
ENDED = 128 + signal.SIGTERM


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    node = commands.add_parser(
        "node", help="train students together with a job on another machine, until SIGTERM"
    )
    node.add_argument(
        "--rendezvous", metavar="HOST:PORT", help=f"where the job's machine listens ({VARIABLE})"
    )
    node.add_argument(
        "--idle-seconds",
        type=float,
        default=float("inf"),
        help="end after so long without being called; never if not given",
    )
    node.add_argument("--debug", action="store_true", help="show the traceback of an error")
    node.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort node`: takes part in each training that calls; ends when idle, or at SIGTERM."""
    from retort.processes.node_follower import follow

    signal.signal(signal.SIGTERM, _leave)
    follow(options.rendezvous, options.idle_seconds, lambda text: say(f"retort node: {text}"))
    say("retort node: no job called for so long; ending")
    return DONE


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(ENDED)
