"""A real teacher: the job of examples/real, and what durable capture costs at that model's size.

`python -m benchmarks.real_model [FOLDER]` fetches SmolLM2-135M-Instruct, makes the student of some
of its layers, runs the job in an empty store, then answers prompts by turns with vLLM's own batch
call and with Retort's capture. It may take 15 minutes. What lies in a folder that is given is used
again. Where pip cannot get the model the benchmark says why, and ends well with one JSON line.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import Measure, show

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "real"
# Passed, or refused by the gate: both are the end of a whole job.
ENDED = (0, 3)
MAX_SECONDS, LEAST_FALL, MOST_SHARE = 900.0, 1 / 3, 0.5


def run(folder: Path) -> tuple[int, dict[str, Any]]:
    """Returns how the job ended, and its report; both models and the store are in the folder."""
    command = [sys.executable, "-m", "flows.cli", "run", str(EXAMPLE / "job.yaml"), "--json"]
    for role in ("teacher", "student"):
        command += [f"--{role}", str(folder / role)]
    command += ["--store", str(folder / "store")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.returncode in ENDED else {}


def measures_of(report: dict[str, Any], seconds: float) -> list[Measure]:
    """Returns what the whole job tells: its time, what the student learned, evaluate's share."""
    divergence = {
        role: report["models"][role]["metrics"]["kl_to_teacher"] for role in ("base", "student")
    }
    fall = 1 - divergence["student"]["value"] / divergence["base"]["value"]
    assert divergence["student"]["n"] == divergence["base"]["n"]
    taken = report["ran"]["seconds"]
    share = taken["evaluate"] / sum(filter(None, taken.values()))
    for role, found in divergence.items():
        print(f"KL(teacher || {role}) {found['value']:.3f} nats a token, {found['n']} prompts")
    print(", ".join(f"{stage} {spent or 0:.0f} s" for stage, spent in taken.items()))
    return [
        ("real_model.job_seconds", seconds, MAX_SECONDS, seconds <= MAX_SECONDS),
        ("real_model.kl_fall", fall, LEAST_FALL, fall >= LEAST_FALL),
        ("real_model.evaluate_share", share, MOST_SHARE, share <= MOST_SHARE),
    ]


def measure(folder: Path) -> None:
    """Measures all, or says why there is no model to measure."""
    started = time.monotonic()
    made = subprocess.run(
        [sys.executable, str(EXAMPLE / "make.py"), str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if made.returncode:
        print(made.stderr.strip())
    if made.returncode == os.EX_UNAVAILABLE:
        print(json.dumps({"measure": "real_model", "skipped": True}))
        return
    made.check_returncode()
    code, report = run(folder)
    seconds = time.monotonic() - started
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime
    measures: list[Measure] = [
        ("real_model.exit_code", code, max(ENDED), code in ENDED),
        ("real_model.job_cpu_seconds", cpu, MAX_SECONDS, cpu <= MAX_SECONDS),
    ]
    if report:
        from benchmarks.generate import Load, vllm_measures

        measures += measures_of(report, seconds)
        load = Load(
            str(folder / "teacher"),
            str(EXAMPLE / "data" / "train.jsonl"),
            str(EXAMPLE / "data" / "test.jsonl"),
            task_type="conversation",
            limit=32,
            max_tokens=32,  # some ten seconds a slice, on one core
            rounds=5,
        )
        measures += vllm_measures(folder, load, "real_model")
    show(measures)


def main() -> None:
    """Measures in the folder that is given, else in one that is removed again."""
    print(f"load average {os.getloadavg()[0]:.2f} before")
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        measure(Path(scratch))


if __name__ == "__main__":
    main()
