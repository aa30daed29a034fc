"""A Prefect server prepared for Retort, workers with folders of their own, a teacher behind HTTP,
and what the page of a run sends. A worker can be killed as if its machine were gone: with all that
it has started.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from flows.local_servers import POOL, prepare_server
from retort.spec import JobSpec, load
from retort.store import open_store
from tests.support import servers
from tests.support.misbehaving import Endpoint, endpoint, fine
from tests.support.servers import BIN, environment
from tests.support.tiny import write_job

# As often as Prefect allows.
BEAT_SECONDS = 30
LONGEST_SECONDS = 240.0
OVER = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@dataclass
class Teacher:
    """An endpoint with a model for each job, of the job's name."""

    url: str = ""
    left: Counter[str] = field(default_factory=Counter)  # answers until a model waits or is gone
    waits: set[str] = field(default_factory=set)
    num_waiting: int = 0
    gone: set[str] = field(default_factory=set)
    given: Counter[tuple[str, str]] = field(default_factory=Counter)  # answers, by model and text

    async def behave(self, seen: Endpoint, request: Any, text: str) -> Any:
        """Answers, keeps the request waiting, or breaks the connection."""
        model = seen.bodies[-1]["model"]
        self.num_waiting += 1
        try:
            while self.left[model] <= 0 and model in self.waits:
                await asyncio.sleep(0.02)
        finally:  # whoever asked may have gone
            self.num_waiting -= 1
        if self.left[model] <= 0 and model in self.gone:
            request.transport.abort()
            return None
        self.left[model] -= 1
        self.given[model, text] += 1
        return fine(text)

    def answers(self, model: str, questions: list[str]) -> list[int]:
        """How often a model has answered each of some questions."""
        return [self.given[model, question] for question in questions]


@contextmanager
def teacher() -> Iterator[Teacher]:
    """A teacher that answers until the block ends."""
    found = Teacher()
    with endpoint(found.behave) as (_, found.url):
        yield found


def questions(*files: Path) -> list[str]:
    """What files of rows ask, in their order."""
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [row["question"] for row in rows]


@dataclass(frozen=True)
class Day:
    """Where a file's tests take place: a server of their own, a store, MLflow, a teacher."""

    api: str
    store: str
    mlflow: str
    folder: Path
    teacher: Teacher

    def job(self, name: str, *knobs: str) -> JobSpec:
        """A job that asks the teacher's model of its name, three requests at a time."""
        path = self.folder / "job.yaml"
        if not path.exists():
            write_job(self.folder, "echo", num_epochs=1)
        asks = {"engine": "openai", "endpoint": self.teacher.url, "teacher": name}
        asks |= {"min_success_ratio": 1.0}
        asks |= {"runtime.max_concurrency": 3, "runtime.max_attempts": 1}
        given = [f"generate.{key}={value}" for key, value in asks.items()]
        return load(path, [f"name={name}", *given, *knobs])[0]

    def asked(self, train: str = "train") -> list[str]:
        """The questions that `generate` asks, in the order of the files."""
        return questions(*(self.folder / f"data/{name}.jsonl" for name in (train, "validation")))

    def worker(
        self, name: str, limit: int | None = None, **env: str
    ) -> AbstractContextManager[psutil.Process]:
        """A worker until the block ends, for so many runs at a time."""
        return worker(self.folder / name, self.api, limit, MLFLOW_TRACKING_URI=self.mlflow, **env)


@contextmanager
def day(
    folder: Path, store: str, mlflow: str, crashed_after: int = 1200, **database: str
) -> Iterator[Day]:
    """All that the user's day takes but a worker, until the block ends."""

    def prefect(home: Path) -> str:
        return servers.prefect(home, **database)

    home = folder / "server"
    home.mkdir(parents=True)
    with teacher() as asked:
        try:
            api = servers.shared(home, prefect)
            prepare_server({"PREFECT_API_URL": api}, open_store(store), 1, None, crashed_after)
            yield Day(api, store, mlflow, folder, asked)
        finally:
            servers.end_all(home)


@contextmanager
def worker(folder: Path, api: str, limit: int | None, **env: str) -> Iterator[psutil.Process]:
    """A worker that looks for runs every second; its working directory is the folder, made now."""
    folder.mkdir(parents=True)
    env |= {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "prefect" / "storage"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_SECONDS),
    }
    command = [str(BIN / "prefect"), "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--limit", str(limit)] if limit else []
    with (folder / "worker.log").open("w") as log:
        started = psutil.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env=environment(**env),
        )
    try:
        yield started
    finally:
        kill(started)


def kill(process: psutil.Process) -> None:
    """Kills a process with all of its descendants: none of them learns that another has ended."""
    stopped = [process]
    for each in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGSTOP)
            stopped += each.children()
    for each in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)


def call(api: str, method: str, path: str, body: Any = None) -> Any:
    """What the server answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{api}{path}", data, method=method)
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = answer.read()
    return json.loads(found) if found else None


def deployment(api: str) -> str:
    """The id of the deployment."""
    return str(call(api, "GET", "/deployments/name/distill/process")["id"])


def start(api: str, spec: Any, **parameters: Any) -> str:
    """The id of a new run of the deployment."""
    wanted = {"parameters": {"spec": spec.model_dump(mode="json"), **parameters}}
    return str(call(api, "POST", f"/deployments/{deployment(api)}/create_flow_run", wanted)["id"])


def retry(api: str, run: str) -> None:
    """What the button Retry on a run's page sends."""
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    wanted = {"state": state, "force": False}
    answer = call(api, "POST", f"/flow_runs/{run}/set_state", wanted)
    assert answer["status"] == "ACCEPT", answer


def cancel(api: str, run: str) -> dict[str, Any]:
    """The state of a run that is told to end, once it has ended."""
    call(api, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    return ended(api, run)


def is_left(api: str, run: str) -> bool:
    """Whether the worker has done with a run that ended.

    Until then Prefect lets the exit code of the process that ends decide on a retry, too.
    """
    name, resource = "prefect.worker.executed-flow-run", f"prefect.flow-run.{run}"
    wanted = {"filter": {"event": {"name": [name]}, "related": {"id": [resource]}}}
    return bool(call(api, "POST", "/events/filter", wanted)["events"])


def until(look: Callable[[], Any], told: Callable[[], Any] = lambda: "") -> Any:
    """What `look` finds, as soon as it finds something; `told` says what there was instead."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
    return found


def ended(api: str, run: str) -> dict[str, Any]:
    """The state of a run once it is over."""

    def look() -> Any:
        state = call(api, "GET", f"/flow_runs/{run}")["state"]
        return state if state["type"] in OVER else None

    found: dict[str, Any] = until(look, lambda: lines(api, run))
    return found


def completed(api: str, run: str) -> dict[str, str]:
    """The states of a run's tasks once it has completed."""
    state = ended(api, run)
    assert state["type"] == "COMPLETED", "\n".join([state["message"] or "", *lines(api, run)])
    # Prefect hears of tasks by another way than of runs, and a moment later.
    until(lambda: tasks(api, run).get("release") in ("Completed", "Cached"))
    return tasks(api, run)


def tasks(api: str, run: str) -> dict[str, str]:
    """The states of a run's tasks in its latest attempt, by their names."""
    return {name: task["state_name"] for name, task in task_runs(api, run).items()}


def task_runs(api: str, run: str) -> dict[str, Any]:
    """A run's tasks in its latest attempt, by their names."""
    attempt = call(api, "GET", f"/flow_runs/{run}")["run_count"]
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
    rows = call(api, "POST", "/task_runs/filter", wanted)
    return {row["name"]: row for row in rows if row["flow_run_run_count"] == attempt}


def lines(api: str, run: str) -> list[str]:
    """What a run has said."""
    wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
    return [row["message"] for row in call(api, "POST", "/logs/filter", wanted)]


def runs_of(api: str, flow: str) -> list[str]:
    """The ids of a flow's runs."""
    rows = call(api, "POST", "/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return [row["id"] for row in rows]


def in_mlflow(url: str, job: str) -> Counter[tuple[str, str]]:
    """How many of a job's runs in MLflow have which name and status."""
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(job)
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    return Counter((run.info.run_name, run.info.status) for run in runs)
