"""A process that lives through many stages of a job, and serves one client after the other.

It belongs to the process that made its `Resident`, and ends with it as every child does. A client
finds it at a Unix socket in a folder that is its owner's alone, and shows a key that only travels
in the arguments file of a child. What the two say to each other is up to the function that serves.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from retort import processes
from retort.errors import EngineDiedError
from retort.processes import disk

# How long a process may take until it listens, and how long one that was left by its client until
# it listens again; later it is ended, and started anew.
START_SECONDS, IDLE_SECONDS = 120.0, 30.0
# Between two looks at a process that does not listen yet.
LOOK_SECONDS = 0.02
GONE = (OSError, EOFError)


@dataclass(frozen=True)
class Address:
    """Where a resident process listens, the key that it asks for, and its log."""

    path: str
    log: str
    key: str = field(repr=False)

    def address(self) -> dict[str, str]:
        """Returns itself as JSON: so a child may pass it on."""
        return asdict(self)

    def connect(self) -> Connection:
        """Returns a connection. Raises `EngineDiedError` where nobody listens.

        A process that begins anew has no socket for a while.
        """
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                return Client(self.path, "AF_UNIX", authkey=bytes.fromhex(self.key))
            except FileNotFoundError as error:
                if time.monotonic() > until:
                    raise self.gone() from error
                time.sleep(LOOK_SECONDS)
            except GONE as error:
                raise self.gone() from error

    def gone(self) -> EngineDiedError:
        """Returns the error of a process that is not there any more."""
        return EngineDiedError(f"the process of the resident engine is gone; its log is {self.log}")

    def heard(self, connection: Connection) -> Iterator[tuple[str, Any]]:
        """Yields what the process says, as kind and value, up to `done` or `restarts`.

        Raises the error that it reports, and `EngineDiedError` when it is gone.
        """
        kind = ""
        while kind not in ("done", "restarts"):
            try:
                kind, value = connection.recv()
            except GONE as error:
                raise self.gone() from error
            if kind == "error":
                raise processes.error_of(value, 1, Path(self.log))
            yield kind, value


class Resident:
    """The owner's side: starts `function(report=..., address=...)` when somebody needs it.

    `runtime` is as for `processes.run`. One client at a time; the calls may come from any thread.
    """

    def __init__(self, function: Callable[..., None], log: Path, runtime: Mapping[str, Any]):
        self._function, self._log, self._runtime = function, log, runtime
        self._lock = threading.Lock()
        self._started = ExitStack()
        self._process: processes.Child | None = None
        self._address = Address("", str(log), "")

    def address(self) -> dict[str, str]:
        """Returns what `Address` is made of; the process is started where it is not there, or does
        not listen. Raises `EngineDiedError` where it does not start."""
        with self._lock:
            if not self._listens(IDLE_SECONDS):
                self._end()
                self._start()
            return self._address.address()

    def rest(self, keeps_weights: bool = True) -> None:
        """Has the engine give back its accelerator's memory until it is needed again.

        `keeps_weights` says whether the same model answers next. Where no process listens there is
        nothing to give back.
        """
        with self._lock:
            if self._listens(IDLE_SECONDS):
                with self._address.connect() as connection:
                    connection.send(("rest", (keeps_weights,)))
                    for _ in self._address.heard(connection):
                        pass

    def end(self) -> None:
        """Ends the process and its group."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        scratch = self._started.enter_context(disk.temporary_folder())
        path, key = str(scratch / "socket"), secrets.token_hex(32)
        self._address = Address(path, str(self._log), key)
        given = {"address": asdict(self._address)}
        name = processes.name_of(self._function)
        self._process = processes.start(name, given, self._runtime, self._log, scratch)
        processes.children.add(self._process)
        until = time.monotonic() + START_SECONDS
        while not self._listens(START_SECONDS):
            if self._process.poll() is not None or time.monotonic() > until:
                self._end()
                raise self._address.gone()
            time.sleep(LOOK_SECONDS)

    def _listens(self, seconds: float) -> bool:
        """Whether the process greets a new client within some seconds."""
        if self._process is None or self._process.poll() is not None:
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(seconds)
            with suppress(OSError):
                client.connect(self._address.path)
                return bool(client.recv(1))
        return False

    def _end(self) -> None:
        if self._process:
            processes.end(self._process, processes.GRACE_SECONDS)
            processes.children.discard(self._process)
            if self._process.stdout:
                self._process.stdout.close()
        self._process = None
        self._started.close()
