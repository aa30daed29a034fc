"""The `retort` command as a fork of a process that has imported its libraries: those are most of
the time of a short run. The children of all these commands are forks of the same fork servers.

What runs is the command's own `main`, in a process of its own with the environment, folder and
streams that it is given. Where the environment holds other values of what libraries read while they
are imported, it is a new interpreter, as for a user. Note: what tests say of a start, of a process
group or of signals is proved with new interpreters.
"""

import atexit
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from retort.engines import transformers
from retort.processes import forks, name_of
from retort.processes.forks import READ_BY_IMPORTS, TORCH, Fork, Imports
from retort.stages.evaluate import measure
from tests.support import servers
from tests.support.servers import BIN, ROOT, environment

LIBRARIES = (
    *("flows.distill", "flows.plan", "flows.sweep", "flows.commands.run", "flows.commands.rows"),
    *("flows.commands.explain", "retort.client", "mlflow.store.tracking.sqlalchemy_store"),
    *("matplotlib.backends.backend_agg", "sklearn.cluster", "scipy.stats", "tokenizers"),
)
READ = (*READ_BY_IMPORTS, "LC_", "LANG", "TZ")
MESSAGE_BYTES = 1 << 18


def run(
    *words: object,
    cwd: Path | str = ".",
    timeout: float = 600.0,
    stdout: int | None = None,
    **env: str,
) -> "subprocess.CompletedProcess[str]":
    """What `retort` with these words prints, and its exit code; `stdout` is where else it prints
    to."""
    known = environment(**env)
    command = [str(BIN / "retort"), *map(str, words)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        to = out.fileno() if stdout is None else stdout
        process = _fork(command, known, cwd, to, err.fileno()) or subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=to, stderr=err, env=known, cwd=cwd
        )
        try:
            process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(command, process.wait(), out.read(), err.read())


def _fork(
    command: list[str], env: dict[str, str], cwd: Path | str, out: int, err: int
) -> Fork | None:
    """The command as a fork of the server that this run of tests shares; None without one."""
    folder = os.environ.get(servers.FOLDER)
    if folder is None or sys.platform != "linux":
        return None
    address, known = servers.shared(Path(folder), warm)
    if _read(env) != known:
        return None
    request = json.dumps({"command": command, "env": env, "cwd": str(Path(cwd).resolve())}).encode()
    ended, status = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        socket.send_fds(server, [request], [out, err, status])
    os.close(status)
    stream = os.fdopen(ended)
    return Fork(int(stream.readline()), stream, stream, stream)


def _read(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ)}


def warm(home: Path) -> tuple[str, dict[str, str]]:
    """The process that commands are forks of; the address of its socket, and what its libraries
    may have read of its environment."""
    from flows.embedded import SETTINGS  # Prefect reads those of its log while it is imported

    address, env = str(home / "socket"), environment(PREFECT_HOME=str(home), **SETTINGS)
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, address],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=env,
            cwd=ROOT,
        )
    (home / "pid").write_text(str(server.pid))
    deadline = time.monotonic() + servers.START_SECONDS
    while not Path(address).exists() and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return address, _read(env)


def serve(address: str) -> None:
    """Makes a fork for each request until the process is killed; returns in each fork."""
    forks.warm(Imports("", [TORCH]), dict(os.environ), 2)
    for libraries in ([name_of(transformers.import_libraries)], []):  # of most models measured
        forks.warm(Imports(measure.__name__, libraries, is_measured=True), dict(os.environ), 2)
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address + ".new")
    listening.listen()
    os.rename(address + ".new", address)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([listening.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, MESSAGE_BYTES)
            for pid in list(running):
                if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    status = running.pop(pid)
                    with suppress(OSError):
                        os.write(status, f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
                    os.close(status)
        if listening.fileno() in ready:
            client, _ = listening.accept()
            with client:
                message, streams, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 3)
            if len(streams) != 3:  # who asked is gone
                continue
            out, err, status = streams
            if (pid := os.fork()) == 0:
                for other in (listening.fileno(), woken, wake, *running.values()):
                    os.close(other)
                os.write(status, f"{os.getpid()}\n".encode())
                os.close(status)
                become(json.loads(message), out, err)
                return
            for stream in (out, err):
                os.close(stream)
            running[pid] = status


class Shared:
    """A fork server that others use, too, as `forks` looks after its own."""

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        return None if Path(f"/proc/{self.pid}").exists() else 0


def become(request: dict, out: int, err: int) -> None:
    """Makes this fork what the command's own new process would be."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, number in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None
    random.seed()
    atexit.unregister(forks._end_all)
    for server in forks._servers.values():
        server.process = Shared(server.process.pid)
    sys.argv, sys.path[0] = request["command"], str(BIN)
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


if __name__ == "__main__":
    serve(sys.argv[1])
    from flows.cli import main

    main()
