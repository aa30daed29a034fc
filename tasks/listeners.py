"""Who hears a stage's events in this process: the run's log in Prefect, and a terminal if any."""

import logging
import time

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from retort.events import Event
from retort.job import Listener

LOG_EVERY_SECONDS = 30.0
# Set by the command line; a worker has none.
terminals: list[Listener] = []
_last_said: dict[str, float] = {}


def tell(stage: str, event: Event) -> None:
    """Passes one event on: all of it to terminals, a line now and then to Prefect's log."""
    for terminal in terminals:
        terminal(stage, event)
    if event["kind"] == "metrics":
        return
    if event["kind"] == "progress":
        now = time.monotonic()
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


def _logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("retort")
