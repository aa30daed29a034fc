"""The faults, each a function of the cell under way, that hits at the cell's moment."""

import contextlib
import mmap
import os
import resource
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil
from mlflow import MlflowClient

from benchmarks.failures.command import CLOCK_FILE
from retort.tracking.registry import SOURCE
from tests.support.slow_s3 import INTERNAL, RESET, SLOW_DOWN, Asked, Fault

if TYPE_CHECKING:
    from benchmarks.failures.scenario import Bench

SHIFT_SECONDS = 7200
# What Python itself takes, and no library beside it.
CHILD_BYTES = 200 << 20
WATCH_SECONDS = 20.0
PAUSE_SECONDS = 0.2
DENIED = Fault(403, "AccessDenied")


def prepare(bench: "Bench") -> None:
    """Makes what a fault needs before the command starts."""
    if bench.cell.fault.startswith("clock_"):
        path = bench.folder / "clock"
        path.write_bytes(struct.pack("l", 0))
        bench.env[CLOCK_FILE] = str(path)


def mend(bench: "Bench") -> None:
    """Makes room on the disk again and lets it be written."""
    if bench.disk and bench.cell.fault == "read_only":
        subprocess.run(["mount", "-o", "remount,rw", str(bench.disk)], check=True)
    if bench.disk:
        (bench.disk / "filler").unlink(missing_ok=True)


def children(bench: "Bench") -> list[psutil.Process]:
    """Returns the processes in which the stage's functions run."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(bench.commands[0].pid).children(recursive=True)
        return [each for each in found if _is_stage(each)]
    return []


def stages_of(folder: str) -> list[psutil.Process]:
    """Returns the processes of stages whose log is below a folder."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        words = each.info["cmdline"] or []
        if "retort.processes" in words and any(word.startswith(folder) for word in words):
            found.append(each)
    return found


def _is_stage(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "retort.processes" in process.cmdline()
    return False


def kill_group(bench: "Bench") -> None:
    """Kills the command's process group, as a terminal that closes does."""
    os.killpg(bench.commands[0].pid, signal.SIGKILL)


def kill_child(bench: "Bench") -> None:
    """Kills what the stage's function runs in."""
    victims = children(bench)
    assert victims, "the stage has no child"
    for each in victims:
        each.kill()


def terminate(bench: "Bench") -> None:
    """Sends SIGTERM to the command."""
    os.kill(bench.commands[0].pid, signal.SIGTERM)


def fill_disk(bench: "Bench") -> None:
    """Takes all that is free of the store's disk."""
    assert bench.disk
    left = os.statvfs(bench.disk)
    with (bench.disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, left.f_bavail * left.f_frsize)


def read_only(bench: "Bench") -> None:
    """Lets nobody write the store's disk any more. A file that is open for writing is closed first,
    as the kernel wants it."""
    for _ in range(100):
        command = ["mount", "-o", "remount,ro", str(bench.disk)]
        if not subprocess.run(command, check=False, capture_output=True).returncode:
            return
        time.sleep(0.05)
    raise RuntimeError("the disk could not be made read-only: a file is open for writing")


def s3_errors(bench: "Bench") -> None:
    """Lets every third request fail for a passing reason, each of them once."""
    assert bench.s3
    kinds, count = (SLOW_DOWN, INTERNAL, RESET), iter(range(1 << 30))

    def behave(asked: Asked) -> Fault | None:
        number = next(count)
        return kinds[number // 3 % 3] if number % 3 == 0 and asked.times == 1 else None

    bench.s3.behave = behave


def s3_slow(bench: "Bench") -> None:
    """Lets every request wait."""
    assert bench.s3

    def behave(asked: Asked) -> None:
        time.sleep(PAUSE_SECONDS)

    bench.s3.behave = behave


def s3_denied(bench: "Bench") -> None:
    """Refuses every request that writes."""
    assert bench.s3

    def behave(asked: Asked) -> Fault | None:
        is_write = asked.what in ("put", "part", "begin", "complete", "delete")
        return DENIED if is_write else None

    bench.s3.behave = behave


def http(fault: str, times: int) -> Callable[["Bench"], None]:
    """Returns a fault of the endpoint that so many requests meet."""

    def hit(bench: "Bench") -> None:
        bench.caller.misbehave(fault, times)  # type: ignore[arg-type]

    return hit


def out_of_memory(bench: "Bench") -> None:
    """Allows each child of the stage, from its start, little memory."""

    def watch() -> None:
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end and not bench.is_over:
            for each in children(bench):
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    limit = max(CHILD_BYTES, each.memory_info().vms)
                    resource.prlimit(each.pid, resource.RLIMIT_AS, (limit, limit))
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()


def shift_clock(seconds: int) -> Callable[["Bench"], None]:
    """Returns the fault that sets the wall clock of all processes of the cell."""

    def hit(bench: "Bench") -> None:
        with open(bench.env[CLOCK_FILE], "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            page[:] = struct.pack("l", seconds)

    return hit


def second_run(bench: "Bench") -> None:
    """Starts the same job on the same store."""
    bench.start()


def mlflow_away(bench: "Bench") -> None:
    """Breaks every connection to MLflow."""
    assert bench.mlflow
    bench.mlflow.behave = lambda asked: RESET


def prefect_away(bench: "Bench") -> None:
    """Ends every connection to Prefect, and takes no more."""
    assert bench.prefect
    bench.prefect.cut()


def registered_twice(bench: "Bench") -> str:
    """Returns what is wrong with the versions of the cell's student in MLflow, or nothing."""
    from benchmarks.failures.scenario import sources_of

    client, source = MlflowClient(bench.lab.servers.mlflow), sources_of(bench)
    versions = client.search_model_versions("name = 'tiny'")
    number = sum(found.tags.get(SOURCE) == source for found in versions)
    return "" if number == 1 else f"MLflow has {number} versions of the released student"


HITS: dict[str, Callable[["Bench"], None]] = {
    "sigkill": kill_group,
    "sigkill_child": kill_child,
    "sigterm": terminate,
    "disk_full": fill_disk,
    "s3_errors": s3_errors,
    "s3_slow": s3_slow,
    "s3_403": s3_denied,
    "http_429": http("429", 6),
    "http_500": http("500", 1 << 30),
    "http_hang": http("hang", 4),
    "http_garbage": http("garbage", 1 << 30),
    "engine_death": http("dead", 1 << 30),
    "out_of_memory": out_of_memory,
    "clock_back": shift_clock(-SHIFT_SECONDS),
    "clock_ahead": shift_clock(SHIFT_SECONDS),
    "two_runs": second_run,
    "read_only": read_only,
    "mlflow_away": mlflow_away,
    "prefect_away": prefect_away,
}
