"""What a sweep finds and costs: 16 configurations of the quickstart's student on one cache, against
all of the same 16 trained fully.

`python -m benchmarks.sweep` has the teacher answer 2,200 problems once; then nobody asks it again.
The student has learned from other problems before, and answers more than half of these rightly. A
first form began with random weights: in their first third all students then stay at 20%, whatever
their knobs, so that nothing can be told of their ends, and the winners were 6 and 9 points below
the best. The trainings are short (12 passes), so that the starts of their processes take longer
than they do in a real sweep: the cost is that of the optimizer's steps, and the seconds of whole
stages are printed beside it. Scores are accuracies on 600 validation problems, by which the sweep
chooses.
"""

import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks import show
from benchmarks.seeds import JOB
from benchmarks.students import job_of, made_in
from retort.jobs import trials
from retort.jobs.devices import trainings_at_once
from retort.jobs.run import JobRun
from retort.jobs.sweep import Candidate, search
from retort.jobs.trials import Trial
from retort.spec import load
from retort.store import Folder, InputFolder, open_store

NUM_PROBLEMS, NUM_VALIDATION, NUM_EPOCHS = 1600, 600, 12
# What the student learned from before, as often.
NUM_BEFORE, EPOCHS_BEFORE = 3400, 14
# The quickstart's own was tuned by hand, to 4e-3.
UNTUNED = 1e-3
FORWARD = {"name": "forward_kl", "temperature": 2.0}
SWEEP: dict[str, Any] = {
    "over": {
        "train.learning_rate": {"low": 5e-4, "high": 3e-2, "log": True},
        "train.losses": [
            [FORWARD],
            [{"name": "forward_kl"}],
            [{"name": "reverse_kl"}],
            [{"name": "cross_entropy"}],
        ],
        "train.batch_size": [32, 64],
        "train.adam_beta2": [0.95, 0.98, 0.999],
        "train.top_k": [2, 16],
    },
    "trials": 16,
}
RUNTIME = {"num_threads": 1, "max_num_seqs": 256}


def make_base(folder: Path) -> Path:
    """Trains the student that the trials begin with; returns its folder."""
    lines = (JOB.parent / "data/train.jsonl").read_text().splitlines(keepends=True)
    (folder / "before.jsonl").write_text("".join(lines[-NUM_BEFORE:]))
    knobs: dict[str, dict[str, Any]] = {
        "prepare": {"train": str(folder / "before.jsonl"), "limit": None},
        "generate": {"engine": "transformers", "runtime": RUNTIME},
        "train": {"num_epochs": EPOCHS_BEFORE, "controls": []},
    }
    job = job_of(folder, "before", knobs)
    trained = made_in(f"{folder}/before", job, "train")["train"]
    with InputFolder(trained.uri).local_copy("student") as student:
        return Path(shutil.copytree(student, folder / "base"))


def write_job(folder: Path) -> Path:
    """Writes the quickstart with fewer problems and more of validation, and with the sweep."""
    raw = yaml.safe_load(JOB.read_text())
    lines = (JOB.parent / "data/train.jsonl").read_text().splitlines(keepends=True)
    held_out = lines[NUM_PROBLEMS : NUM_PROBLEMS + NUM_VALIDATION]
    parts = {"train": lines[:NUM_PROBLEMS], "validation": held_out}
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(rows))
        raw["prepare"][name] = str(folder / f"{name}.jsonl")
    raw["prepare"]["test"] = str(JOB.parent / "data/test.jsonl")
    del raw["prepare"]["limit"]
    raw["generate"] |= {"teacher": str(JOB.parent / raw["generate"]["teacher"])}
    raw["train"] |= {"student": str(make_base(folder))}
    raw["train"] |= {"num_epochs": NUM_EPOCHS, "controls": [], "learning_rate": UNTUNED}
    raw["report"]["gate"] = {}
    raw["evaluate"] = {"engine": "transformers", "runtime": RUNTIME}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**raw, "sweep": SWEEP}))
    return path


def num_answers(store: str) -> int:
    """Returns how many answers of the teacher the store has."""
    ledgers = Folder(f"{open_store(store).uri}/ledger")
    return sum(ledgers.read(name).count(b'{"key":') for name in ledgers.files())


def loop_seconds(rungs: list[Trial]) -> float:
    """Returns the seconds of the optimizer's steps of a training that was continued, and of those
    in which it cooled down."""
    facts = [InputFolder(trial.train.uri).read_manifest()["facts"] for trial in rungs]
    begun = [0, *(each["num_steps"] for each in facts)]
    made = [trial.curve[-1]["step"] - at for trial, at in zip(rungs, begun, strict=False)]
    return float(sum(n * each["seconds_per_step"] for n, each in zip(made, facts, strict=True)))


def stage_seconds(rungs: list[Trial]) -> float:
    """Returns the seconds of all stages of a training, the starts of their processes included."""
    return sum(trial.seconds + trial.score_seconds for trial in rungs)


def fully(job: JobRun, inputs: dict[str, Any], each: Candidate) -> Candidate:
    """Returns a trial as it is when it is trained to the end at once."""
    assert each.spec
    whole = trials.run(job, f"whole-{each.number:02d}", each.spec, inputs)
    rungs = " ".join(
        f"{trial.value:6.1%} ({trial.curve[-1].get('validation_cross_entropy', 0):.3f})"
        for trial in each.rungs
    )
    print(f"{each.name} {rungs:48} whole {whole.value:6.1%} {json.dumps(each.values)}", flush=True)
    return Candidate(each.number, each.values, each.spec, [whole])


def opened(path: Path, store: str) -> tuple[JobRun, dict[str, Any]]:
    """Returns the job on a store, and what its trainings read."""
    job = JobRun(load(path)[0], open_store(store), [], lambda name, event: None, "sweep")
    made: dict[str, Any] = {}
    for name in ("prepare", "generate", "curate"):
        made[name] = trials.cached_or_made(job, name, dict(made))
    return job, trials.stored(job)


def main() -> None:
    """Prints a line a trial, a table, then one JSON line a measure."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        path, store = write_job(Path(scratch)), f"{scratch}/store"
        job, inputs = opened(path, store)
        shutil.copytree(store, f"{scratch}/other")
        before, started = num_answers(store), time.monotonic()
        found = search(job, inputs)
        seconds, asked = time.monotonic() - started, num_answers(store) - before
        # Elsewhere, so that nothing of the sweep is used again.
        elsewhere = JobRun(job.spec, open_store(f"{scratch}/other"), [], job.listen, "sweep")
        inputs = trials.stored(elsewhere)
        with ThreadPoolExecutor(trainings_at_once(job.spec)) as pool:
            whole = list(pool.map(partial(fully, elsewhere, inputs), found.candidates))
        costs = [
            sum(of(each.rungs) for each in found.candidates) / sum(of(each.rungs) for each in whole)
            for of in (loop_seconds, stage_seconds)
        ]
        best = max(whole, key=lambda each: each.rank)
        gap = best.rank - found.winner.rank
        own = next(each for each in whole if each.number == found.winner.number)
        students = (own.rungs[0].train, found.winner.rungs[-1].train)
        same = len({InputFolder(a.uri).read("student/model.safetensors") for a in students}) == 1
    print(
        f"best of all {best.name} {best.rank:.1%}, the sweep's {found.winner.name} "
        f"{found.winner.rank:.1%}; the sweep took {seconds:.0f} s; its steps, beside the starts of "
        f"other trials, {costs[0]:.0%} of the seconds of those of whole trainings, its stages with "
        f"the starts of their processes {costs[1]:.0%}"
    )
    show(
        [
            ("sweep.points_below_best", gap * 100, 1.0, gap <= 0.01),
            ("sweep.cost_in_steps", found.cost, 0.35, found.cost <= 0.35),
            ("sweep.teacher_answers", asked, 0.0, asked == 0),
            ("sweep.winner_is_the_plain_student", float(same), 1.0, same),
        ]
    )


if __name__ == "__main__":
    main()
