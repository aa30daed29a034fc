"""Jobs on this machine without a server: each a `retort run` of its own, which outlives its client.

The store's local folder holds its spec, its process id, its lines and, once it is over, its exit
code. A job without an exit code and without a process crashed; starting it again continues it.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from retort.client.state import JobState, Status
from retort.errors import SpecError, StageError
from retort.processes.disk import make_folder
from retort.spec import STAGES, JobSpec
from retort.store import open_store

LOOK_SECONDS = 0.5
# The shell keeps the exit code when whoever started it is gone.
KEEP_CODE = '"$@"; echo $? > "$0.part" && mv "$0.part" "$0"'
STATUS_OF: dict[int, Status] = {
    0: "completed",
    3: "completed",
    130: "cancelled",
    143: "cancelled",
}
PROGRESS = re.compile(r"(?P<done>[\d,]+) of (?P<total>[\d,]+) ")


class JobsHere:
    """The jobs that were started on this machine into one store."""

    def __init__(self, store: str):
        self.store = open_store(store)
        self._folder = self.store.local_state() / "runs"

    def start(self, spec: JobSpec) -> str:
        """Starts the job and returns its process id; that of the run under way if it is of this
        spec. Raises `StageError` when the job already runs with other knobs."""
        place, text = self._folder / spec.name, spec.model_dump_json(indent=2)
        if self._process(place):
            if (place / "job.json").read_text() == text:
                return (place / "pid").read_text().split()[0]
            raise StageError(
                f"job {spec.name} runs with another spec; cancel it first, or give this one "
                "another name"
            )
        make_folder(place)
        (place / "exit").unlink(missing_ok=True)
        (place / "job.json").write_text(text)
        words = [sys.executable, "-m", "flows.cli", "run", str(place / "job.json")]
        words += ["--store", self.store.uri, "--json"]
        with (place / "lines").open("w") as lines, (place / "report.json").open("w") as report:
            process = subprocess.Popen(
                ["sh", "-c", KEEP_CODE, str(place / "exit"), *words],
                stdout=report,
                stderr=lines,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        born = psutil.Process(process.pid).create_time()
        (place / "pid").write_text(f"{process.pid} {born}")
        return str(process.pid)

    def state(self, name: str) -> JobState:
        """Returns the state of a job. Raises `SpecError` for an unknown name."""
        place = self._place(name)
        lines = (place / "lines").read_text(encoding="utf-8", errors="replace").splitlines()
        code = place / "exit"
        running = self._process(place) is not None
        status: Status = "running" if running else "crashed"
        if code.is_file():
            status = STATUS_OF.get(int(code.read_text()), "failed")
        of_stages = [line for line in lines if line.split(":")[0].split("-")[0] in STAGES]
        stage = of_stages[-1].split(":")[0] if of_stages and status != "completed" else None
        errors = [line.removeprefix("retort: ") for line in lines if line.startswith("retort: ")]
        error = (errors or ["its process is gone; start the job again to continue it"])[-1]
        return JobState(
            name=name,
            status=status,
            run_id=(place / "pid").read_text().split()[0],
            store=self.store.uri,
            stage=stage,
            progress=_progress(of_stages, stage) if running else None,
            error=error if status in ("failed", "crashed") else None,
        )

    def states(self) -> list[JobState]:
        """Returns all jobs that were started here, the newest first."""
        places = sorted(
            self._folder.glob("*/pid"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        return [self.state(place.parent.name) for place in places]

    def lines(self, name: str) -> Iterator[str]:
        """Yields a job's lines as they come, until it is over."""
        place, rest = self._place(name), ""
        with (place / "lines").open(encoding="utf-8", errors="replace") as stream:
            while True:
                over = self.state(name).is_over
                *whole, rest = (rest + stream.read()).split("\n")
                yield from whole
                if over:
                    return
                time.sleep(LOOK_SECONDS)

    def cancel(self, name: str) -> JobState:
        """Ends a job: its processes end, and finished work is kept."""
        place = self._place(name)
        process = self._process(place)
        if process:
            for child in process.children():  # not the shell: it keeps the exit code
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGINT)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(60)
            if process.is_running():
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(10)
        return self.state(name)

    def deploy(self, spec: JobSpec, schedule: str | None, pool: str | None) -> str:
        """Raises `SpecError`: only a server has deployments."""
        raise SpecError(
            "a deployment needs a Prefect server; start one (`retort up`), then set PREFECT_API_URL"
        )

    def undeploy(self, name: str) -> None:
        """Raises `SpecError`, as `deploy`."""
        raise SpecError("there are deployments on a Prefect server only; set PREFECT_API_URL")

    def _place(self, name: str) -> Path:
        place = self._folder / name
        if not (place / "pid").is_file():
            names = ", ".join(sorted(p.parent.name for p in self._folder.glob("*/pid")))
            raise SpecError(
                f"no job '{name}' was started here with the store {self.store.uri}; there are: "
                f"{names or 'none yet'}"
            )
        return place

    def _process(self, place: Path) -> psutil.Process | None:
        """Returns a job's process while it lives. Another may have been given its id since."""
        if not (place / "pid").is_file() or (place / "exit").is_file():
            return None
        pid, born = (place / "pid").read_text().split()
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.create_time() == float(born):
                return process
        return None


def _progress(lines: list[str], stage: str | None) -> float | None:
    """Returns the share of the stage that is done, by its last line of progress."""
    for line in reversed(lines):
        if line.split(":")[0] != stage:
            return None
        if match := PROGRESS.search(line):
            done, total = (int(match[part].replace(",", "")) for part in ("done", "total"))
            return done / total if total else None
    return None
