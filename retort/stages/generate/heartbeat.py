"""The heartbeat of an engine that works on something long; there is none when it hangs."""

import contextlib
import threading
from collections.abc import Iterator

from retort.engines import Engine
from retort.events import Reporter

BEAT_SECONDS = 1.0


@contextlib.contextmanager
def heartbeat(engine: Engine, report: Reporter) -> Iterator[None]:
    """Reports every second that the engine is alive, as long as its `steps` grow."""
    done = threading.Event()

    def beat() -> None:
        last = -1
        while not done.wait(BEAT_SECONDS):
            steps = getattr(engine, "steps", -1)
            if steps != last:
                report.emit({"kind": "alive"})
            last = steps

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
