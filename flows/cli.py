"""The `retort` command: its grammar, and the one place where an error becomes a message.

Exit codes: 0 done and gate passed, 1 failed, 2 bad spec or data, 3 gate refused, 130 and 143 ended
by Ctrl-C and SIGTERM, 141 nobody reads the output any more. Only the file of the command that was
given is imported, and heavy libraries only when that command needs them.
"""

import argparse
import contextlib
import gc
import importlib
import os
import select
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

from flows.commands.options import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    UNREAD,
    on_spec,
    say,
)
from retort import errors
from retort.jobs import login

# The commands of each file of flows/commands/, in the order in which help lists them.
COMMANDS = {
    "run": ("run",),
    "explain": ("validate", "why", "schema"),
    "rows": ("rows",),
    "plan": ("plan",),
    "sweep": ("sweep",),
    "jobs": ("submit", "status", "logs", "cancel", "list", "deploy"),
    "benchmark": ("benchmark",),
    "compare": ("compare",),
    "export": ("export",),
    "serve": ("serve",),
    "shadow": ("shadow",),
    "promote": ("promote", "rollback"),
    "up": ("up",),
    "doctor": ("doctor",),
    "gc": ("gc",),
    "verify": ("verify",),
}


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and leaves with its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    # What imports make stays; looking through it is a sixth of a command's start.
    gc.set_threshold(100_000, 50, 100)
    try:
        options = parser(words[0] if words else "").parse_args(words)
        code = _run(options)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # rich turns the one into the other, and puts nothing in place of the pipe.
        is_pipe = isinstance(error.__context__, BrokenPipeError)
        if not (is_pipe or _is_unread()):
            if isinstance(error, SystemExit):
                raise
            say(f"retort: {_message(error)}")
            sys.exit(FAILED)
        # Python itself would complain about what it cannot write at its end.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = UNREAD
    listeners = sys.modules.get("tasks.listeners")
    if listeners and listeners.is_stuck():
        # At its end Python would wait for what Prefect cannot send, which is minutes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def parser(command: str = "") -> argparse.ArgumentParser:
    """Returns the grammar of one command, or of all where that is none of them."""
    top = argparse.ArgumentParser(
        prog="retort",
        description="Distils a teacher model into a student, and reports what it gained and lost.",
        epilog="`retort COMMAND --help` explains a command. A first job: README.md.",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    flags = on_spec()
    chosen = [name for name, names in COMMANDS.items() if command in names] or COMMANDS
    for name in chosen:
        importlib.import_module(f"flows.commands.{name}").add(commands, flags)
    return top


def _run(options: argparse.Namespace) -> int:
    """Returns the exit code of a command, after telling a person what went wrong."""
    # A shell that starts a program in the background has it ignore SIGINT, and what that starts
    # would inherit this. A container's first process ignores SIGTERM unless it handles it.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)
    try:
        login.use(getattr(options, "store", None) or ".retort")
        return int(options.command(options))
    except KeyboardInterrupt as error:
        is_sigterm = isinstance(error, Terminated)
        cause = "ended by SIGTERM" if is_sigterm else "interrupted"
        say(f"retort: {cause}; finished work is kept, and the same command continues it")
        return TERMINATED if is_sigterm else INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # the last stop: a message for people, an exit code for scripts
        if options.debug:
            traceback.print_exc()
        say(f"retort: {_message(error)}")
        return BAD_INPUT if isinstance(error, errors.USER_ERRORS) else FAILED


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _is_unread() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _message(error: BaseException) -> str:
    """Returns what a person needs: the message of an error of ours, the kind and text of others."""
    ours = (*errors.USER_ERRORS, errors.StoreError, errors.StageError)
    text = str(error)
    return text if isinstance(error, ours) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
