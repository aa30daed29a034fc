"""What commands share: exit codes, the flags of a command on a job, and how its spec is read."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retort.spec import JobSpec
    from retort.store import Store

DONE, FAILED, BAD_INPUT, REFUSED = 0, 1, 2, 3
# As shells count a program that a signal ended: SIGINT, SIGPIPE, SIGTERM.
INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143


def on_spec() -> argparse.ArgumentParser:
    """Returns what all commands on a job share."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("spec", metavar="SPEC", help="the job file (YAML)")
    on_store(flags)
    flags.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one knob of the spec; may be given several times",
    )
    flags.add_argument(
        "--teacher", metavar="MODEL", help="a folder, hub id or endpoint's URL instead of the job's"
    )
    flags.add_argument("--student", metavar="MODEL", help="a folder or hub id instead of the job's")
    flags.add_argument(
        "--trust",
        action="store_true",
        help="let the job use code in files beside it, now and later; read it first",
    )
    return flags


def on_store(flags: argparse.ArgumentParser, default: str | None = ".retort") -> None:
    """Adds what all commands on a store share."""
    shown = f" (default: {default})" if default else ""
    flags.add_argument(
        "--store",
        default=default,
        metavar="STORE",
        help=f"where all work is kept: a folder or s3://bucket/prefix{shown}",
    )
    flags.add_argument("--debug", action="store_true", help="show the traceback of an error")


def several(
    command: argparse.ArgumentParser, flag: str, choices: tuple[str, ...], text: str
) -> None:
    """Adds a flag that may be given several times, each time with one of the choices."""
    kind = "STAGE" if "train" in choices else "STATE"
    allowed = f"{text}; may be given several times: {', '.join(choices)}"
    command.add_argument(
        flag, action="append", default=[], choices=choices, metavar=kind, help=allowed
    )


def load_spec(options: argparse.Namespace, *more: str) -> "tuple[JobSpec, list[str]]":
    """Returns the job of a command's flags, and a sentence for each value that became another, and
    for each plug-in whose code comes with the job."""
    from retort.jobs import trust
    from retort.spec import load

    models = Path(options.store) / "models"
    if models.is_dir():
        os.environ.setdefault("RETORT_MODELS_FOLDER", str(models.resolve()))
    overrides, teacher, student = options.overrides, options.teacher, options.student
    spec, notes = load(options.spec, [*overrides, *more], teacher, student)
    return spec, [*notes, *trust.check(spec, Path(options.spec).resolve().parent, options.trust)]


def open_store(options: argparse.Namespace) -> "Store":
    """Returns the store of a command's flags."""
    from retort.store import open_store as opened

    return opened(options.store)


def say(text: str) -> None:
    """Tells a person something, on stderr."""
    print(text, file=sys.stderr)
