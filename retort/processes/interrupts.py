"""Interrupts (SIGTERM, Ctrl-C) that wait until work that must be whole is done."""

import contextlib
import signal
import threading
from collections.abc import Iterator

INTERRUPTS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def held() -> Iterator[list[int]]:
    """Gives a list in which interrupts are noted during the block, which then runs to its end.

    Outside the main thread it holds none, because Python handles signals in the main thread alone.
    """
    noted: list[int] = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
    # A handler that was not set from Python cannot be put back.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or None in handlers.values():
        yield noted
        return
    for number in handlers:
        signal.signal(number, lambda caught, _: noted.append(caught))
    try:
        yield noted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Lets an interrupt that comes during the block take effect after it."""
    with contextlib.ExitStack() as stack:
        noted = stack.enter_context(held())
        try:
            yield
        finally:
            stack.close()
            for number in noted[:1]:
                signal.raise_signal(number)
