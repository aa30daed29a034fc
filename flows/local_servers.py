"""A Prefect server, an MLflow server and a worker as processes of this machine.

All of their state lies in the store's local folder, or in a database of Postgres, so that they go
on with it the next time. Each is a process group of its own and is ended by its id, the worker
first: a run that is under way gets the time to keep what it has finished. Both servers ask for the
login of retort/jobs/login.py, answer on loopback only, and refuse pages of another origin.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flows import databases, mlflow_app
from retort import processes
from retort.errors import StageError
from retort.jobs import login
from retort.processes.disk import open_log
from retort.store import Store

HOST = "127.0.0.1"
POOL = "retort-process"
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
class Ports:
    """Where the two servers listen."""

    prefect: int
    mlflow: int

    @property
    def pages(self) -> dict[str, str]:
        """The pages of each, by its name."""
        return {
            "Prefect": f"http://{HOST}:{self.prefect}/deployments",
            "MLflow": f"http://{HOST}:{self.mlflow}/#/experiments?workflowType=machine_learning",
        }


@dataclass(frozen=True)
class Service:
    """A server or worker: what starts it, what says that it answers, what it knows."""

    name: str
    command: list[str]
    health: str | None
    environment: dict[str, str] = field(repr=False)
    log: Path


def services(store: Store, ports: Ports, database: str | None) -> tuple[list[Service], Service]:
    """Returns the two servers, and the worker that needs them; makes their login and database."""
    from flows.server_setup import GPU_LIMIT
    from tasks.slots import SLOT

    state, program = store.local_state(), Path(sys.executable).parent
    prefect, mlflow = f"http://{HOST}:{ports.prefect}", f"http://{HOST}:{ports.mlflow}"
    kept = databases.postgres(database) if database else databases.files(state)
    known = login.write(state, f"{prefect}/api", mlflow)
    shared = {
        **QUIET,
        **known,
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(state / "prefect" / "storage"),
        "PREFECT_UI_URL": prefect,
    }
    listen = ["--host", HOST, "--port"]
    servers = [
        Service(
            "prefect",
            [str(program / "prefect"), "server", "start", *listen, str(ports.prefect)],
            f"{prefect}/api/health",
            {
                **shared,
                **kept.prefect,
                "PREFECT_UI_API_URL": f"{prefect}/api",
                "PREFECT_SERVER_API_AUTH_STRING": known["PREFECT_API_AUTH_STRING"],
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": prefect,
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
            },
            store.log("prefect"),
        ),
        Service(
            "mlflow",
            [
                *(str(program / "mlflow"), "server", "--app-name", "retort"),
                *(*listen, str(ports.mlflow), "--workers", "1"),
                *("--artifacts-destination", f"{state}/mlflow-artifacts"),
            ],
            f"{mlflow}/health",
            {
                **shared,
                **kept.mlflow,
                mlflow_app.LOGIN: known["PREFECT_API_AUTH_STRING"],
                mlflow_app.HOSTS: f"{HOST}:{ports.mlflow},localhost:{ports.mlflow}",
            },
            store.log("mlflow"),
        ),
    ]
    worker = Service(
        "worker",
        [str(program / "prefect"), "worker", "start", "--pool", POOL, "--type", "process"],
        None,
        {**shared, SLOT: GPU_LIMIT, "PREFECT_WORKER_QUERY_SECONDS": LOOK_SECONDS},
        store.log("worker"),
    )
    return servers, worker


def prepare_server(
    environment: dict[str, str],
    store: Store,
    gpus: int,
    folder: Path | None,
    crashed_after: int = 1200,
) -> None:
    """Makes pool, limit, automation and deployments on the server that an environment leads to.

    Runs work in the folder; where none is given, each in one of its own. One without a sign of life
    for `crashed_after` seconds counts as crashed.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.types.entrypoint import EntrypointType

    from flows.distill import distill
    from flows.plan import plan
    from flows.server_setup import bootstrap
    from flows.sweep import sweep

    async def prepare() -> None:
        await bootstrap([POOL], gpus, crashed_after)
        for flow in (distill, plan, sweep):
            deployment = await flow.ato_deployment(
                name="process",
                work_pool_name=POOL,
                parameters={"store": store.uri},
                job_variables={"working_dir": str(folder)} if folder else {},
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
            await deployment.aapply()

    settings = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
    with temporary_settings({setting: environment.get(setting.name) for setting in settings}):
        asyncio.run(prepare())


@contextlib.contextmanager
def running(
    service: Service, show: Callable[[str], None] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Gives a running service; at the end its whole process group is ended: asked, then killed.

    All of its lines go to its log, and those of use to a person to `show` as well.
    """
    process = subprocess.Popen(
        service.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, **service.environment},
    )
    threading.Thread(target=_copy, args=(process, service.log, show), daemon=True).start()
    try:
        yield process
    finally:
        processes.end(process, GRACE_SECONDS, first=signal.SIGINT, kills_rest=False)


def _copy(process: "subprocess.Popen[str]", log: Path, show: Callable[[str], None] | None) -> None:
    assert process.stdout
    with open_log(log) as stream:
        for line in process.stdout:
            stream.write(line)
            stream.flush()
            if show and not line.startswith(NOISE):
                show(line.rstrip())


def wait(service: Service, process: "subprocess.Popen[str]") -> None:
    """Returns when a server answers. Raises `StageError` when it ended, or never did."""
    assert service.health
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(service.health, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    log = service.log
    last = log.read_text(encoding="utf-8").strip().rpartition("\n")[2] if log.is_file() else ""
    raise StageError(f"{service.name} did not start: {last}; its log is {log}")
