"""Runs a function in a process of its own, which ends when it must: timeout, cancel, parent gone.

Only so is a model's memory given back for certain. The child's own output, and that of every
library in it, goes to a log file; what it has to say travels as JSON lines. Its side is in
__main__.py; nodes.py and follower.py are for work that several machines do together. The surprise:
the child holds its standard input open only to notice that its parent has died.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from retort import errors
from retort.events import Event, Reporter
from retort.processes import nodes

Result = TypeVar("Result")

GRACE_SECONDS = 15.0
# What is waited for once something went wrong: the other processes may be saving what is done, or
# hang in a collective whose other side is gone.
LINGER_SECONDS = 120.0
# What other machines have to say why, after the processes here have ended.
LAST_WORDS_SECONDS = 10.0
# What vLLM, torch and Python call an engine's death.
DEATHS = ("EngineDeadError", "EngineGenerateError", "OutOfMemoryError", "MemoryError")


def run(
    function: Callable[..., Result],
    arguments: dict[str, Any],
    report: Reporter,
    log: Path,
    runtime: dict[str, Any],
) -> Result:
    """Returns what `function(report=..., **arguments)` returns in a process of its own.

    The function stands at the top of a module, which the child imports anew; its arguments and its
    result are JSON.

    `runtime` is the section's runtime: `timeout_seconds`, and `num_threads`, `num_processes`,
    `num_nodes` and `stall_seconds` where given. The last is how long a child that said it is alive
    may then say nothing. Several processes are started by torchrun, on several machines once those
    have come (nodes.py); what the first of them all returns counts.

    Raises the function's own user, stage or store error; `EngineDiedError` when it crashed, was
    killed, hung or ran out of memory; `LostNodeError` when another machine went; `StageError` when
    it ran out of time. In every case no process of its group is left behind.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    name = _name_of(function)
    call = {"function": name, "arguments": arguments, "runtime": runtime}
    said: list[Event] = []
    with (
        nodes.gathered(call, runtime.get("num_nodes", 1), report) as (place, others),
        tempfile.TemporaryDirectory(prefix="retort-", ignore_cleanup_errors=True) as scratch,
    ):
        process = start(call, place, log, scratch)
        try:
            for event in _events(process, others, runtime, name):
                if event["kind"] in ("result", "error"):
                    said.append(event)
                elif event["kind"] != "alive":
                    report.emit(event)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:
            end(process, GRACE_SECONDS)
    outcome = min(said, key=_weight, default=None)
    if outcome and outcome["kind"] == "result":
        result: Result = outcome["value"]
        return result
    raise _error(outcome, process.returncode, log, place.num_nodes)


def _name_of(function: Callable[..., Any]) -> str:
    """Returns "module:name" of a function, where the main module goes by the name it was run as."""
    module = sys.modules[function.__module__]
    name = module.__spec__.name if module.__name__ == "__main__" and module.__spec__ else ""
    return f"{name or module.__name__}:{function.__name__}"


def start(
    call: dict[str, Any], place: nodes.Place, log: Path | None, scratch: str
) -> "subprocess.Popen[str]":
    """Returns the process, or torchrun, that runs a call's function and prints events.

    `scratch` is a folder that outlives it; without a log its output goes where this process's does.
    """
    given = Path(scratch) / "arguments.json"
    given.write_text(json.dumps(call["arguments"]))
    runtime, module = call["runtime"], ["-m", "retort.processes"]
    number = runtime.get("num_processes", 1)
    if number > 1 or place.num_nodes > 1:
        module = [*place.torchrun(number), *module]
    with log.open("a") if log else contextlib.nullcontext(sys.stderr) as stream:
        return subprocess.Popen(
            [sys.executable, *module, call["function"], str(log or "-"), str(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch, **_threads(runtime)},
        )


def _threads(runtime: dict[str, Any]) -> dict[str, str]:
    """Returns the environment that bounds a child's threads: read when its libraries are loaded."""
    number, many = runtime.get("num_threads"), runtime.get("num_processes", 1)
    if number is None and many > 1:
        number = max(1, (os.cpu_count() or 1) // many)
    return {"OMP_NUM_THREADS": str(number)} if number else {}


def _events(
    process: "subprocess.Popen[str]",
    others: list[nodes.Line],
    runtime: dict[str, Any],
    function: str,
) -> Iterator[Event]:
    """Yields the child's events, and the other machines' errors, until all are silent or were
    given up after an error. Raises when the child hangs or the time is over."""
    heard: queue.Queue[str | Event | None] = queue.Queue()
    for source, last in [(process.stdout, ""), *((nodes.heard(line), None) for line in others)]:
        threading.Thread(target=_put_all, args=(source, last, heard), daemon=True).start()
    deadline, num_open = time.monotonic() + runtime["timeout_seconds"], 1 + len(others)
    stall = given_up = float("inf")
    while num_open:
        now = time.monotonic()
        try:
            said = heard.get(timeout=max(0.0, min(deadline - now, stall, given_up - now)))
        except queue.Empty:
            now = time.monotonic()
            if now >= given_up:
                return
            if now < deadline:
                raise errors.EngineDiedError(
                    f"the stage's process did nothing for {stall:g} seconds (stall_seconds) and "
                    "was ended"
                ) from None
            raise errors.StageError(
                f"{function} ran longer than timeout_seconds={runtime['timeout_seconds']:g} and "
                "was ended; finished work is kept, raise the section's runtime.timeout_seconds "
                "and run again"
            ) from None
        now = time.monotonic()
        if not said:
            num_open -= 1
            given_up = min(given_up, now + LAST_WORDS_SECONDS if said == "" else given_up)
            continue
        event = json.loads(said) if isinstance(said, str) else said
        if event["kind"] == "alive":
            stall = runtime.get("stall_seconds") or stall
        if event["kind"] == "error":
            given_up = min(given_up, now + LINGER_SECONDS)
        yield event


def _put_all(source: Iterable[Any], last: str | None, heard: "queue.Queue[Any]") -> None:
    for said in source:
        heard.put(said)
    heard.put(last)


def end(process: "subprocess.Popen[str]", grace_seconds: float) -> None:
    """Ends the child's whole process group: asked first, killed after the grace."""
    stop(process, grace_seconds)
    if process.stdout:
        process.stdout.close()


def stop(process: "subprocess.Popen[str]", grace_seconds: float) -> None:
    """As `end`, but its output can still be read."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


def _signal_group(process: "subprocess.Popen[str]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.kill()


def _weight(event: Event) -> int:
    """Returns where an outcome stands among others: below are what others are a consequence of."""
    if event["kind"] == "result":
        return 0
    ours = {"SpecError": 1, "DataError": 1, "StoreError": 1, "StageError": 1, "LostNodeError": 2}
    return ours.get(event["type"], 3)


def _error(outcome: Event | None, returncode: int, log: Path, num_nodes: int) -> Exception:
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
    if num_nodes > 1 and kind in ("LostNodeError", "KeyboardInterrupt"):
        what = message if kind == "LostNodeError" else "one of the machines was told to end"
        return nodes.LostNodeError(
            f"{what}; the stage needs {num_nodes} machines. What is done up to the last checkpoint "
            f"is kept, and a new try continues once there are so many; the log is {log}"
        )
    died = kind in DEATHS or "out of memory" in message.lower()
    shape = errors.EngineDiedError if died else errors.StageError
    return shape(f"{kind}: {message}; the log is {log}")


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
