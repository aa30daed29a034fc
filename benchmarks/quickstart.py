"""The quickstart's claims: the time of the job, the time when cached, what the student keeps, and
what it costs to compare digests.

`python -m benchmarks.quickstart` runs the job in an empty store, then again.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import Measure, show
from benchmarks.world import HERE
from retort.store import InputFolder, Store, folder

JOB = HERE / "job.yaml"


def run(store: str) -> tuple[float, float, dict[str, Any]]:
    """Returns the seconds and the CPU seconds that `retort run` took, and its report."""
    command = [sys.executable, "-m", "flows.cli", "run", str(JOB), "--store", store, "--json"]
    started, before = time.monotonic(), _cpu_seconds()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - started, _cpu_seconds() - before, json.loads(done.stdout)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def digest_measures(uris: dict[str, str], cpu: float, cached_cpu: float) -> list[Measure]:
    """Returns the share of the run's CPU seconds, and of the cached one's, that goes into comparing
    digests: of a stage all files of all its inputs, of a cached job all manifests and the release.
    """
    store = Store(uris["prepare"].rsplit("/artifacts/", 1)[0])
    manifests = [InputFolder(uri).read_manifest() for uri in uris.values()]
    inputs = [
        store.artifact(label.partition("-")[0], name).uri
        for manifest in manifests
        for label, name in manifest["ingredients"]["inputs"].items()
    ]
    started = time.process_time()
    for uri in inputs:
        folder._digested.clear()  # each stage reads its inputs in a process of its own
        assert not InputFolder(uri).damages()
    seconds = time.process_time() - started
    folder._digested.clear()
    started = time.process_time()
    for uri in uris.values():
        InputFolder(uri).read_manifest()
    assert not InputFolder(uris["release"]).damages()
    shares = seconds / cpu, (time.process_time() - started) / cached_cpu
    return [
        ("quickstart.digests_of_job", shares[0], 0.01, shares[0] <= 0.01),
        ("quickstart.digests_of_cached_job", shares[1], 0.03, shares[1] <= 0.03),
    ]


def main() -> None:
    """Prints a table, then one JSON line a measure."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        job_seconds, cpu, report = run(store)
        cached_seconds, cached_cpu, again = run(store)
        digests = digest_measures(report["artifacts"], cpu, cached_cpu)
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
        *digests,
    ]
    show(measures)


if __name__ == "__main__":
    main()
