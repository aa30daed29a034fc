"""Runs a function in a process of its own, which ends when it must: timeout, cancel, parent gone.

Only so is a model's memory given back for certain. The child's own output, and that of every
library in it, goes to a log file; what it has to say travels as JSON lines. The surprise: the
child holds its standard input open only to notice that its parent has died.
"""

import contextlib
import gc
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from retort import errors
from retort.events import Event, Reporter

GRACE_SECONDS = 15.0
# What vLLM, torch and Python call an engine's death.
DEATHS = ("EngineDeadError", "EngineGenerateError", "OutOfMemoryError", "MemoryError")


def run(
    function: str,
    arguments: dict[str, Any],
    report: Reporter,
    log: Path,
    runtime: dict[str, Any],
) -> Any:
    """Returns what `module:function(report=..., **arguments)` returns; both sides are JSON.

    `runtime` is the section's runtime: `timeout_seconds`, and `num_threads`, `num_processes` and
    `stall_seconds` where given. The last is how long a child that said it is alive may then say
    nothing. Several processes are started by torchrun; what the first of them returns counts.

    Raises the function's own user, stage or store error; `EngineDiedError` when it crashed, was
    killed, hung or ran out of memory; `StageError` when it ran out of time. In every case no
    process of its group is left behind.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    outcome: Event | None = None
    with tempfile.TemporaryDirectory(prefix="retort-", ignore_cleanup_errors=True) as scratch:
        given = Path(scratch) / "arguments.json"
        given.write_text(json.dumps(arguments))
        more = {"TMPDIR": scratch, **_threads(runtime)}
        number = runtime.get("num_processes", 1)
        process = _start([function, str(log), str(given)], log, more, number)
        try:
            for event in _events(process, runtime, function):
                if event["kind"] in ("result", "error"):
                    outcome = outcome or event
                elif event["kind"] != "alive":
                    report.emit(event)
            process.wait()
        finally:
            _end(process)
    if outcome and outcome["kind"] == "result":
        return outcome["value"]
    raise _error(outcome, process.returncode, log)


def _start(
    arguments: list[str], log: Path, more: dict[str, str], num_processes: int
) -> "subprocess.Popen[str]":
    module = ["-m", "retort.child"]
    if num_processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        module = [*launcher, f"--nproc-per-node={num_processes}", *module]
    with log.open("a") as stream:
        return subprocess.Popen(
            [sys.executable, *module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
            env={**os.environ, **more},
        )


def _threads(runtime: dict[str, Any]) -> dict[str, str]:
    """Returns the environment that bounds a child's threads: read when its libraries are loaded."""
    number, many = runtime.get("num_threads"), runtime.get("num_processes", 1)
    if number is None and many > 1:
        number = max(1, (os.cpu_count() or 1) // many)
    return {"OMP_NUM_THREADS": str(number)} if number else {}


def _events(
    process: "subprocess.Popen[str]", runtime: dict[str, Any], function: str
) -> Iterator[Event]:
    """Yields the child's events until it closes its output, hangs, or the time is over."""
    lines: queue.Queue[str | None] = queue.Queue()
    stdout = process.stdout
    assert stdout

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + runtime["timeout_seconds"]
    stall = float("inf")
    while True:
        wait = min(deadline - time.monotonic(), stall)
        try:
            line = lines.get(timeout=max(0.0, wait))
        except queue.Empty:
            if time.monotonic() < deadline:
                raise errors.EngineDiedError(
                    f"the stage's process did nothing for {stall:g} seconds (stall_seconds) and "
                    "was ended"
                ) from None
            raise errors.StageError(
                f"{function} ran longer than timeout_seconds={runtime['timeout_seconds']:g} and "
                "was ended; finished work is kept, raise the section's runtime.timeout_seconds "
                "and run again"
            ) from None
        if line is None:
            return
        event = json.loads(line)
        if event["kind"] == "alive":
            stall = runtime.get("stall_seconds") or stall
        yield event


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends the child's whole process group: asked first, killed after a grace."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    if process.stdout:
        process.stdout.close()


def _signal_group(process: "subprocess.Popen[str]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.kill()


def _error(outcome: Event | None, returncode: int, log: Path) -> Exception:
    if outcome is None:
        cause = f"ended with exit code {returncode}"
        if returncode == -9:
            cause = "was killed (signal 9), most likely for want of memory"
        return errors.EngineDiedError(f"the stage's process {cause}; its log is {log}")
    kind, message = outcome["type"], outcome["message"]
    if kind in ("SpecError", "DataError"):
        return errors.USER_ERRORS[kind == "DataError"](message)
    if kind == "StoreError":
        return errors.StoreError(message, transient=bool(outcome.get("transient")))
    if kind == "StageError":
        return errors.StageError(message)
    died = kind in DEATHS or "out of memory" in message.lower()
    shape = errors.EngineDiedError if died else errors.StageError
    return shape(f"{kind}: {message}; the log is {log}")


def main() -> NoReturn:
    """The child's side: `python -m retort.child module:function LOG ARGUMENTS`, the last a file.

    Of several processes that torchrun started, the first alone speaks; any may say its error.
    """
    function, log, given = sys.argv[1:4]
    speaks = os.environ.get("RANK", "0") == "0"
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    lock = threading.Lock()

    def emit(event: Event) -> None:
        if not speaks and event["kind"] != "error":
            return
        with lock, contextlib.suppress(OSError):  # nobody listens when the parent is gone
            channel.write(json.dumps(event) + "\n")

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    arguments = json.loads(Path(given).read_text())
    orphaned = threading.Event()
    threading.Thread(target=_end_with_parent, args=(orphaned,), daemon=True).start()
    code = 0
    try:
        target = _imported(function)
        emit({"kind": "result", "value": target(report=Reporter(emit), **arguments)})
    except BaseException as error:
        traceback.print_exc()
        emit(
            {
                "kind": "error",
                "type": type(error).__name__,
                "message": str(error),
                "transient": getattr(error, "transient", False),
            }
        )
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        channel.close()
    if orphaned.is_set():
        _end_group()
    # Not sys.exit: threads that a library left running must not hold the process.
    os._exit(code)


def _imported(function: str) -> Any:
    """Returns `module:function`. What an import makes stays: it is never looked through for
    garbage, which for the heavy libraries would take as long as the rest of their import."""
    module, _, name = function.partition(":")
    gc.disable()
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        gc.freeze()
        gc.enable()


def peak_memory_bytes() -> int:
    """Returns the most memory this process has held: of GPUs where one is used, else resident."""
    return peak_gpu_memory_bytes() or peak_host_memory_bytes()


def peak_host_memory_bytes() -> int:
    """Returns the most memory of the host that this process has held (resident), bytes.

    On a machine without that figure, 0.
    """
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def peak_gpu_memory_bytes() -> int | None:
    """Returns the most memory of GPUs that this process has reserved, bytes, all devices together.

    None where it used none; what other processes hold for it is not seen.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    return sum(int(torch.cuda.max_memory_reserved(device)) for device in devices) or None


def _end_with_parent(orphaned: threading.Event) -> None:
    """Waits for the parent's death; then the work is interrupted, and after a grace all is killed.

    The interrupt lets the child keep what is finished. It goes to the main thread: a signal.
    """
    sys.stdin.read()
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _end_group()


def _end_group() -> NoReturn:
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
