"""The whole matrix: each cell is run, and docs/reliability.md is written.

FILE keeps the outcomes, a JSON line a cell: what is in it already is not run again.
"""

import json
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks import Measure, show
from benchmarks.failures import lab, page
from benchmarks.failures.matrix import ELSEWHERE, FAULTS, S3, STEPS, Cell, cells
from benchmarks.failures.scenario import Outcome, play

# Most of a cell's time is waiting: for servers, for a child's imports, for a pause between tries.
AT_ONCE = 5
LONGEST_SECONDS = 1200


def run_all(kept: Path) -> None:
    """Runs each cell whose outcome is not kept yet, and keeps it."""
    known = {(outcome.step, outcome.fault) for outcome in read(kept)}
    waiting = [cell for cell in cells() if (cell.step, cell.fault) not in known]
    # The longest first, so that none of them is alone at the end.
    waiting.sort(key=lambda cell: (cell.fault not in S3, cell.step not in ("train", "evaluate")))
    if not waiting:
        return
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        folder = Path(scratch)
        with lab.serving(folder / "servers") as found, lab.opened(folder, found) as opened:

            def run(cell: Cell) -> None:
                outcome = play(opened, cell)
                with kept.open("a") as stream:
                    stream.write(json.dumps(asdict(outcome)) + "\n")
                verdict = outcome.problem or "ok"
                print(f"{outcome.seconds:6.1f} s  {cell.name:28} {verdict}", flush=True)

            pool = ThreadPoolExecutor(AT_ONCE)
            try:
                list(pool.map(run, waiting))
            finally:
                pool.shutdown(cancel_futures=True)


def read(kept: Path) -> list[Outcome]:
    """Returns the outcomes that a file keeps."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def measures(found: list[Outcome], seconds: float) -> list[Measure]:
    """Returns the claims: nothing lost, nothing paid twice, nothing damaged unseen."""
    lost = sum(outcome.rows_lost for outcome in found)
    twice = sum(outcome.asked_twice for outcome in found)
    silent = sum(outcome.is_silent for outcome in found)
    problems = sum(bool(outcome.problem) for outcome in found)
    num_not = page.num_not_reachable()
    reachable = len(STEPS) * len(FAULTS) - num_not - len(ELSEWHERE)
    return [
        ("failures.rows_lost", lost, 0, lost == 0),
        ("failures.rows_asked_twice", twice, 0, twice == 0),
        ("failures.silent_damage", silent, 0, silent == 0),
        ("failures.problems", problems, 0, problems == 0),
        ("failures.cells_run", len(found), reachable, len(found) == reachable),
        ("failures.cells_not_reachable", num_not, num_not, True),
        ("failures.seconds", seconds, LONGEST_SECONDS, seconds <= LONGEST_SECONDS),
    ]


def main() -> None:
    """Prints each cell, then the claims; writes the page."""
    started = time.monotonic()
    # SIGTERM ends servers and disks, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "outcomes.jsonl"
        run_all(kept)
        found = read(kept)
    page.write(found)
    show(measures(found, time.monotonic() - started))
