"""A process that imports what children need, once, and makes each of them by a fork of itself.

It belongs to the process that started it (forks.py), imports on demand, runs nothing else, and ends
with its owner, for whose end its children look. Note: it must have no thread, which a fork would
not have.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from retort.processes import __main__ as child
from retort.processes import libraries, pages

MESSAGE_BYTES = 1 << 18
# The modules that are imported here, and the functions that were called to import more.
imported: set[str] = set()
# The pages of files after that, with which a measured child begins.
mapped: list[pages.Range] = []


def main() -> None:
    """Serves the owner at the socket whose number is given, until that one is gone, and then its
    children, until they have ended."""
    gc.disable()  # imports make millions of objects that stay; each child enables it for itself
    owner = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    running: dict[int, int] = {}
    is_owned = True
    while is_owned or running:
        ready, _, _ = select.select([woken, *([owner.fileno()] if is_owned else [])], [], [])
        if woken in ready:
            os.read(woken, MESSAGE_BYTES)
            _reap(running)
        if owner.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(owner, MESSAGE_BYTES, 4)
            if not message:
                is_owned = False
                continue
            request, pid = json.loads(message), -1
            with contextlib.suppress(OSError):  # without an answer the child will be no fork
                with _errors_to(fds[2] if fds[1:] else fds[0]):
                    _prepare(request)
                pid = os.fork() if fds[1:] else -1
            if pid == 0:
                for other in (owner.fileno(), woken, wake, *running.values()):
                    os.close(other)
                pages.populate(mapped)
                _become(request, fds[:-1], fds[-1])
            if pid > 0:
                running[pid] = fds.pop()
            for each in fds:
                os.close(each)


def _reap(running: dict[int, int]) -> None:
    """Tells of each child that has ended how it did."""
    for pid in list(running):
        if (ended := os.waitpid(pid, os.WNOHANG))[0]:
            status = running.pop(pid)
            with contextlib.suppress(OSError):  # nobody wants to know any more
                os.write(status, f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
            os.close(status)


@contextlib.contextmanager
def _errors_to(log: int) -> Iterator[None]:
    """Has what is printed go to a child's log: what libraries complain of they say once, here."""
    kept = os.dup(1), os.dup(2)
    for number in (1, 2):
        os.dup2(log, number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        for number, own in enumerate(kept, start=1):
            os.dup2(own, number)
            os.close(own)


def _prepare(request: dict[str, Any]) -> None:
    """Imports what the child would import, in its order. What fails is in its log, and fails there
    again. Raises `OSError` where a measured child could not be a fork."""
    module = request["module"]
    wanted = [*([module] if module.startswith("retort.") else ()), *request["libraries"]]
    if not (missing := [name for name in wanted if name not in imported]):
        return
    if request["is_measured"]:
        pages.of_files()
    for name in missing:
        imported.add(name)
        where, _, function = name.partition(":")
        started = time.process_time()
        try:
            found = importlib.import_module(where)
            if function:
                with libraries.lean_imports():
                    getattr(found, function)()
                libraries.inherited_seconds += time.process_time() - started
        except Exception:
            traceback.print_exc()
    gc.freeze()
    if request["is_measured"]:
        mapped[:] = pages.of_files()


def _become(request: dict[str, Any], streams: list[int], status: int) -> NoReturn:
    """Makes this fork what a new process would be, and runs its function."""
    os.setsid()
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["words"]
    with contextlib.suppress(OSError):
        _show([sys.executable, "-m", "retort.processes", *request["words"]])
    child.main()


def _show(command: list[str]) -> None:
    """Writes a command over this process's own, for `ps` and whoever looks for a stage."""
    first, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = "\0".join([*command, ""]).encode()[: end - first - 1]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(first)
        memory.write(text.ljust(end - first - 1) + b"\0")


if __name__ == "__main__":
    main()
