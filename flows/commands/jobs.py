"""`retort submit, status, logs, cancel, list`: jobs on a Prefect server, or here without one.

`retort deploy` makes a job a deployment of its own on the server.
"""

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.commands.options import DONE, FAILED, load_spec, on_store, open_store, say
from retort.errors import USER_ERRORS, StoreError
from retort.events import shown

if TYPE_CHECKING:
    from retort.client import Jobs, JobState
    from retort.spec import JobSpec


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the commands."""
    start = commands.add_parser(
        "submit", parents=[on_spec], help="start a job on the server, or in the background here"
    )
    start.add_argument(
        "--deployment",
        default="process",
        metavar="NAME",
        help="the deployment of the flow `distill` that runs it (default: %(default)s)",
    )
    start.set_defaults(command=submit)
    own = commands.add_parser(
        "deploy",
        parents=[on_spec],
        help="make a job a deployment of its own on the Prefect server, or update it",
    )
    own.add_argument(
        "--schedule", metavar="CRON", help='when it runs, in UTC: "0 2 * * *" is every night at 2'
    )
    own.add_argument(
        "--pool", metavar="NAME", help="the work pool it runs in (default: of `retort submit`)"
    )
    own.add_argument("--remove", action="store_true", help="remove the deployment; runs are kept")
    own.set_defaults(command=deploy)
    for name, text, command in (
        ("status", "show the state of a job: its stage, its progress, its error", status),
        ("logs", "print the lines of a job as they come, until it ends", logs),
        ("cancel", "end a job; finished work is kept", cancel),
        ("list", "list the jobs, the newest first", show),
    ):
        it = commands.add_parser(name, help=text)
        if command is not show:
            it.add_argument("name", metavar="NAME", help="the job's name")
        on_store(it, default=None)
        if command in (status, show):
            it.add_argument("--json", action="store_true", help="print JSON")
        it.set_defaults(command=command)


def submit(options: argparse.Namespace) -> int:
    """`retort submit`: checks a job, starts it and says how to follow it."""
    from retort.client import RetortClient

    spec = _checked(options)
    client = RetortClient(store=open_store(options).uri, deployment=options.deployment)
    state = client.jobs.create_or_update(spec)
    print(f"{state.name} {state.status}", state.url or f"process {state.run_id}")
    say(f"its lines: retort logs {state.name}; its state: retort status {state.name}")
    return DONE


def deploy(options: argparse.Namespace) -> int:
    """`retort deploy`: makes or updates the job's deployment, and says where it is triggered."""
    from retort.client import RetortClient

    if options.remove:
        spec, _ = load_spec(options)
        RetortClient(store=options.store).jobs.undeploy(spec.name)
        print(f"removed: the deployment distill/{spec.name}")
        return DONE
    spec = _checked(options)
    jobs = RetortClient(store=open_store(options).uri).jobs
    page = jobs.deploy(spec, options.schedule, options.pool)
    print(f"distill/{spec.name} {page}")
    when = f"at {options.schedule} (UTC), and " if options.schedule else ""
    say(f"it runs {when}whenever someone clicks Run, Quick run on that page")
    return DONE


def _checked(options: argparse.Namespace) -> "JobSpec":
    """Returns the job, checked as far as this machine can."""
    from retort.jobs.preflight import check

    spec, notes = load_spec(options)
    for note in notes:
        say(f"spec: {note}")
    try:
        check(spec, open_store(options))
    except (*USER_ERRORS, StoreError) as error:
        if not os.environ.get("PREFECT_API_URL"):
            raise
        # What a worker has, another machine may lack: its GPUs, models, keys.
        say(f"warning: the job could not run on this machine: {error}")
        say("the worker that runs the job checks it again before anything is paid for")
    return spec


def status(options: argparse.Namespace) -> int:
    """`retort status`: the state of a job's latest run; fails where that failed."""
    state = _jobs(options).get(options.name)
    if options.json:
        print(json.dumps(asdict(state)))
    else:
        print(_line(state))
        if state.error:
            print(shown(state.error))
    return FAILED if state.status in ("failed", "crashed") else DONE


def logs(options: argparse.Namespace) -> int:
    """`retort logs`: a job's lines as they come, until it is over."""
    for line in _jobs(options).stream(options.name):
        print(shown(line), flush=True)
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
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "status", "stage", "run")
    for state in states:
        table.add_row(state.name, state.status, state.stage or "", state.url or state.run_id)
    Console(soft_wrap=True).print(table)
    return DONE


def _jobs(options: argparse.Namespace) -> "Jobs":
    from retort.client import RetortClient

    return RetortClient(store=options.store).jobs


def _line(state: "JobState") -> str:
    stage = f" {state.stage}" if state.stage else ""
    share = f" {state.progress:.0%}" if state.progress is not None else ""
    return f"{state.name} {state.status}{stage}{share} {state.url or ''}".rstrip()
