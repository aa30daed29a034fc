"""The comparison's own cost and steadiness: the quickstart's three models evaluated twice.

`python -m benchmarks.evaluate [STORE]` runs the job in an empty store, or in one where it has been
run before, and then evaluates anew. What else the machine has to do is printed beside the figures:
latencies of a busy machine are not those of an idle one.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from benchmarks import Measure, show
from benchmarks.world import HERE
from retort.store import Folder

JOB = HERE / "job.yaml"
ROLES = ("teacher", "base", "student")
LATENCIES = ("latency_seconds", "first_token_seconds")


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation took and found; the answers are the files' bytes by role."""

    seconds: float
    facts: dict[str, Any]
    answers: dict[str, bytes]


def run(store: str, *more: str) -> Evaluation:
    """Returns the job's evaluation after `retort run` with these further arguments."""
    command = [sys.executable, "-m", "flows.cli", "run", str(JOB), "--store", store, "--json"]
    print(f"load average {os.getloadavg()[0]:.2f} before: {' '.join(more)}", flush=True)
    command += ["--set", "train.controls=[]", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: the gate refused the student, who is measured anyway
        raise SystemExit(f"the job failed with exit code {done.returncode}")
    folder = Folder(json.loads(done.stdout)["artifacts"]["evaluate"])
    manifest = folder.read_manifest()
    answers = {role: folder.read(f"answers-{role}.jsonl") for role in ROLES}
    return Evaluation(manifest["seconds"], manifest["facts"], answers)


def measures_of(first: Evaluation, second: Evaluation) -> list[Measure]:
    """Returns the claims: time, equal answers and scores, and the steadiness of latencies."""
    pairs = [(first.facts["models"][role], second.facts["models"][role]) for role in ROLES]
    seconds = max(first.seconds, second.seconds)
    answers = sum(first.answers[role] != second.answers[role] for role in ROLES)
    scores = sum(a["metrics"] != b["metrics"] for a, b in pairs)
    changed = sum(model["num_changed"] for pair in pairs for model in pair)
    found: list[Measure] = [
        ("evaluate.seconds", seconds, 90.0, seconds <= 90),
        ("evaluate.models_with_other_answers", answers, 0.0, answers == 0),
        ("evaluate.models_with_other_scores", scores, 0.0, scores == 0),
        ("evaluate.answers_changed_between_rounds", changed, 0.0, changed == 0),
    ]
    for name in LATENCIES:
        ratios = [a[name]["p50"] / b[name]["p50"] for a, b in pairs]
        largest = max(max(ratio, 1 / ratio) for ratio in ratios)
        found.append((f"evaluate.{name}_median_ratio", largest, 1.1, largest <= 1.1))
    return found


def table(evaluations: list[Evaluation]) -> None:
    """Prints what was measured of each model, a line an evaluation."""
    print(
        f"{'':10}{'p50 ms':>10}{'p95 ms':>10}{'first ms':>10}{'req/s':>10}{'bounded':>10}{'MB':>8}"
    )
    for role in ROLES:
        for evaluation in evaluations:
            found = evaluation.facts["models"][role]
            whole, first = (found[name] for name in LATENCIES)
            bounded = found["within_bound"] or {"requests_per_second": float("nan")}
            print(
                f"{role:10}{whole['p50'] * 1e3:10.1f}{whole['p95'] * 1e3:10.1f}"
                f"{first['p50'] * 1e3:10.2f}{found['requests_per_second']:10.0f}"
                f"{bounded['requests_per_second']:10.0f}{found['peak_memory_bytes'] / 1e6:8.0f}"
            )


def main() -> None:
    """Prints a table, then one JSON line a measure."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        store = sys.argv[1] if len(sys.argv) > 1 else scratch
        run(store)
        evaluations = [run(store, "--force", "evaluate") for _ in range(2)]
    print(f"load average {os.getloadavg()[0]:.2f} after")
    table(evaluations)
    show(measures_of(*evaluations))


if __name__ == "__main__":
    main()
