"""`retort submit, status, logs, cancel, list`: jobs on a Prefect server, or here without one."""

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.commands.options import DONE, FAILED, load_spec, say
from retort.client import JobState, RetortClient
from retort.errors import USER_ERRORS, StoreError
from retort.jobs.preflight import check
from retort.store import open_store


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the commands."""
    start = commands.add_parser(
        "submit", parents=[on_spec], help="start a job on the server, or in the background here"
    )
    start.add_argument("--deployment", default="process", help="which of the flow's deployments")
    start.set_defaults(command=submit)
    for name, text, command in (
        ("status", "say how a job stands", status),
        ("logs", "show what a job says until it is over", logs),
        ("cancel", "end a job; finished work is kept", cancel),
    ):
        asked = commands.add_parser(name, help=text)
        asked.add_argument("name", metavar="NAME", help="the job's name")
        _place(asked, command)
    _place(commands.add_parser("list", help="list the jobs, the newest first"), show)


def _place(asked: argparse.ArgumentParser, command: Any) -> None:
    asked.add_argument("--store", help="a folder or s3://bucket/prefix")
    asked.add_argument("--json", action="store_true", help="as JSON")
    asked.add_argument("--debug", action="store_true", help="show tracebacks")
    asked.set_defaults(command=command)


def submit(options: argparse.Namespace) -> int:
    """`retort submit`: checks a job, starts it and says how to follow it."""
    spec, notes = load_spec(options)
    for note in notes:
        say(f"spec: {note}")
    store = open_store(options.store).uri
    try:
        check(spec, open_store(store))
    except (*USER_ERRORS, StoreError) as error:
        if "PREFECT_API_URL" not in os.environ:
            raise
        # What a worker has, another machine may lack: its GPUs, models, keys.
        say(f"not found well on this machine: {error}")
        say("the worker that runs the job checks it again before anything is paid for")
    client = RetortClient(store=store, deployment=options.deployment)
    state = client.jobs.create_or_update(spec)
    print(f"{state.name} {state.status}", state.url or f"process {state.run_id}")
    say(f"follow it: retort logs {state.name}; how it stands: retort status {state.name}")
    return DONE


def status(options: argparse.Namespace) -> int:
    """`retort status`: how a job stands; fails where it failed."""
    state = _jobs(options).get(options.name)
    if options.json:
        print(json.dumps(asdict(state)))
    else:
        print(_line(state))
        if state.error:
            print(state.error)
    return FAILED if state.status in ("failed", "crashed") else DONE


def logs(options: argparse.Namespace) -> int:
    """`retort logs`: a job's lines as they come, until it is over."""
    for line in _jobs(options).stream(options.name):
        print(line, flush=True)
    return DONE


def cancel(options: argparse.Namespace) -> int:
    """`retort cancel`: ends a job's run."""
    print(_line(_jobs(options).cancel(options.name)))
    return DONE


def show(options: argparse.Namespace) -> int:
    """`retort list`: a line for each job."""
    states = _jobs(options).list()
    if options.json:
        print(json.dumps([asdict(state) for state in states]))
        return DONE
    table = Table("job", "status", "stage", "run")
    for state in states:
        table.add_row(state.name, state.status, state.stage or "", state.url or state.run_id)
    Console(soft_wrap=True).print(table)
    return DONE


def _jobs(options: argparse.Namespace) -> Any:
    return RetortClient(store=options.store).jobs


def _line(state: JobState) -> str:
    stage = f" {state.stage}" if state.stage else ""
    share = f" {state.progress:.0%}" if state.progress is not None else ""
    return f"{state.name} {state.status}{stage}{share} {state.url or ''}".rstrip()
