"""The child's side of `retort.processes`: runs one function, and ends when its parent does.

Note: standard output carries JSON lines, so whatever a library prints is sent to the log, from
before anything is imported.
"""

import _thread
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from retort.errors import BY_NAME, StoreError, disk_cause
from retort.events import Event, Reporter
from retort.processes import GRACE_SECONDS

# A thread begins within this time, or never.
BEGIN_SECONDS = 60.0


def main() -> NoReturn:
    """Runs `python -m retort.processes module:function LOG ARGUMENTS`, where ARGUMENTS is a JSON
    file, and LOG a file or `-` for standard error.

    Of several processes that torchrun started only rank 0 reports events; any may report an error.
    """
    function, log, arguments_file = sys.argv[1:4]
    is_first = os.environ.get("RANK", "0") == "0"
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    if log != "-":
        with open(log, "a") as stream:
            os.dup2(stream.fileno(), 2)
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: Event) -> None:
        if not is_first and event["kind"] != "error":
            return
        with lock, contextlib.suppress(OSError):  # nobody listens when the parent is gone
            channel.write(json.dumps(event) + "\n")

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    arguments = json.loads(Path(arguments_file).read_text())
    orphaned = threading.Event()
    code = 0
    try:
        watch_parent(orphaned, BEGIN_SECONDS)
        target = _imported(function)
        emit({"kind": "result", "value": target(report=Reporter(emit), **arguments)})
    except BaseException as error:
        emit({"kind": "error", **facts_of(error)})
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        code = 1
    for flush in (sys.stdout.flush, sys.stderr.flush, channel.flush):
        with contextlib.suppress(OSError):
            flush()
    if orphaned.is_set():
        end_group()
    # Not sys.exit: threads that a library left running must not hold the process.
    os._exit(code)


def facts_of(error: BaseException) -> Event:
    """Returns an error's class, message and whether it is transient; what a disk refused becomes a
    store error."""
    kind, cause = type(error).__name__, disk_cause(error, "TMPDIR or --store")
    if kind not in BY_NAME and cause:
        path = getattr(error, "filename", None) or f"a disk of this machine ({error})"
        return {"type": StoreError.__name__, "message": f"{path}: {cause}", "transient": False}
    is_transient = bool(getattr(error, "transient", False))
    return {"type": kind, "message": str(error), "transient": is_transient}


def _imported(function: str) -> Any:
    """Returns `module:function`. The garbage collector skips all that an import makes: for the
    heavy libraries it would take as long as the rest of the import, and finds nothing."""
    module, _, name = function.partition(":")
    gc.disable()
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        gc.freeze()
        gc.enable()


def watch_parent(orphaned: threading.Event, seconds: float) -> None:
    """Starts the thread that waits for the parent's death.

    Raises `MemoryError` where there is no memory for it. Note: `Thread.start` would wait without
    end for a thread that found none when it began.
    """
    begun = threading.Event()
    try:
        _thread.start_new_thread(_end_with_parent, (orphaned, begun))
    except RuntimeError as error:
        raise MemoryError(str(error)) from error
    if not begun.wait(seconds):
        raise MemoryError("a thread that was started did not begin")


def _end_with_parent(orphaned: threading.Event, begun: threading.Event) -> None:
    """Waits for the parent's death; then interrupts the main thread by a signal, so that it can
    keep what is finished, and after a grace kills the group."""
    begun.set()
    sys.stdin.read()
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    end_group()


def end_group() -> NoReturn:
    """Kills this process and all of its group."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
