"""Who hears a stage's events in this process: the run in Prefect, and a terminal if there is one.

Prefect gets a line of log now and then, and a progress artifact that moves.
"""

import contextlib
import logging
import time
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from retort.events import Event
from retort.jobs.run import Listener

LOG_EVERY_SECONDS = 5.0
MOVE_EVERY_SECONDS = 5.0
# Set by the command line; a worker has none.
terminals: list[Listener] = []
_last_said: dict[str, float] = {}
_moved: dict[str, tuple[UUID, float]] = {}


def tell(stage: str, event: Event) -> None:
    """Passes one event on: all of it to terminals, some of it to Prefect."""
    for terminal in terminals:
        terminal(stage, event)
    if event["kind"] == "metrics":
        return
    if event["kind"] == "progress":
        now = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):  # a bar that does not move stops no stage
            _move(stage, event, now)
        if now - _last_said.get(stage, 0.0) < LOG_EVERY_SECONDS:
            return
        _last_said[stage] = now
    _logger().info("%s", line(stage, event))


def line(stage: str, event: Event) -> str:
    """Returns an event as one plain line."""
    if event["kind"] == "progress":
        note = f", {event['note']}" if event["note"] else ""
        return f"{stage}: {event['done']:,} of {event['total']:,} {event['unit']}{note}"
    if event["kind"] == "note":
        return f"{stage}: {event['text']}"
    return f"{stage}: {event['kind']}"


def _move(stage: str, event: Event, now: float) -> None:
    """Moves the stage's progress artifact, made with the task run's first progress."""
    run_id = task_run.get_id()
    if run_id is None:
        return
    percent = 100.0 * event["done"] / max(event["total"], 1)
    text = line(stage, event)
    if run_id not in _moved:
        key = f"{stage}-progress".replace("_", "-")  # Prefect's keys hold no other sign
        made = create_progress_artifact(progress=percent, key=key, description=text)
        _moved[run_id] = (cast(UUID, made), now)
    elif now - _moved[run_id][1] >= MOVE_EVERY_SECONDS or event["done"] == event["total"]:
        artifact = _moved[run_id][0]
        update_progress_artifact(artifact_id=artifact, progress=percent, description=text)
        _moved[run_id] = (artifact, now)


def _logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("retort")
