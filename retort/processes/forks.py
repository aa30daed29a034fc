"""The owner's side of `fork_server`: children that are forks of a process with their libraries.

Importing torch and transformers takes 4 CPU seconds, and vLLM 4 more, which each child would spend
anew. Note: a machine with a GPU has no fork server, for no fork may use a GPU that the server
touched, and a start is short there beside the work.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import IO

from retort.processes.libraries import import_torch
from retort.records import JsonObject

# Libraries read variables of these names while they are imported: a child that has other values
# than the server's cannot be its fork. A job's sections may differ in their numbers of threads.
READ_BY_IMPORTS = (
    *("PYTHON", "LD_", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "GOMP_", "CUDA_", "NVIDIA_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "TORCH", "PYTORCH_", "VLLM_"),
)
GPUS = ("/dev/nvidiactl", "/dev/kfd")
TORCH = f"{import_torch.__module__}:{import_torch.__name__}"
# Two where a job's sections differ in what their libraries read, and one of what is measured.
MOST_SERVERS = 3
# Room in the server's own command line for those of its children, as `ps` shows them.
ROOM = 1024


@dataclass(eq=False)
class Fork:
    """A child of the server, with what `subprocess.Popen` has; `_status` tells how it ends."""

    pid: int
    stdin: IO[str]
    stdout: IO[str]
    _status: IO[str]
    returncode: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def poll(self) -> int | None:
        """Returns the exit code, as `subprocess` gives it; None while the child runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises `subprocess.TimeoutExpired`."""
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(f"child {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        """Kills the child."""
        os.kill(self.pid, signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    # Where the server was killed nobody knows; the child may have gone on.
                    self.returncode = int(self._status.readline() or -signal.SIGKILL)
        return self.returncode


class _Server:
    """A running server, as its owner sees it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = ["-m", "retort.processes.fork_server", str(theirs.fileno()), " " * ROOM]
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment,
            )

    def leave(self) -> None:
        """Lets the server end when its last child has."""
        self._socket.close()

    def end(self) -> None:
        """Ends the server. It would end by itself, but perhaps a moment after its owner."""
        self.process.kill()
        self.process.wait()

    def warm(self, log: int, libraries: list[str]) -> None:
        """Has the server import for children to come, while this process goes on."""
        request = {"words": [""], "libraries": libraries}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [log])

    def fork(
        self,
        words: list[str],
        environment: dict[str, str],
        log: int,
        libraries: list[str],
        is_measured: bool,
    ) -> Fork:
        """Returns a new child. Raises `OSError` or `ValueError` where there is none."""
        request: JsonObject = {"words": words, "environment": environment, "cwd": os.getcwd()}
        request |= {"libraries": libraries, "is_measured": is_measured}
        (stdin, to_child), (from_child, stdout), (ended, status) = (os.pipe() for _ in range(3))
        streams = os.fdopen(to_child, "w"), os.fdopen(from_child), os.fdopen(ended)
        try:
            message = json.dumps(request).encode()
            try:
                socket.send_fds(self._socket, [message], [stdin, stdout, log, status])
            finally:
                for given in (stdin, stdout, status):
                    os.close(given)
            # The first child waits here until the server has imported all.
            return Fork(int(streams[2].readline()), *streams)
        except BaseException:
            for stream in streams:  # a child that begins nevertheless ends at once
                stream.close()
            raise


# By what their libraries read of the environment, and which these are where children are measured,
# the one that was used last at the end; and those that end with their last child.
_servers: dict[str, _Server] = {}
_leaving: list[_Server] = []
_lock = threading.Lock()


def warm(
    environment: dict[str, str], log: int, libraries: list[str], is_measured: bool = False
) -> None:
    """Has the server that `start` would ask import what these functions do, where it is new."""
    if not _can_fork():
        return
    with _lock, contextlib.suppress(OSError):
        server, is_first = _server_of(environment, libraries if is_measured else None)
        if is_first:
            server.warm(log, libraries)


def start(
    words: list[str],
    environment: dict[str, str],
    log: int,
    libraries: list[str],
    is_measured: bool = False,
) -> Fork | None:
    """Returns a child that runs `retort.processes` with these words and writes its errors to the
    file `log`; None where it cannot be a fork.

    The server calls the functions `libraries`, "module:name", once each: they import what the child
    needs. It imports torch for any child but its first. A child that is measured has the resident
    memory of a process that imported these libraries, and no others: its server imports nothing
    else, and it begins with all pages that the server has.
    """
    if not _can_fork():
        return None
    with _lock:
        try:
            server, is_first = _server_of(environment, libraries if is_measured else None)
            more = [] if is_first or is_measured else [TORCH]
            return server.fork(words, environment, log, [*libraries, *more], is_measured)
        except (OSError, ValueError):
            return None


def _server_of(environment: dict[str, str], alone: list[str] | None = None) -> tuple[_Server, bool]:
    """Returns the server whose libraries read the same of this environment, which are these alone
    where they are given, and whether it is new. The one that was not used for longest leaves where
    there would be too many."""
    read = {name: v for name, v in environment.items() if name.startswith(READ_BY_IMPORTS)}
    key = json.dumps([read, alone], sort_keys=True)
    server = _servers.pop(key, None)
    is_new = server is None or server.process.poll() is not None
    if server is None or is_new:
        server = _Server(environment)
    _servers[key] = server
    _leaving[:] = [each for each in _leaving if each.process.poll() is None]
    if len(_servers) > MOST_SERVERS:
        _leaving.append(_servers.pop(next(iter(_servers))))
        _leaving[-1].leave()
    return server, is_new


@atexit.register
def _end_all() -> None:
    for server in (*_servers.values(), *_leaving):
        server.end()


def _can_fork() -> bool:
    return sys.platform == "linux" and not any(map(os.path.exists, GPUS))
