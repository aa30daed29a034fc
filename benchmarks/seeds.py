"""What the teacher's signal adds: the quickstart's student against plain fine-tuning, three seeds.

`python -m benchmarks.seeds` runs the job with three values of train.seed in one store, so that all
six students learn from the same answers. The pooled interval resamples test examples, each with
all its seeds: a problem that is hard is hard for every seed, so seeds are not new examples.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import show
from benchmarks.world import HERE
from retort import metrics
from retort.data import task_types
from retort.records import Response, read_lines
from retort.spec import load
from retort.stages.stage import read_examples
from retort.store import Folder

JOB = HERE / "job.yaml"
SEEDS = (0, 1, 2)
NUM_RESAMPLES = 10_000
Scores = dict[str, dict[str, list[float]]]  # by role and example's id: the score, and 1


def run(store: str, seed: int) -> dict[str, Any]:
    """Returns the report of the job with that seed of its training."""
    command = [sys.executable, "-m", "flows.cli", "run", str(JOB), "--store", store, "--json"]
    command += ["--set", f"train.seed={seed}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def scores_of(report: dict[str, Any]) -> Scores:
    """Returns each model's accuracy on every test example, from the stored answers."""
    spec = load(JOB)[0]
    task_type = task_types.load(spec.prepare.task_type)
    examples = read_examples(Folder(report["artifacts"]["prepare"]), "test")
    answers = Folder(report["artifacts"]["evaluate"])
    found: Scores = {}
    for role in spec.roles:
        lines = answers.read(f"answers-{role}.jsonl")
        texts = {response.id: response.text for response in read_lines(Response, lines)}
        found[role] = metrics.statistics(task_type, examples, texts, texts)["accuracy"]
    return found


def mean_of(runs: Sequence[Scores], role: str) -> dict[str, list[float]]:
    """Returns a role's score on every example, the mean over runs, and 1."""
    columns = [scores[role] for scores in runs]
    return {id: [float(np.mean([c[id][0] for c in columns])), 1.0] for id in columns[0]}


def gap(runs: Sequence[Scores]) -> dict[str, float]:
    """Returns student minus fine_tuning in accuracy, the mean over runs, with its interval."""
    student, control = (mean_of(runs, role) for role in ("student", "fine_tuning"))
    return metrics.difference("accuracy", student, control, NUM_RESAMPLES, seed=0)


def tell(name: str, runs: Sequence[Scores]) -> dict[str, float]:
    """Prints one line of the table; returns the gap with its interval."""
    found = gap(runs)
    shares = [
        np.mean([score for score, _ in mean_of(runs, role).values()])
        for role in ("base", "fine_tuning", "student")
    ]
    print(
        f"{name:8}" + "".join(f"{share:14.1%}" for share in shares),
        f"{found['value'] * 100:+9.1f}   {found['low'] * 100:+.1f} to {found['high'] * 100:+.1f}",
        flush=True,
    )
    return found


def main() -> None:
    """Prints a table with a line a seed, then one JSON line a measure."""
    heads = ("base", "fine-tuning", "with signal")
    print(f"{'seed':8}" + "".join(f"{head:>14}" for head in heads), "     gain   95% interval")
    runs, gains = [], []
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        for seed in SEEDS:
            runs.append(scores_of(run(store, seed)))
            gains.append(tell(str(seed), runs[-1:]))
    pooled = tell("pooled", runs)
    of_seeds = [
        (f"seeds.gain_seed_{seed}", found["value"], 0.0, found["value"] > 0)
        for seed, found in zip(SEEDS, gains, strict=True)
    ]
    show(
        [
            ("seeds.gain", pooled["value"], 0.0, pooled["value"] > 0),
            ("seeds.gain_low", pooled["low"], 0.0, pooled["low"] > 0),
            *of_seeds,
        ]
    )


if __name__ == "__main__":
    main()
