"""What a server costs a job: a stage's overhead, a cached run, a retry, a day of scheduled runs.

`python -m benchmarks.operations [RUNS]`, 200 runs by default, takes about half an hour on two
cores. Everything is measured on `retort up`: servers, worker, SQLite. A stage's overhead contains
its share of the flow's start, of registering the model and of the run's last report. Prefect gives
SQLite a cache of 20,000 pages, 78 MiB, that fills once, within the first day of a server; the day
measured here is a later one, so that only what would grow for ever is counted.
"""

import base64
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks import Measure, show
from retort.spec import JobSpec, load
from retort.store import Store
from tests.support.servers import free_port
from tests.support.tiny import write_job
from tests.support.upping import up

OVER = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
# Before memory is first read: whatever is made once has been made.
WARM_UP = 20
AT_A_TIME = 2
SETTLE_SECONDS = 10.0
# Nobody clicks before the failed run's process has ended, which takes it two seconds.
READ_SECONDS = 10.0
LONGEST_SECONDS = 600.0
# Of the lines of an earlier run, in messages as long as these: more than the cache holds.
HISTORY_BYTES, LINE_BYTES, LINES_AT_ONCE = 100 * 2**20, 2000, 500
TROUBLE = ("database is locked", "OperationalError", "IntegrityError")


@dataclass(frozen=True)
class Place:
    """A running `retort up` in a folder."""

    folder: Path
    login: dict[str, str]

    @property
    def api(self) -> str:
        """The address of the server's API."""
        return self.login["PREFECT_API_URL"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Returns what the server answers."""
        data = None if body is None else json.dumps(body).encode()
        login = base64.b64encode(self.login["PREFECT_API_AUTH_STRING"].encode()).decode()
        headers = {"content-type": "application/json", "authorization": f"Basic {login}"}
        request = urllib.request.Request(f"{self.api}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = answer.read()
        return json.loads(found) if found else None

    def start(self, spec: JobSpec) -> str:
        """Returns the id of a new run, as a click on Run makes it."""
        deployment = self.call("GET", "/deployments/name/distill/process")["id"]
        body = {"name": spec.name, "parameters": {"spec": spec.model_dump(mode="json")}}
        made = self.call("POST", f"/deployments/{deployment}/create_flow_run", body)
        return str(made["id"])

    def ended(self, run: str) -> dict[str, Any]:
        """Returns a run once it is over."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.call("GET", f"/flow_runs/{run}")
            if found["state_type"] in OVER:
                return found
            time.sleep(0.2)
        raise TimeoutError(f"run {run} is {found['state']}")

    def completed(self, spec: JobSpec) -> dict[str, Any]:
        """Runs a job to its end and returns its run."""
        found = self.ended(self.start(spec))
        assert found["state_type"] == "COMPLETED", found["state"]
        return found


@contextmanager
def running(folder: Path) -> Iterator[Place]:
    """Gives a `retort up` of its own."""
    ports = {"prefect": free_port(), "mlflow": free_port()}
    with up(folder, ports, "--gpus=2") as login:
        yield Place(folder, login)


def overhead(place: Place, spec: JobSpec) -> float:
    """Returns the seconds a stage that a whole run takes beyond what its stages' functions do."""
    seconds = _seconds(place.completed(spec))
    store = Store(str(place.folder / ".retort"))
    names = store.job(spec.name).read_json("artifacts.json")
    made = [store.artifact(stage, name).read_manifest() for stage, name in names.items()]
    functions = sum(manifest["seconds"] for manifest in made)
    print(f"{len(made)} stages: {seconds:.1f} s, of which in stages {functions:.1f} s")
    return float((seconds - functions) / len(made))


def retried(place: Place, spec: JobSpec) -> float:
    """Returns the seconds from Retry until the failed stage runs again."""
    run = place.start(spec)
    assert place.ended(run)["state_type"] == "FAILED"
    time.sleep(READ_SECONDS)
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    clicked = time.time()
    place.call("POST", f"/flow_runs/{run}/set_state", {"state": state})
    wanted = {"flow_runs": {"id": {"any_": [run]}}}
    while time.time() - clicked < LONGEST_SECONDS:
        rows = place.call("POST", "/task_runs/filter", wanted)
        again = [r for r in rows if r["name"] == "generate" and r["flow_run_run_count"] == 2]
        if again and again[0]["start_time"]:
            place.ended(run)
            return _time(again[0]["start_time"]) - clicked
        time.sleep(0.1)
    raise TimeoutError(place.call("GET", f"/flow_runs/{run}")["state"])


def history(place: Place, run: str) -> None:
    """Fills the server's cache of pages with what an earlier run has said."""
    line = {"name": "history", "level": 20, "flow_run_id": run, "message": "x" * LINE_BYTES}
    for _ in range(HISTORY_BYTES // LINE_BYTES // LINES_AT_ONCE):
        told = {**line, "timestamp": datetime.now(UTC).isoformat()}
        place.call("POST", "/logs/", [told] * LINES_AT_ONCE)


def a_day(place: Place, spec: JobSpec, runs: int) -> list[Measure]:
    """Runs a cached job so many times, and returns what has grown, is left, or went wrong."""
    before: dict[int, tuple[str, int]] = {}
    under_way: list[str] = []
    started = time.monotonic()
    for number in range(WARM_UP + runs):
        if number == WARM_UP:
            while under_way:  # so that only what stays is counted
                assert place.ended(under_way.pop())["state_type"] == "COMPLETED"
            time.sleep(SETTLE_SECONDS)
            before = _services(place)
        under_way.append(place.start(spec))
        while len(under_way) >= AT_A_TIME:
            assert place.ended(under_way.pop(0))["state_type"] == "COMPLETED"
    for run in under_way:
        assert place.ended(run)["state_type"] == "COMPLETED"
    minutes = (time.monotonic() - started) / 60
    time.sleep(SETTLE_SECONDS)
    after = _services(place)
    print(f"{WARM_UP} + {runs} cached runs in {minutes:.1f} minutes, {AT_A_TIME} at a time")
    for pid, (name, size) in before.items():
        print(f"{name:10} {size / 2**20:8.1f} MiB -> {after[pid][1] / 2**20:8.1f} MiB")
    growth = max(after[pid][1] / size for pid, (_, size) in before.items())
    logs = "".join(p.read_text() for p in (place.folder / ".retort/logs").glob("*.log"))
    trouble = sum(logs.count(word) for word in TROUBLE)
    leaked = len(after) - len(before)
    return [
        ("operations.memory_growth", growth, 1.1, growth <= 1.1),
        ("operations.leaked_processes", leaked, 0, leaked == 0),
        ("operations.database_errors", trouble, 0, trouble == 0),
    ]


def _services(place: Place) -> dict[int, tuple[str, int]]:
    """Returns all processes below `retort up`, with their names and memory (resident), bytes."""
    top = [p for p in psutil.Process().children() if "up" in p.cmdline()]
    found = {}
    for process in top[0].children(recursive=True):
        words = " ".join(process.cmdline())
        name = next((n for n in ("mlflow", "worker", "prefect") if n in words), words[:20])
        found[process.pid] = (name, int(process.memory_info().rss))
    return found


def _seconds(run: dict[str, Any]) -> float:
    return _time(run["end_time"]) - _time(run["start_time"])


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def command(place: Place, job: Path) -> float:
    """Returns the seconds of the whole command `retort run` on a cached job, its start included."""
    program = str(Path(sys.executable).parent / "retort")
    started = time.monotonic()
    subprocess.run(
        [program, "run", str(job)],
        cwd=place.folder,
        env={**os.environ, **place.login},
        capture_output=True,
        check=False,  # the gate refuses a student of random weights
    )
    return time.monotonic() - started


def measures(folder: Path, runs: int) -> list[Measure]:
    """Returns all measures, in the order in which they are taken."""
    job = write_job(folder, "echo")
    spec = load(job)[0]
    # Nobody listens there.
    refused = ["generate.engine=openai", "generate.endpoint=http://127.0.0.1:9/v1", "name=refused"]
    broken = load(job, [*refused, "generate.runtime.max_attempts=1"])[0]
    with running(folder) as place:
        found = [overhead(place, load(job, [f"prepare.limit={n}"])[0]) for n in (40, 41, 42)]
        first = place.completed(spec)
        cached = statistics.median(_seconds(place.completed(spec)) for _ in range(5))
        again = statistics.median(retried(place, broken) for _ in range(3))
        print(f"the command on a cached job, its start included: {command(place, job):.1f} s")
        stage = statistics.median(found)
        print(f"cached {cached:.2f} s, from Retry to running {again:.2f} s")
        history(place, first["id"])
        return [
            ("operations.overhead_a_stage_seconds", stage, 3, stage <= 3),
            ("operations.cached_job_seconds", cached, 5, cached <= 5),
            ("operations.retry_to_running_seconds", again, 20, again <= 20),
            *a_day(place, spec, runs),
        ]


def main() -> None:
    """Prints what was measured, then one JSON line a measure."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    # A shell that starts this in the background has it ignored, and `retort up` would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        found = measures(Path(scratch), runs)
    print(f"load average {os.getloadavg()[0]:.2f} after")
    show(found)


if __name__ == "__main__":
    main()
