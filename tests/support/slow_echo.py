"""The engine echo with a delay before each answer, which notes whom it was asked by.

It appends "process id, request id" to the file `asked` beside the folder of its model, and waits
the seconds in the file `seconds` there, so that a test can speed it up on the way.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from retort.engines import Answer, Request, Settings, echo

GIVES_SIGNAL = SCORES = CONTINUES = REMOTE = False
parse = echo.parse


def open_engine(settings: Settings) -> "SlowEcho":
    """Returns an engine that repeats after a while."""
    return SlowEcho(settings)


class SlowEcho(echo.EchoEngine):
    """Repeats one request after the other."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._beside = Path(settings.model).parent
        self.steps = 0

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the answers in the order of the requests."""
        for request in requests:
            if request is None:
                continue
            with (self._beside / "asked").open(
                "a"
            ) as asked:  # one write: lines of several processes stay whole
                asked.write(f"{os.getpid()} {request.id}\n")
            time.sleep(float((self._beside / "seconds").read_text()))
            self.steps += 1
            yield from super().generate([request])
