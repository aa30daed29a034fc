"""`retort export SPEC --format FORMAT`: the student of a job in further formats, each measured."""

import argparse
import json
from typing import Any

from flows.commands.options import load_spec
from flows.commands.run import run_job


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    it = commands.add_parser(
        "export",
        parents=[on_spec],
        help="write a job's student in further formats, and measure each",
    )
    it.add_argument(
        "--format",
        action="append",
        required=True,
        metavar="FORMAT",
        help="FORMAT:QUANTIZATION, such as gguf:q4_0; may be given several times",
    )
    it.add_argument("--json", action="store_true", help="print report.json, and nothing else")
    it.set_defaults(command=run, force=())


def run(options: argparse.Namespace) -> int:
    """`retort export`: runs the job with these formats beside its own; what is done is cached."""
    spec, _ = load_spec(options)
    formats = list(dict.fromkeys([*spec.export.formats, *options.format]))
    return run_job(options, f"export.formats={json.dumps(formats)}")
