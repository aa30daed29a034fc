"""The quickstart's claims: the time of the job, the time when cached, and what the student keeps.

`python -m benchmarks.quickstart` runs the job in an empty store, then again.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import show

JOB = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "job.yaml"


def run(store: str) -> tuple[float, dict[str, Any]]:
    """Returns the seconds that `retort run` took, and its report."""
    command = [sys.executable, "-m", "flows.cli", "run", str(JOB), "--store", store, "--json"]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - started, json.loads(done.stdout)


def main() -> None:
    """Prints a table, then one JSON line a measure."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        job_seconds, report = run(store)
        cached_seconds, again = run(store)
    assert again["fingerprints"] == report["fingerprints"]
    compared = report["comparison"]
    measures = [
        ("quickstart.job_seconds", job_seconds, 360.0, job_seconds <= 360),
        ("quickstart.cached_seconds", cached_seconds, 30.0, cached_seconds <= 30),
        ("quickstart.retention", compared["retention"], 0.92, compared["retention"] >= 0.92),
        ("quickstart.gain", compared["gain"], 0.20, compared["gain"] >= 0.20),
        (
            "quickstart.memory_reduction",
            compared["memory_reduction"],
            0.95,
            compared["memory_reduction"] >= 0.95,
        ),
    ]
    show(measures)


if __name__ == "__main__":
    main()
