"""What hostile input does: rows, specs, files and answers, each spoiled at random.

Every case must end, within seconds, in what it is for or in an error of `retort.errors`; a bad row
in quarantine with its reason. Anything else is a foreign error, or a hang.

`python -m benchmarks.fuzz [--seed N] [--rows N] [--specs N] [--files N] [--answers N]`; a case
depends on seed, kind and number alone, and `--case rows:123` runs it by itself with its traceback.
"""

import argparse
import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from random import Random

from benchmarks import Measure, show
from benchmarks.fuzz_cases import ROWS_A_FILE, answers_case, files_case, rows_case, specs_case

# As many as two cores do in eight minutes.
COUNTS = {"rows": 50_000, "specs": 3_000, "files": 10_000, "answers": 20_000}
PROCESSES, CHUNK = 2, 100
# A case is interrupted after so many seconds of computing, or of waiting on a machine that may be
# busy; where not even that helps, its process is ended.
HANG_SECONDS, WAIT_SECONDS, DEAD_SECONDS = 10.0, 60.0, 120.0
MAX_SHOWN = 20
NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_MAX_ATTEMPTS": "1",
    "MLFLOW_TRACKING_URI": "",
}


class HangError(BaseException):
    """A case took too long. No `except Exception` can catch it."""


@dataclass
class Outcome:
    """How the cases of one kind ended: how many by each ending, and the failures by their place."""

    endings: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[int]] = field(default_factory=dict)
    num_hangs: int = 0

    def add(self, other: "Outcome") -> None:
        """Adds the cases of another outcome."""
        self.endings += other.endings
        self.num_hangs += other.num_hangs
        for place, numbers in other.failures.items():
            self.failures.setdefault(place, []).extend(numbers)

    @property
    def num_foreign(self) -> int:
        """How many cases ended in an error that is none of ours."""
        return sum(map(len, self.failures.values())) - self.num_hangs


CASES: dict[str, Callable[[Random], str]] = {
    "rows": rows_case,
    "specs": specs_case,
    "files": files_case,
    "answers": answers_case,
}


def run_case(kind: str, seed: int, number: int) -> Outcome:
    """Returns the outcome of one case."""
    from retort import errors

    outcome = Outcome()
    signal.signal(signal.SIGPROF, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)
    faulthandler.dump_traceback_later(DEAD_SECONDS, exit=True)
    try:
        outcome.endings[CASES[kind](Random(f"{seed} {kind} {number}"))] += 1
    except (*errors.USER_ERRORS, errors.StoreError, errors.StageError):
        outcome.endings["refused"] += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.num_hangs += isinstance(error, HangError)
        outcome.failures[_place_of(error)] = [number]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return outcome


def _interrupt(*_: object) -> None:
    raise HangError(f"over {HANG_SECONDS:g} s")


def _place_of(error: BaseException) -> str:
    """Returns where in our code an error arose, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/retort/" in frame.filename] or list(frames)
    path = own[-1].filename.rpartition("/retort/")[2]
    return f"{type(error).__name__} at {path}:{own[-1].lineno}: {str(error)[:80]!r}"


def run_cases(kind: str, seed: int, numbers: range) -> Outcome:
    """Returns the outcome of some cases, in a folder of this process's own."""
    begin(kind)
    outcome = Outcome()
    for number in numbers:
        outcome.add(run_case(kind, seed, number))
    return outcome


@cache
def begin(kind: str) -> None:
    """Makes this process ready: a folder of its own, no network, and the libraries loaded."""
    os.environ |= NO_NETWORK
    os.chdir(tempfile.mkdtemp(prefix="retort-fuzz-"))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    for library in ("torch", "transformers") if kind == "specs" else ():
        import_module(library)
    for number in range(20):
        with suppress(Exception):
            CASES[kind](Random(f"warm {number}"))


def main() -> None:
    """Runs all cases on two processes, prints what failed and where, and the measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="one case by itself, such as rows:123")
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count)
    options = parser.parse_args()
    if options.case:
        kind, _, number = options.case.partition(":")
        os.chdir(tempfile.mkdtemp(prefix="retort-fuzz-"))
        os.environ |= NO_NETWORK
        print(CASES[kind](Random(f"{options.seed} {kind} {number}")))
        return
    measures: list[Measure] = []
    for kind in COUNTS:
        wanted, started = getattr(options, kind), time.monotonic()
        num_cases = -(-wanted // ROWS_A_FILE) if kind == "rows" else wanted
        outcome = _in_processes(kind, options.seed, num_cases)
        seconds = time.monotonic() - started
        endings = ", ".join(f"{count:,} {ending}" for ending, count in outcome.endings.items())
        print(
            f"{kind}: {wanted:,} in {seconds:.0f} s, {wanted / seconds:,.0f} a second ({endings})"
        )
        for place, numbers in list(outcome.failures.items())[:MAX_SHOWN]:
            print(f"  {len(numbers)} x {place}; --seed {options.seed} --case {kind}:{numbers[0]}")
        measures.append(
            (f"{kind} with foreign errors", outcome.num_foreign, 0, not outcome.num_foreign)
        )
        measures.append((f"{kind} that hang", outcome.num_hangs, 0, not outcome.num_hangs))
    show(measures)


def _in_processes(kind: str, seed: int, num_cases: int) -> Outcome:
    """Returns the outcome of cases 0 to `num_cases`; a chunk whose process died counts as a
    hang."""
    chunks = [range(at, min(at + CHUNK, num_cases)) for at in range(0, num_cases, CHUNK)]
    outcome = Outcome()
    while chunks:
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            waiting = [(chunk, pool.submit(run_cases, kind, seed, chunk)) for chunk in chunks]
            chunks, is_broken = [], False
            for chunk, future in waiting:
                try:
                    outcome.add(future.result())
                except BrokenProcessPool:
                    if is_broken:
                        chunks.append(chunk)  # it did not run, or was cut off by another's death
                        continue
                    is_broken = True
                    outcome.num_hangs += 1
                    outcome.failures[f"the process of cases {chunk} died"] = [chunk.start]
    return outcome


if __name__ == "__main__":
    main()
