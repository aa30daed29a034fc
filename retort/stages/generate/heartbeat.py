"""A sign of life while an engine works on something long; none when it hangs."""

import contextlib
import threading
from collections.abc import Iterator

from retort.engines import Engine
from retort.events import Reporter

PULSE_SECONDS = 1.0


@contextlib.contextmanager
def pulse(engine: Engine, report: Reporter) -> Iterator[None]:
    """Says every few seconds that the engine works, as long as its `steps` grow."""
    done = threading.Event()

    def beat() -> None:
        last = -1
        while not done.wait(PULSE_SECONDS):
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
