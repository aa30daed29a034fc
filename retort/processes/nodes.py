"""Several machines that run one function together: the first calls, the others follow.

torchrun joins their processes with fixed ranks: a rendezvous that numbers the machines itself
(c10d) may put rank 0 anywhere, but rank 0 must be where the job listens. Note: each other machine
holds a connection to the first one. The call goes down it, errors come up, and when it is cut the
machine at its other end is gone, which torch would notice after ten minutes or more.
"""

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from retort.errors import SpecError, StageError
from retort.events import Event, Reporter
from retort.processes import machine

VARIABLE = "RETORT_RENDEZVOUS"
# How long the first machine waits for the others, which may still be starting.
JOIN_SECONDS = 600.0
HELLO_SECONDS = 10.0
POLL_SECONDS = 1.0
# What a process has after it was told to end, with a checkpoint to write.
LEAVE_SECONDS = 90.0
# A machine that lost its power says nothing: after 20 seconds it is asked, then every 10.
ASKS = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class LostNodeError(StageError):
    """A machine that trained with others is gone. Once there are enough, a new try continues."""

    transient = True


@dataclass(frozen=True)
class Place:
    """A machine's place among those that run a function together, and where torchrun meets."""

    rank: int = 0
    num_nodes: int = 1
    host: str = ""
    port: int = 0

    def torchrun(self, num_processes: int) -> list[str]:
        """Returns the words that start a module in `num_processes` processes of this machine."""
        words = ["-m", "torch.distributed.run", f"--nproc-per-node={num_processes}"]
        if self.num_nodes == 1:
            return [*words, "--standalone"]
        return [
            *words,
            f"--nnodes={self.num_nodes}",
            f"--node-rank={self.rank}",
            f"--master-addr={self.host}",
            f"--master-port={self.port}",
            f"--shutdown-timeout={LEAVE_SECONDS:.0f}",
        ]


class Line:
    """Holds a connection to another machine, over which JSON goes, a value a line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in ASKS.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.peer: str = connection.getpeername()[0].removeprefix("::ffff:")
        self.name = self.peer
        self._connection, self._lock = connection, threading.Lock()
        self._lines = connection.makefile("r", encoding="utf-8")

    def send(self, value: dict[str, Any]) -> None:
        """Sends a value; where nobody listens any more, nothing happens."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall((json.dumps(value) + "\n").encode())

    def take(self, within_seconds: float | None = None) -> dict[str, Any] | None:
        """Returns the next value, as soon as there is one; None where the line is cut, what comes
        is not ours, or nothing came in time."""
        try:
            self._connection.settimeout(within_seconds)
            text = self._lines.readline()
            self._connection.settimeout(None)
            found = json.loads(text) if text.endswith("\n") else None
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def is_cut(self) -> bool:
        """Whether the other end is gone, where it has nothing to say before it is spoken to."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def close(self) -> None:
        """Cuts the line, also while someone listens."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


def endpoint(given: str | None = None) -> tuple[str, int]:
    """Returns the host and port of `given`, or of the environment, where the first machine listens.

    Raises `SpecError` where they are not given, or are not HOST:PORT.
    """
    text = given or os.environ.get(VARIABLE, "")
    example = f"export {VARIABLE}=HOST:PORT, the first machine's address and a free port there"
    if not text:
        raise SpecError(f"{VARIABLE} is not set; {example}, on every machine")
    try:
        found = urlsplit(f"//{text}")
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise SpecError(f"{VARIABLE}: '{text}' is not HOST:PORT; {example}")
    return host, port


@contextlib.contextmanager
def gathered(
    call: dict[str, Any], num_nodes: int, report: Reporter
) -> Iterator[tuple[Place, list[Line]]]:
    """Gives this machine's place, the first, and a line to each other one, which got the call.

    Raises `SpecError` where no endpoint is given, `StageError` where its port is taken or too few
    machines come.
    """
    if num_nodes == 1:
        yield Place(), []
        return
    with contextlib.ExitStack() as held:
        lines = _awaited(num_nodes - 1, report, held)
        # From here the others find the first machine by the address at which they reached it.
        place = Place(0, num_nodes, "127.0.0.1", _free_port())
        for rank, line in enumerate(lines, start=1):
            line.send({**call, "rank": rank, "num_nodes": num_nodes, "port": place.port})
        yield place, lines


def _awaited(number: int, report: Reporter, held: contextlib.ExitStack) -> list[Line]:
    """Returns lines to so many other machines once they have come."""
    port, until = endpoint()[1], time.monotonic() + JOIN_SECONDS
    lines: list[Line] = []
    with _listening(port) as listener:
        many = f"{number} more machine{'s' * (number > 1)}"
        report.note(f"waiting at port {port} for {many}: `retort node` there")
        while len(lines) < number:
            if time.monotonic() > until:
                raise StageError(
                    f"{len(lines)} of {number} other machines came to port {port} within "
                    f"{JOIN_SECONDS:.0f} seconds; run `retort node` with {VARIABLE}=HOST:{port} "
                    "on each, or lower train.runtime.num_nodes"
                )
            with contextlib.suppress(OSError):  # nobody came, or has gone again
                line = Line(listener.accept()[0])
                held.callback(line.close)
                if _is_welcome(line, report):
                    lines.append(line)
                    report.note(f"{line.name} is here, {len(lines)} of {number}")
            lines = [line for line in lines if not line.is_cut]
    return lines


def _is_welcome(line: Line, report: Reporter) -> bool:
    """Whether it is a machine with the same Retort that has come."""
    hello = line.take(HELLO_SECONDS)
    if hello is None:
        return False
    line.name, theirs = f"{hello.get('name')} ({line.peer})", hello.get("retort")
    ours = machine.version_of("retort")
    if theirs != ours:
        text = f"{line.name} has Retort {theirs}, the job's machine {ours}"
        report.note(f"warning: {text}: it is sent away")
        line.send({"refused": f"{text}; use the same image or lock on all machines"})
        return False
    return True


def _listening(port: int) -> socket.socket:
    """Returns a socket that listens at all addresses of this machine: the name by which others
    reach it need not be one of its own."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise StageError(
            f"{VARIABLE}: cannot listen at port {port} of this machine: {error}; another job may "
            "be using it: wait for that one, or give another port on every machine"
        ) from error
    listener.settimeout(POLL_SECONDS)
    return listener


def _free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def heard(line: Line) -> Iterator[Event]:
    """Yields what another machine says is wrong, with its name, and at last that it is gone, where
    it went without a word."""
    spoke = False
    while (event := line.take()) is not None:
        if event.get("kind") == "error":
            spoke = True
            yield {**event, "message": f"on {line.name}: {event['message']}"}
        elif event.get("kind") == "ended":
            if event["code"] and not spoke:
                yield _lost(f"a process on {line.name} ended (its own output may say why)")
            return
    yield _lost(f"{line.name} is gone")


def _lost(what: str) -> Event:
    return {"kind": "error", "type": LostNodeError.__name__, "message": what}


def connect(where: tuple[str, int], until: float) -> Line | None:
    """Returns a line to the first machine as soon as it listens; None when that is not before
    `until`, in seconds of the monotonic clock."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError):  # nobody listens, or the name is nobody's yet
            line = Line(socket.create_connection(where, timeout=HELLO_SECONDS))
            line.send({"retort": machine.version_of("retort"), "name": socket.gethostname()})
            return line
        time.sleep(POLL_SECONDS)
    return None
