"""An engine that stays open in a process of its own while stages come and go, and its client.

The client is an engine to its stage: the server asks it for requests when the engine behind does,
and passes on each answer, so that both see what they would see of each other in one process. New
weights of the same shape are taken into the open engine. Note: only the end of a process is sure to
give back a model's memory, so for another engine, model or settings the server's begins anew; its
socket stays where it is.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from retort.engines import Answer, Request, Settings, Timing, find_engine
from retort.events import Reporter
from retort.processes.__main__ import end_group, facts_of
from retort.processes.resident import GONE, Address
from retort.records import JsonObject

# Requests that travel together; an engine is rarely so many ahead of its client.
REQUESTS_AT_ONCE = 16
# Between two signs of life, and how long the engine may go on with what nobody waits for.
BEAT_SECONDS, DROP_SECONDS = 0.5, 15.0
# What decides whether an open engine can take other weights, and what in it does not.
SHAPE_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"),
    *("tokenizer_config.json", "chat_template.jinja"),
)
NAMES = ("_name_or_path", "name_or_path", "transformers_version")


def serve(report: Reporter, address: dict[str, str]) -> None:
    """Serves one client after the other at an address, until the process is ended.

    An error of the engine is told to the client, and then ends the process: what it left in memory
    helps nobody.
    """
    # An exception could be lost where Python cleans up; and there is nothing here to be kept.
    signal.signal(signal.SIGTERM, lambda number, frame: end_group())
    place, variables, server = Address(**address), dict(os.environ), _Server()
    listener = Listener(place.path, "AF_UNIX", backlog=8, authkey=bytes.fromhex(place.key))
    while True:
        try:
            connection = listener.accept()
        except (AuthenticationError, ConnectionError, EOFError):
            continue  # somebody only looked whether this process listens
        with connection:
            client = _Client(connection)
            try:
                server.serve(client)
            except _ClientGoneError:
                continue
            except _OtherEngineError:
                listener.close()  # the client then waits until there is a socket again
                with contextlib.suppress(_ClientGoneError):
                    client.send("restarts", None)
                command = [sys.executable, "-m", "retort.processes", *sys.argv[1:]]
                os.execve(sys.executable, command, variables)


class _ClientGoneError(ConnectionError):
    """Nobody waits for what is under way any more."""


class _OtherEngineError(Exception):
    """The client needs another engine than the open one."""


class _Client:
    """The server's end of a connection; two threads may speak."""

    def __init__(self, connection: Connection):
        self._connection, self._lock = connection, threading.Lock()

    def send(self, kind: str, value: Any) -> None:
        """Says something."""
        try:
            with self._lock:
                self._connection.send((kind, value))
        except GONE as error:
            raise _ClientGoneError from error

    def receive(self) -> Any:
        """Returns what the client says."""
        try:
            return self._connection.recv()
        except GONE as error:
            raise _ClientGoneError from error

    def has_left(self) -> bool:
        """Whether the other end is closed, as far as the system knows."""
        poll = select.poll()
        poll.register(self._connection, 0)
        return bool(poll.poll(0))


# What a request brings itself, or no engine reads.
NOT_OPENED = ("parity_samples", "retry", "stall_seconds", "max_restarts", "timeout_seconds")


@dataclass(frozen=True)
class _Model:
    """What is open: `kind` is what other weights must share, `weights` tells them apart."""

    kind: str
    weights: str

    @classmethod
    def of(cls, engine: str, settings: Settings) -> "_Model":
        """Returns what an engine with these settings would be."""
        runtime = {key: value for key, value in settings.runtime.items() if key not in NOT_OPENED}
        plain = replace(settings, model="", state=None, home=None, runtime=runtime, max_tokens=0)
        folder = Path(settings.model)
        if not folder.is_dir():
            return cls(json.dumps([engine, settings.model, asdict(plain)]), settings.model)
        # An engine that takes weights has its seeds from the requests, or from this module.
        kind = [engine, asdict(replace(plain, seed=0)), [_content(folder / n) for n in SHAPE_FILES]]
        files = [(p.name, p.stat()) for p in sorted(folder.glob("*.safetensors"))]
        weights = [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in files]
        return cls(json.dumps(kind, sort_keys=True), json.dumps([str(folder.resolve()), weights]))


def _content(path: Path) -> Any:
    """Returns what a model's small file says: its knobs without names, or the digest of it all."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if not path.name.endswith("config.json"):
        return hashlib.sha256(data).hexdigest()
    return {key: value for key, value in json.loads(data).items() if key not in NAMES}


class _Server:
    """The open engine, and what a client may ask of it."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._model: _Model | None = None
        self._rests = self._lost_weights = False

    def serve(self, client: _Client) -> None:
        """Does what a client asks, until it leaves."""
        while True:
            name, given = client.receive()
            try:
                with self._watched(client):
                    value = self._do(client, name, given)
            except (_ClientGoneError, _OtherEngineError):
                raise
            except Exception as error:
                with contextlib.suppress(_ClientGoneError):
                    client.send("error", facts_of(error))
                raise
            client.send("done", value)

    def _do(self, client: _Client, name: str, given: tuple[Any, ...]) -> Any:
        if name == "open":
            return self._open(*given)
        if name == "rest":
            return self._rest(*given)
        call = getattr(self._engine, name)
        return self._answer(client, call) if name in ("generate", "score") else call(*given)

    def _open(self, engine: str, settings: Settings) -> JsonObject:
        """Returns the facts of the engine: the one that is open, with new weights where they are
        others, or the first."""
        settings = replace(settings, runtime={**settings.runtime, "is_resident": True})
        wanted, module = _Model.of(engine, settings), find_engine(engine)
        if self._engine is None:
            self._engine = module.open_engine(settings)
        else:
            self._take(wanted, settings)
        self._model = wanted
        facts: JsonObject = self._engine.facts
        return facts

    def _take(self, wanted: _Model, settings: Settings) -> None:
        """Makes the open engine what a new one with these weights would be.

        Raises `_OtherEngineError` where that is impossible.
        """
        assert self._model
        is_same = wanted == self._model and not self._lost_weights
        reload = getattr(self._engine, "reload", None)
        if wanted.kind != self._model.kind or not (is_same or reload):
            raise _OtherEngineError
        if self._rests:
            self._engine.wake()
        if not is_same and reload:
            reload(settings.model)
        self._rests = self._lost_weights = False
        self._engine.forget()
        if torch := sys.modules.get("torch"):
            torch.manual_seed(settings.seed)

    def _rest(self, keeps_weights: bool) -> None:
        """Gives back the accelerator's memory, where the engine can."""
        if self._engine is not None and hasattr(self._engine, "rest") and not self._rests:
            self._rests = bool(self._engine.rest(keeps_weights))
            self._lost_weights = self._rests and not keeps_weights

    def _answer(self, client: _Client, work: Callable[..., Any]) -> None:
        with contextlib.closing(work(self._requests(client))) as answers:
            for answer in answers:
                client.send("answer", answer)

    def _requests(self, client: _Client) -> Iterator[Request | None]:
        """Yields what the client's own stream of requests does, some at a time."""
        received: deque[Request | None] = deque()
        more = True
        while more:
            client.send("wants", REQUESTS_AT_ONCE)
            requests, more = client.receive()
            received += requests
            while received:
                yield received.popleft()

    @contextlib.contextmanager
    def _watched(self, client: _Client) -> Iterator[None]:
        """Tells the client how far the engine is, and ends the process where it goes on although
        the client has left: it may hang."""
        done = threading.Event()

        def watch() -> None:
            last, left_at = -1, 0.0
            while not done.wait(BEAT_SECONDS):
                if client.has_left():
                    left_at = left_at or time.monotonic()
                    if time.monotonic() - left_at > DROP_SECONDS and self._engine:
                        end_group()
                    continue
                steps = getattr(self._engine, "steps", -1)
                if steps != last:
                    with contextlib.suppress(_ClientGoneError):
                        client.send("steps", steps)
                last = steps

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class ResidentEngine:
    """The engine of a resident process, as a stage sees it. `steps` grows while it works."""

    def __init__(self, address: Address, engine: str, settings: Settings):
        self._address, self._opening = address, (engine, settings)
        self._connection: Connection | None = None
        self.steps = 0
        self.facts: JsonObject = self._open()

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer when it is finished."""
        return self._answers("generate", requests)

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of existing answers."""
        return self._answers("score", requests)

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one answer, without the way to the process."""
        timing: Timing = self._call("timed", request)
        return timing

    def forget(self) -> None:
        """Drops what the engine has cached."""
        self._call("forget")

    def close(self) -> None:
        """Leaves the process to the next client; whoever asks again comes back."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _open(self) -> JsonObject:
        while True:
            self._connection = self._address.connect()
            facts = self._call("open", *self._opening)
            if facts is not None:
                return dict(facts)
            self.close()  # the process begins anew, for the open engine was another

    def _call(self, name: str, *given: Any) -> Any:
        return next(value for kind, value in self._heard(name, *given) if kind == "done")

    def _answers(self, name: str, requests: Iterable[Request | None]) -> Iterator[Answer]:
        source = iter(requests)
        try:
            for kind, value in self._heard(name):
                if kind == "answer":
                    yield value
                elif kind == "wants":
                    self._send(_some(source, value))
        except BaseException:  # what is under way is not wanted any more
            self.close()
            raise

    def _heard(self, name: str, *given: Any) -> Iterator[tuple[str, Any]]:
        """Yields what the server says to a call; its signs of life are kept here."""
        if self._connection is None:
            self._open()
        self._send((name, given))
        assert self._connection
        for kind, value in self._address.heard(self._connection):
            if kind == "steps":
                self.steps = value
            else:
                yield ("done", None) if kind == "restarts" else (kind, value)

    def _send(self, message: Any) -> None:
        try:
            assert self._connection
            self._connection.send(message)
        except GONE as error:
            raise self._address.gone() from error


def _some(source: Iterator[Request | None], most: int) -> tuple[list[Request | None], bool]:
    """Returns the next requests, up to the first that is None, and whether more may follow."""
    requests: list[Request | None] = []
    for request in source:
        requests.append(request)
        if request is None or len(requests) == most:
            return requests, True
    return requests, False
