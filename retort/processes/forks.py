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
from dataclasses import asdict, dataclass, field, replace
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
# A job's sections may differ in what their libraries read, and what is measured has its own.
MOST_SERVERS = 3
# Room in the server's own command line for those of its children, as `ps` shows them.
ROOM = 1024


@dataclass(frozen=True)
class Imports:
    """What the server of a child imports: `module`, where it is Retort's own, and what functions of
    the names `libraries`, "module:name", do.

    A child that `is_measured` has the resident memory of a process that imported the same and
    nothing else: its server does, and it begins with all pages that the server had then.
    """

    module: str
    libraries: list[str] = field(default_factory=list)
    is_measured: bool = False

    def alone(self) -> list[str] | None:
        """Returns what alone may be in the server; None where other children's may be, too."""
        return [self.module, *self.libraries] if self.is_measured else None


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

    def warm(self, wanted: JsonObject, log: int) -> None:
        """Has the server import for children to come, while this process goes on."""
        socket.send_fds(self._socket, [json.dumps(wanted).encode()], [log])

    def fork(self, wanted: JsonObject, log: int, seconds: float | None) -> Fork:
        """Returns a new child, for which the server has so many seconds. Raises `OSError` or
        `ValueError` where there is none."""
        (stdin, to_child), (from_child, stdout), (ended, status) = (os.pipe() for _ in range(3))
        streams = os.fdopen(to_child, "w"), os.fdopen(from_child), os.fdopen(ended)
        try:
            message = json.dumps(wanted).encode()
            try:
                socket.send_fds(self._socket, [message], [stdin, stdout, log, status])
            finally:
                for given in (stdin, stdout, status):
                    os.close(given)
            # The first child waits here until the server has imported all.
            if not select.select([ended], [], [], seconds)[0]:
                self.end()
            return Fork(int(streams[2].readline()), *streams)
        except BaseException:
            for stream in streams:  # a child that begins nevertheless ends at once
                stream.close()
            raise


# By what their libraries read of the environment, and what is imported where children are measured,
# the one that was used last at the end; and those that end with their last child.
_servers: dict[str, _Server] = {}
_leaving: list[_Server] = []
_lock = threading.Lock()


def warm(imports: Imports, environment: dict[str, str], log: int) -> None:
    """Has the server that `start` would ask import for it meanwhile, where that server is new."""
    if not _can_fork():
        return
    with _lock, contextlib.suppress(OSError):
        server, is_first = _server_of(imports, environment)
        if is_first:
            server.warm(asdict(imports), log)


def start(
    imports: Imports,
    words: list[str],
    environment: dict[str, str],
    log: int,
    seconds: float | None = None,
) -> Fork | None:
    """Returns a child that runs `retort.processes` with these words and writes its errors to the
    file `log`; None where it cannot be a fork, or is none within some seconds.

    The server imports torch for any child but its first, and for none that is measured.
    """
    if not _can_fork():
        return None
    with _lock:
        try:
            server, is_first = _server_of(imports, environment)
            if not (is_first or imports.is_measured):
                imports = replace(imports, libraries=[*imports.libraries, TORCH])
            given = {"words": words, "environment": environment, "cwd": os.getcwd()}
            return server.fork(asdict(imports) | given, log, seconds)
        except (OSError, ValueError):
            return None


def _server_of(imports: Imports, environment: dict[str, str]) -> tuple[_Server, bool]:
    """Returns the server whose libraries read the same of this environment, and that has nothing
    but these imports where its children are measured; and whether it is new. The one that was not
    used for longest leaves where there would be too many."""
    read = {name: v for name, v in environment.items() if name.startswith(READ_BY_IMPORTS)}
    key = json.dumps([read, imports.alone()], sort_keys=True)
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
