"""`retort` in a process that has its libraries already, and that can be held at any event.

The processes are forked from one that has imported everything and done nothing (Python's
forkserver), which saves each command five seconds. An event of a stage goes to this process, and
the command waits there until it is told to go on: what happens then happens at that very event.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.support.servers import environment

PRELOADED = [
    "flows.commands.run",
    "flows.commands.terminal",
    "flows.distill",
    "mlflow.tracking",
    "retort.jobs.benchmark",
    "retort.metrics.comparison.drawing",
    "retort.stages.curate",
    "retort.stages.evaluate",
    "retort.stages.generate",
    "retort.stages.prepare",
    "retort.stages.release",
    "retort.stages.report",
    "retort.tracking.flavor",
]
CLOCK = Path(__file__).with_name("clock.c")
CLOCK_FILE = "RETORT_CLOCK_FILE"
OnEvent = Callable[[str, dict[str, Any]], None]
_context = multiprocessing.get_context("forkserver")
# Each start looks at all processes, too, and an exit code can be read only once.
_lock = threading.Lock()


def preload(folder: Path) -> str:
    """Starts the process from which commands are forked; returns the library that shifts their
    clock, empty where there is no C compiler."""
    library = folder / "clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK), "-ldl"]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, check=True)
    from flows.embedded import SETTINGS

    own = dict(os.environ)
    extra = {"LD_PRELOAD": str(library)} if library.exists() else {}
    os.environ.update(environment(PREFECT_HOME=str(folder / "prefect"), **SETTINGS, **extra))
    try:
        _context.set_forkserver_preload(PRELOADED)
        first = _context.Process(target=os.getpid)
        first.start()
        first.join()
    finally:
        os.environ.clear()
        os.environ.update(own)
    return extra.get("LD_PRELOAD", "")


class Command:
    """A `retort` command under way, the leader of its process group; its lines go to `log`."""

    def __init__(
        self, words: list[str], env: dict[str, str], log: Path, on_event: OnEvent | None = None
    ):
        self._log, self._on_event = log, on_event or (lambda stage, event: None)
        ours, theirs = _context.Pipe()
        arguments = (words, env, str(log), theirs)
        self._process = _context.Process(target=_run, args=arguments)
        with _lock:
            self._process.start()
        theirs.close()
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()

    @property
    def pid(self) -> int:
        """The number of its process, and of the group."""
        return self._process.pid or 0

    def wait(self, seconds: float) -> int | None:
        """Returns the exit code, or None for a command that hangs, which is killed."""
        code = self._ended(seconds)
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._ended(None)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        """Returns the exit code, or None for a command that is still under way by then."""
        wait([self._process.sentinel], seconds)
        with _lock:
            self._process.join(0)
            return self._process.exitcode

    @property
    def lines(self) -> list[str]:
        """What it has printed."""
        return self._log.read_text(errors="replace").splitlines() if self._log.exists() else []

    def _listen(self, ours: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._on_event(*ours.recv())
                ours.send(True)


def _run(words: list[str], env: dict[str, str], log: str, connection: Connection) -> None:
    """Runs the command in a forked process."""
    os.setsid()
    stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(Path(log).parent)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import cli
    from tasks import listeners

    lock = threading.Lock()

    def hold(stage: str, event: dict[str, Any]) -> None:
        with lock, contextlib.suppress(EOFError, OSError):
            connection.send((stage, event))
            connection.recv()

    listeners.terminals.append(hold)
    with temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}):
        cli.main(words)
