"""`retort up`: a Prefect server, an MLflow server and a worker on this machine, until Ctrl-C."""

import argparse
import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from flows.commands.options import DONE, FAILED, on_store, open_store, say
from retort.errors import SpecError
from retort.events import shown
from retort.processes.disk import make_folder

DATABASE = (
    "postgresql://USER@HOST:PORT/NAME: keep the servers' state in Postgres, not in files of the "
    "store. Give the password by PGPASSWORD or ~/.pgpass: lists of processes show addresses. The "
    "database is made if USER may do that; otherwise USER has to own it. MLflow uses the schema "
    "`mlflow` in it, Prefect the default schema and the extension pg_trgm"
)


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    up = commands.add_parser(
        "up", help="start Prefect, MLflow and a worker on this machine; Ctrl-C ends them"
    )
    on_store(up)
    up.add_argument("--database", metavar="URL", help=DATABASE)
    for name, port in (("Prefect", 4200), ("MLflow", 5000)):
        text = f"port of the {name} server (default: {port})"
        flag = f"--{name.lower()}-port"
        up.add_argument(flag, type=int, default=port, metavar="PORT", help=text)
    up.add_argument(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="stages with a model that may run at a time, on GPUs or not (default: %(default)s)",
    )
    up.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort up`: starts all, says where it is, and ends all when asked to."""
    from flows import local_servers
    from retort.jobs import login, trust

    if trust.is_trusted(Path.cwd()):
        trust.look_in_own(Path.cwd())
    os.umask(0o077)  # logs, databases and what jobs make are the user's alone
    store, ports = (
        open_store(options),
        local_servers.Ports(options.prefect_port, options.mlflow_port),
    )
    state = store.local_state()
    make_folder(state)
    for name, port in vars(ports).items():
        _check_port(local_servers.HOST, name, port)
    servers, worker = local_servers.services(store, ports, options.database)
    try:
        with contextlib.ExitStack() as stack:
            started = [(each, stack.enter_context(local_servers.running(each))) for each in servers]
            for server, process in started:
                local_servers.wait(server, process)
            local_servers.prepare_server(worker.environment, store, options.gpus, Path.cwd())
            shows = local_servers.running(worker, lambda line: say(shown(line)))
            started.append((worker, stack.enter_context(shows)))
            for name, page in ports.pages.items():
                say(f"{name:9}{page}")
            say(f"store    {store.uri}; logs in {state}/logs")
            say(f"login    Prefect's page: {login.USER}:PASSWORD; MLflow's: {login.USER}, PASSWORD")
            say(f"         PASSWORD is in {state / login.FILE}; for a shell of yours:")
            say(f"         source {state / login.FILE}")
            say("ready: click Run on the deployment distill/process, or type `retort submit SPEC`;")
            say("Ctrl-C ends all of it")
            while all(process.poll() is None for _, process in started):
                time.sleep(0.5)
    except KeyboardInterrupt:
        say("retort up: ended; finished work is kept")
        return DONE
    dead = next(service for service, process in started if process.poll() is not None)
    say(f"retort up: {dead.name} ended by itself; its log is {dead.log}")
    return FAILED


def _check_port(host: str, name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SpecError(
                f"port {port} of {host} is taken ({error.strerror}); choose another by "
                f"--{name}-port, or end the program that listens there"
            ) from None
