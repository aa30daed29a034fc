"""Runs a function in a child process, and ends it on a timeout, a cancel or the parent's death.

Only the end of a process is sure to give back a model's memory. The output of the child and of its
libraries goes to a log file; its events come back as JSON lines. The child's side is in
__main__.py; with a Ray cluster the function runs on its nodes (cluster_run.py). Note: the child
keeps its standard input open only to notice that its parent has died.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, Union

from retort import errors
from retort.events import Event, Reporter
from retort.plugins import FOLDER
from retort.processes import cluster_run, disk, forks
from retort.processes.cluster_run import Plan
from retort.processes.ray_cluster import LostNodeError
from retort.records import JsonObject

Result = TypeVar("Result")

GRACE_SECONDS = 15.0
# Variables that the processes of a cluster's nodes get from here.
TOLD = (FOLDER,)
Child = Union["subprocess.Popen[str]", forks.Fork]
children: set[Child] = set()
# After one process failed, the others get this long: they may be saving their work, or hang in a
# collective call whose other side is gone.
LINGER_SECONDS = 120.0
# The errors by which vLLM, torch and Python report that an engine died.
DEATHS = ("EngineDeadError", "EngineGenerateError")
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
# What other errors say for want of memory: CUDA, the loader of a library, the kernel, and Python
# where it cannot even make an error.
WANTS_MEMORY = (
    *("out of memory", "failed to map segment", "cannot allocate memory"),
    "error return without exception set",
)


def run(
    function: Callable[..., Result],
    arguments: JsonObject,
    report: Reporter,
    log: Path,
    runtime: Mapping[str, Any],
) -> Result:
    """Returns the result of `function(report=..., **arguments)`, called in a child process.

    The function is at the top level of a module, which the child imports; arguments and result are
    JSON.

    `runtime` is the runtime section of a stage: `timeout_seconds`, and where set `num_threads`,
    `num_processes`, `stall_seconds`, `cluster` (the JSON of a `ray_cluster.Cluster`) and, with that
    one, `num_nodes`. `stall_seconds` is how long a child may be silent after it reported that it is
    alive, `libraries` is a function that imports what the child will need, `is_measured` says that
    the child's memory is, so that nothing else may be in it, and `variables` names all that it gets
    of the environment. Several processes are started by torchrun; the result is that of rank 0.

    Raises the function's own user, stage or store error; `EngineDiedError` when it crashed, was
    killed, hung or ran out of memory; `LostNodeError` when a cluster's node is gone; `StageError`
    when it ran longer than allowed. In every case no process of its group is left.
    """
    name = name_of(function)
    outcomes: list[Event] = []
    with disk.temporary_folder() as scratch:
        process = start(name, arguments, runtime, log, scratch)
        children.add(process)
        try:
            for event in _events(process, runtime, name):
                if event["kind"] in ("result", "error"):
                    outcomes.append(event)
                elif event["kind"] != "alive":
                    report.emit(event)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:
            end(process, GRACE_SECONDS)
            children.discard(process)
            if process.stdout:
                process.stdout.close()
    outcome = min(outcomes, key=_weight, default=None)
    if outcome and outcome["kind"] == "result":
        result: Result = outcome["value"]
        return result
    raise error_of(outcome, process.wait(), log)


def end_all() -> None:
    """Ends the children that `run` started in any thread; each `run` then raises.

    An interrupt comes to the main thread alone; without this, children of others would go on.
    """
    for process in list(children):
        end(process, GRACE_SECONDS)


def name_of(function: Callable[..., Any]) -> str:
    """Returns "module:name" of a function; a main module has the name that it was run by."""
    module = sys.modules[function.__module__]
    name = module.__spec__.name if module.__name__ == "__main__" and module.__spec__ else ""
    return f"{name or module.__name__}:{function.__name__}"


def start(
    function: str, arguments: JsonObject, runtime: Mapping[str, Any], log: Path, scratch: Path
) -> Child:
    """Returns the process that runs a function, or has it run, and prints its events.

    `scratch` is a folder that outlives it.
    """
    path, plan = scratch / "arguments.json", _plan(runtime)
    words = plan.words()
    if plan.cluster:
        relayed = {"function": function, "given": arguments, "plan": asdict(plan)}
        words, function, arguments = Plan().words(), name_of(cluster_run.relay), relayed
    with disk.disk_errors(scratch, "TMPDIR"):
        path.write_text(json.dumps(arguments))
    given = [function, str(log), str(path)]
    environment = _environment(runtime, plan, scratch)
    with disk.open_log(log) as stream:
        if words == Plan().words() and _may_be_fork(runtime):
            imports, seconds = _imports(function, runtime, plan), runtime.get("timeout_seconds")
            if fork := forks.start(imports, given, environment, stream.fileno(), seconds):
                return fork
        return subprocess.Popen(
            [sys.executable, *words, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
            env=environment,
        )


def warm(function: Callable[..., Any], runtime: Mapping[str, Any], log: Path) -> None:
    """Has what a child will import that runs a function with this runtime imported meanwhile.

    Where it will be no fork nothing happens; what the libraries complain of goes to the log.
    """
    plan = _plan(runtime)
    imports = _imports(name_of(function), runtime, plan)
    if imports.libraries and plan.words() == Plan().words() and _may_be_fork(runtime):
        environment = _environment(runtime, plan, Path(tempfile.gettempdir()))
        with disk.open_log(log) as stream:
            forks.warm(imports, environment, stream.fileno())


def _may_be_fork(runtime: Mapping[str, Any]) -> bool:
    # A fork has in /proc the environment of the server.
    return runtime.get("variables") is None


def _imports(function: str, runtime: Mapping[str, Any], plan: Plan) -> forks.Imports:
    """Returns what can be imported for the fork that runs a function."""
    # A plug-in's may be another by the next child, and may not be for a process that forks.
    libraries = runtime.get("libraries")
    is_ours = getattr(libraries, "__module__", "").startswith("retort.") and not plan.cluster
    shared = [name_of(libraries)] if libraries and is_ours else []
    module, is_measured = function.partition(":")[0], bool(runtime.get("is_measured"))
    return forks.Imports(module, shared, is_measured)


def _environment(runtime: Mapping[str, Any], plan: Plan, scratch: Path) -> dict[str, str]:
    kept = runtime.get("variables")
    inherited = {name: v for name, v in os.environ.items() if kept is None or name in kept}
    return {**inherited, "TMPDIR": str(scratch), **plan.variables}


def _plan(runtime: Mapping[str, Any]) -> Plan:
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    return Plan(
        num_processes=runtime.get("num_processes", 1),
        num_nodes=runtime.get("num_nodes", 1),
        num_threads=runtime.get("num_threads") or 1,
        cluster=runtime.get("cluster") or {},
        variables=told | _threads(runtime),
    )


def _threads(runtime: Mapping[str, Any]) -> dict[str, str]:
    """Returns the variables that limit a child's threads, which its libraries read when loaded."""
    number, many = runtime.get("num_threads"), runtime.get("num_processes", 1)
    if number is None and many > 1:
        number = max(1, (os.cpu_count() or 1) // many)
    return {"OMP_NUM_THREADS": str(number)} if number else {}


def _events(process: Child, runtime: Mapping[str, Any], function: str) -> Iterator[Event]:
    """Yields the child's events, until it has ended or an error is so long ago that the rest is not
    waited for. Raises when the child hangs or its time is over."""
    received: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_put_all, args=(process.stdout, received), daemon=True).start()
    deadline = time.monotonic() + runtime["timeout_seconds"]
    stall = give_up = float("inf")
    while True:
        now = time.monotonic()
        try:
            item = received.get(timeout=max(0.0, min(deadline - now, stall, give_up - now)))
        except queue.Empty:
            now = time.monotonic()
            if now >= give_up:
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
        if not item:
            return
        event = json.loads(item)
        if event["kind"] == "alive":
            stall = runtime.get("stall_seconds") or stall
        if event["kind"] == "error":
            give_up = min(give_up, now + LINGER_SECONDS)
        yield event


def _put_all(source: Iterable[str], received: "queue.Queue[str]") -> None:
    for line in source:
        received.put(line)
    received.put("")


def end(
    process: Child,
    grace_seconds: float,
    first: int = signal.SIGTERM,
    *,
    kills_rest: bool = True,
) -> None:
    """Ends a process that leads a group: the group gets the signal `first`, then SIGTERM, then
    SIGKILL, with so many seconds between. `kills_rest` also kills what outlives the leader. The
    output can still be read."""
    for number in dict.fromkeys((first, signal.SIGTERM)):
        if process.poll() is None:
            _signal_group(process, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_seconds)
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if kills_rest or process.poll() is None:
        _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


def _signal_group(process: Child, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.kill()


def _weight(event: Event) -> int:
    """Returns the rank of an outcome: an error ranks before those that may follow from it."""
    if event["kind"] == "result":
        return 0
    if event["type"] in errors.BY_NAME:
        return 1
    return 2 if event["type"] == LostNodeError.__name__ else 3


def error_of(outcome: Event | None, returncode: int, log: Path) -> Exception:
    """Returns the error that a child reported, or what its end without a word means."""
    if outcome is None:
        cause = f"ended with exit code {returncode}"
        if returncode == -9:
            cause = "was killed (signal 9), most likely for want of memory"
        return errors.EngineDiedError(f"the stage's process {cause}; its log is {log}")
    kind, message = outcome["type"], outcome["message"]
    if kind in errors.BY_NAME:
        error = errors.BY_NAME[kind](message)
        if isinstance(error, errors.StoreError):
            error.transient = bool(outcome.get("transient"))
        return error
    if kind == LostNodeError.__name__:
        return LostNodeError(
            f"{message}; all up to the last checkpoint is kept, and the next attempt goes on from "
            f"there once the cluster has room; the log is {log}"
        )
    cause = f"{kind}: {message}" if message else kind
    if kind in OUT_OF_MEMORY or any(sign in message.lower() for sign in WANTS_MEMORY):
        return errors.EngineDiedError(
            f"the stage's process ran out of memory ({cause}); free some, or lower what the "
            f"section's runtime takes at once, and run the same command; the log is {log}"
        )
    shape = errors.EngineDiedError if kind in DEATHS else errors.StageError
    return shape(f"{cause}; the log is {log}")


def peak_memory_bytes() -> int:
    """Returns the peak memory of this process, bytes: of its GPUs if it uses any, else resident."""
    return peak_gpu_memory_bytes() or peak_host_memory_bytes()


def peaks() -> tuple[int, int | None]:
    """Returns the peak memory of this process, bytes: resident, and of its GPUs if it uses any."""
    return peak_host_memory_bytes(), peak_gpu_memory_bytes()


def peak_host_memory_bytes() -> int:
    """Returns the peak resident memory of this process, bytes; 0 where the system has no figure.

    Note: to Linux's `ru_maxrss` belongs what the process that started this one had at that moment,
    which may be more than a small model takes (exec_mmap in the kernel's fs/exec.c).
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def peak_gpu_memory_bytes() -> int | None:
    """Returns the peak GPU memory this process has reserved, bytes, over all devices; None where it
    used none. The memory of other processes that work for it is not included."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    return sum(int(torch.cuda.max_memory_reserved(device)) for device in devices) or None
