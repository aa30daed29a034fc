"""Where the events of a stage go: to the terminal, if there is one, and to its run in Prefect.

Prefect gets a line of log now and then, and artifacts. A thread of its own sends the artifacts,
with short timeouts, so that a server that is slow or away delays no stage.
"""

import contextlib
import contextvars
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events.worker import EventsWorker
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from retort.events import Event, shown
from retort.jobs.run import Listener

LOG_EVERY_SECONDS = 5.0
MOVE_EVERY_SECONDS = 5.0
# A request to Prefect is given up after this time, and after a failure none is made for a while.
ANSWER_SECONDS, PAUSE_SECONDS = 5.0, 30.0
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
AWAY = "the Prefect server does not answer ({}); the job goes on, and its pages lag behind"
# Set by the command line; a worker has none.
terminals: list[Listener] = []
_last_logged: dict[str, float] = {}
_waiting: list["Future[bool]"] = []

Send = Callable[[SyncPrefectClient], object]


def tell(stage: str, event: Event) -> None:
    """Passes one event on: all of it to terminals, some of it to Prefect."""
    for terminal in terminals:
        terminal(stage, event)
    if event["kind"] == "metrics":
        return
    if event["kind"] == "progress":
        _move(stage, event)
        now = time.monotonic()
        if now - _last_logged.get(stage, 0.0) < LOG_EVERY_SECONDS:
            return
        _last_logged[stage] = now
    _logger().info("%s", line(stage, event))


def line(stage: str, event: Event) -> str:
    """Returns an event as plain text that a terminal may print."""
    text = str(event["kind"])
    if event["kind"] == "progress":
        note = f", {event['note']}" if event["note"] else ""
        text = f"{event['done']:,} of {event['total']:,} {event['unit']}{note}"
    elif event["kind"] == "note":
        text = event["text"]
    return shown(f"{stage}: {text}")


def markdown(text: str) -> str:
    """Returns a text as Markdown that shows it, whatever signs of Markdown or HTML it holds."""
    return PUNCTUATION.sub(r"\\\1", shown(text))


class Outbox:
    """Sends to Prefect what it is given, in order, in a thread of its own, without retries.

    Of what waits under one key only the latest is sent. A server that does not answer is reported
    once; what waits then is dropped.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Send] = {}
        self._changed = threading.Condition()
        self._is_sending = self._is_reported = False
        self._pause_until = 0.0
        self._thread: threading.Thread | None = None

    def put(self, key: str, send: Send) -> None:
        """Sends something soon; does nothing while the server is taken to be away."""
        with self._changed:
            if time.monotonic() < self._pause_until:
                return
            self._waiting.pop(key, None)
            self._waiting[key] = send
            if self._thread is None or not self._thread.is_alive():
                # The thread needs this one's settings: the address of the server is among them.
                run = contextvars.copy_context().run
                self._thread = threading.Thread(target=run, args=(self._run,), daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Returns when all is sent, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_sending, seconds)

    def _run(self) -> None:
        with brief(), get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as c:
            while send := self._next():
                try:
                    send(c)
                except Exception as error:  # whatever the server, the network or Prefect raises
                    self._report(error)
                finally:
                    with self._changed:
                        self._is_sending = False
                        self._changed.notify_all()

    def _next(self) -> Send | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting, PAUSE_SECONDS):
                self._thread = None
                return None
            self._is_sending = True
            return self._waiting.pop(next(iter(self._waiting)))

    def _report(self, error: Exception) -> None:
        with self._changed:
            self._waiting.clear()
            self._pause_until = time.monotonic() + PAUSE_SECONDS
            is_reported, self._is_reported = self._is_reported, True
        if not is_reported:
            text = AWAY.format(type(error).__name__)
            for terminal in terminals:
                terminal("prefect", {"kind": "note", "text": text})
            logging.getLogger("retort").warning(text)


outbox = Outbox()


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Within the block, a request to Prefect that fails is not tried again."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Lets the job go on where Prefect does not answer a request of the block, which ends there."""
    with brief(), contextlib.suppress(httpx.HTTPError):
        yield


def leave(kind: str, key: str, data: object, description: str | None = None) -> None:
    """Leaves an artifact at the flow run: a link, a table or Markdown."""
    run = flow_run.get_id()
    made = ArtifactCreate(
        type=kind,
        key=key,
        data=data,
        description=description,
        flow_run_id=UUID(run) if run else None,
    )
    outbox.put(key, lambda client: client.create_artifact(made))


def end(seconds: float) -> None:
    """Waits until all that goes to Prefect is sent, or for about so many seconds."""
    deadline = time.monotonic() + seconds
    outbox.flush(seconds)
    _waiting.clear()
    for worker in (APILogWorker, EventsWorker):
        result = worker.drain_all(timeout=max(0.1, deadline - time.monotonic()))
        if isinstance(result, tuple):
            _waiting.extend(result[1])


def is_stuck() -> bool:
    """Whether something still waits for a server that does not take it."""
    return any(not future.done() for future in _waiting)


class _Progress:
    """The progress artifact of a task run, which is made with its first progress."""

    def __init__(self, stage: str, task_run_id: str, flow_run_id: str | None):
        # Prefect's keys hold no other sign.
        self._key = f"{stage}-progress".replace("_", "-")
        self._runs = UUID(task_run_id), UUID(flow_run_id) if flow_run_id else None
        self._id: UUID | None = None
        self.moved = 0.0

    def send(self, client: SyncPrefectClient, percent: float, text: str) -> None:
        if self._id is None:
            made = ArtifactCreate(
                type="progress",
                key=self._key,
                data=percent,
                description=text,
                task_run_id=self._runs[0],
                flow_run_id=self._runs[1],
            )
            self._id = client.create_artifact(made).id
        else:
            client.update_artifact(self._id, ArtifactUpdate(data=percent, description=text))


_progress: dict[str, _Progress] = {}


def _move(stage: str, event: Event) -> None:
    """Moves the stage's progress artifact, now and then and at its end."""
    run = task_run.get_id()
    if run is None:
        return
    bar = _progress.setdefault(run, _Progress(stage, run, flow_run.get_id()))
    now = time.monotonic()
    if now - bar.moved >= MOVE_EVERY_SECONDS or event["done"] == event["total"]:
        bar.moved = now
        percent = 100.0 * event["done"] / max(event["total"], 1)
        text = markdown(line(stage, event))
        outbox.put(run, lambda client: bar.send(client, percent, text))


def _logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("retort")
