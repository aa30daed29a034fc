"""`retort up`: a Prefect server, an MLflow server and a worker on this machine, until Ctrl-C.

All of their state lies in the store's local folder, or in a database of Postgres, so that the next
`retort up` goes on with it.
Each server is a process group of its own and is ended by its id, the worker first: a run that is
under way gets the time to keep what it has finished.
"""

import argparse
import contextlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import databases
from flows.commands.options import DONE, FAILED, say
from retort import processes
from retort.errors import SpecError, StageError
from retort.processes.disk import make_folder, open_log
from retort.store import Store, open_store

HOST = "127.0.0.1"
POOL = "retort-process"
# By the names of their deployments.
FLOWS = {"process": "flows.distill:distill", "process-replica": "flows.replica:replica"}
START_SECONDS = 240.0
GRACE_SECONDS = 30.0
# How often the worker asks for runs; Prefect's own 10 would be most of a wait after a click.
LOOK_SECONDS = "2"
# In files: a slot whose lease a restart forgets would never be free again.
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "1",
}
# No line of these is of use to someone who waits for a job.
NOISE = ("Uvicorn", "INFO:     ", "uvicorn", "alembic", "mlflow.store")


@dataclass(frozen=True)
class Service:
    """A server of ours: what starts it, how it is seen to answer, where its lines go."""

    name: str
    command: list[str]
    health: str | None
    environment: dict[str, str] = field(repr=False)


def add(commands: Any) -> None:
    """Adds the command."""
    up = commands.add_parser(
        "up", help="start Prefect, MLflow and a worker on this machine; Ctrl-C ends them"
    )
    up.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    up.add_argument("--database", metavar="URL", help=databases.HELP)
    up.add_argument("--prefect-port", type=int, default=4200, help="port of the Prefect server")
    up.add_argument("--mlflow-port", type=int, default=5000, help="port of the MLflow server")
    up.add_argument("--gpus", type=int, default=1, help="GPU stages that may run at a time")
    up.add_argument("--debug", action="store_true", help="show tracebacks")
    up.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort up`: starts all, says where it is, and ends all when asked to."""
    store = open_store(options.store)
    state = make_folder(store.local_state())
    for flag in ("prefect_port", "mlflow_port"):
        _check_port(flag, getattr(options, flag))
    # A service manager's way to say Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    servers, worker = services(options, store)
    with contextlib.ExitStack() as running:
        started = [running.enter_context(_running(server, store)) for server in servers]
        for server, process in zip(servers, started, strict=True):
            _wait(server, process, store)
        prepare_server(servers[0].environment["PREFECT_API_URL"], store, options.gpus, Path.cwd())
        at_work = running.enter_context(_running(worker, store))
        say(f"Prefect  http://{HOST}:{options.prefect_port}/deployments")
        say(
            f"MLflow   http://{HOST}:{options.mlflow_port}/#/experiments?workflowType=machine_learning"
        )
        say(f"store    {store.uri}; logs in {state}/logs")
        say("ready: trigger the deployment distill/process, or `retort submit SPEC`; Ctrl-C ends")
        try:
            while all(process.poll() is None for process in (*started, at_work)):
                time.sleep(0.5)
        except KeyboardInterrupt:
            say("retort up: ending; what is finished is kept")
            return DONE
    dead = next(
        n.name
        for n, p in zip((*servers, worker), (*started, at_work), strict=True)
        if p.poll() is not None
    )
    say(f"retort up: {dead} ended by itself; its log is {store.log(dead)}")
    return FAILED


def services(options: argparse.Namespace, store: Store) -> tuple[list[Service], Service]:
    """Returns the two servers, and the worker that needs them."""
    from flows.server_setup import GPU_LIMIT
    from tasks.slots import SLOT

    state, program = store.local_state(), Path(sys.executable).parent
    api = f"http://{HOST}:{options.prefect_port}/api"
    tracking = f"http://{HOST}:{options.mlflow_port}"
    shared = {
        **QUIET,
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(state / "prefect" / "storage"),
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_UI_URL": api.removesuffix("/api"),
        "MLFLOW_TRACKING_URI": tracking,
    }
    kept = databases.postgres(options.database) if options.database else databases.files(state)
    listen = ["--host", HOST, "--port"]
    prefect = Service(
        "prefect",
        [str(program / "prefect"), "server", "start", *listen, str(options.prefect_port)],
        f"{api}/health",
        {**shared, **kept.prefect, "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES},
    )
    mlflow = Service(
        "mlflow",
        [
            *(str(program / "mlflow"), "server", *listen, str(options.mlflow_port)),
            *("--workers", "1", "--artifacts-destination", f"{state}/mlflow-artifacts"),
        ],
        f"{tracking}/health",
        {**shared, **kept.mlflow},
    )
    worker = Service(
        "worker",
        [str(program / "prefect"), "worker", "start", "--pool", POOL, "--type", "process"],
        None,
        {**shared, SLOT: GPU_LIMIT, "PREFECT_WORKER_QUERY_SECONDS": LOOK_SECONDS},
    )
    return [prefect, mlflow], worker


def prepare_server(
    api: str, store: Store, gpus: int, folder: Path | None, crashed_after: int = 1200
) -> None:
    """Makes pool, limit, automation and deployments on a server.

    Runs work in the folder; where none is given, each in one of its own. One without a sign of life
    for `crashed_after` seconds counts as crashed.
    """
    import asyncio

    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.types.entrypoint import EntrypointType

    from flows.server_setup import bootstrap

    async def prepare() -> None:
        knobs = {"pool": [POOL], "gpus": gpus, "crashed_after": crashed_after, "notify": None}
        await bootstrap(argparse.Namespace(**knobs))
        for name, place in FLOWS.items():
            flow = pkgutil.resolve_name(place)
            has_store = "store" in flow.parameters.properties
            deployment = await flow.ato_deployment(
                name=name,
                work_pool_name=POOL,
                parameters={"store": store.uri} if has_store else {},
                job_variables={"working_dir": str(folder)} if folder else {},
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
            await deployment.aapply()

    with temporary_settings({PREFECT_API_URL: api}):
        asyncio.run(prepare())


@contextlib.contextmanager
def _running(service: Service, store: Store) -> Iterator["subprocess.Popen[str]"]:
    """Gives a running service; at the end its whole process group is ended: asked, then killed."""
    log = store.log(service.name)
    process = subprocess.Popen(
        service.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **service.environment},
    )
    threading.Thread(target=_stream, args=(service.name, process, log), daemon=True).start()
    try:
        yield process
    finally:
        processes.end(process, GRACE_SECONDS, first=signal.SIGINT, kills_rest=False)


def _stream(name: str, process: "subprocess.Popen[str]", log: Path) -> None:
    """Keeps all of a service's lines in its log, and shows the worker's: what the jobs say."""
    assert process.stdout
    with open_log(log) as stream:
        for line in process.stdout:
            stream.write(line)
            stream.flush()
            if name == "worker" and not line.startswith(NOISE):
                say(line.rstrip())


def _wait(service: Service, process: "subprocess.Popen[str]", store: Store) -> None:
    """Returns when a server answers. Raises `StageError` when it ended, or never did."""
    assert service.health
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(service.health, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    log = store.log(service.name)
    last = log.read_text(encoding="utf-8").strip().rpartition("\n")[2] if log.is_file() else ""
    raise StageError(f"{service.name} did not start: {last}; its log is {log}")


def _check_port(flag: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            name = flag.replace("_", "-")
            raise SpecError(
                f"port {port} of {HOST} is taken ({error.strerror}); give another as --{name}, or "
                "end what listens there"
            ) from None
