"""What commands share: exit codes, the flags of a command on a job, and how its spec is read."""

import argparse
import os
import sys
from pathlib import Path

from retort.spec import STAGES, JobSpec, load

DONE, FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def on_spec() -> argparse.ArgumentParser:
    """Returns what all commands on a job share."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("spec", metavar="SPEC", help="the job file (YAML)")
    flags.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    flags.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one knob of the spec",
    )
    flags.add_argument(
        "--teacher", metavar="MODEL", help="a folder, hub id or endpoint's URL instead of the job's"
    )
    flags.add_argument("--student", metavar="MODEL", help="a folder or hub id instead of the job's")
    flags.add_argument("--debug", action="store_true", help="show tracebacks")
    return flags


def several(
    command: argparse.ArgumentParser, flag: str, choices: tuple[str, ...], text: str
) -> None:
    """Adds a flag that may be given several times, each time with one of the choices."""
    kind = "STAGE" if choices == STAGES else "STATE"
    allowed = f"{text}: {', '.join(choices)}"
    command.add_argument(
        flag, action="append", default=[], choices=choices, metavar=kind, help=allowed
    )


def look_beside(spec: str) -> None:
    """Lets plug-ins be found beside the job file, by this process and by the stages' own."""
    folder = str(Path(spec).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{known}{os.pathsep}{folder}" if known else folder


def load_spec(options: argparse.Namespace, *more: str) -> tuple[JobSpec, list[str]]:
    """Returns the job of a command's flags, and a sentence for each value that became another."""
    overrides = [*options.overrides, *more]
    look_beside(options.spec)
    return load(options.spec, overrides, options.teacher, options.student)


def say(text: str) -> None:
    """Tells a person something, on stderr."""
    print(text, file=sys.stderr)
