"""`retort validate, why, schema`: what a job is, what is wrong with it, and what a run would do."""

import argparse
import json
from typing import Any

from flows.commands.options import DONE, load_spec, open_store


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the commands."""
    for name, text, command in (
        ("validate", "check everything that could fail later, without loading a model", validate),
        ("why", "say which stages would run again, and why", why),
    ):
        commands.add_parser(name, parents=[on_spec], help=text).set_defaults(command=command)
    print_schema = commands.add_parser("schema", help="print the JSON schema of a job: every knob")
    print_schema.set_defaults(command=schema, debug=False)


def validate(options: argparse.Namespace) -> int:
    """`retort validate`: a line for each check: spec, data, models, store, disk."""
    from retort.jobs.preflight import check

    spec, notes = load_spec(options)
    for line in [*notes, *check(spec, open_store(options))]:
        print(line)
    print(f"{spec.name} can run")
    return DONE


def why(options: argparse.Namespace) -> int:
    """`retort why`: one line per stage, cached or not, and which ingredient changed."""
    from retort.jobs import inspection

    spec, _ = load_spec(options)
    store = open_store(options)
    reasons, asking = inspection.why(spec, store), inspection.asking(spec)
    width = max(map(len, reasons))
    for name, lines in reasons.items():
        print(f"{name:{width}}", "cached" if not lines else f"runs: {'; '.join(lines)}")
        if name in asking and lines:
            print(f"{'':{width}} {inspection.what_is_asked(asking[name], store)}")
    return DONE


def schema(options: argparse.Namespace) -> int:
    """`retort schema`: prints the JSON schema of a job spec."""
    from retort.spec import JobSpec

    print(json.dumps(JobSpec.model_json_schema(), indent=2))
    return DONE
