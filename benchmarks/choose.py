"""What choosing is worth: rows that the student asks for, against more of them at random.

`python -m benchmarks.choose [seed ...]` makes a pool with redundancy of the quickstart's problems,
without their answers: many of some kinds of stories, few of others. A student is trained on some
rows at random, then chooses which further ones to pay for. All students make about as many steps,
and are measured on the quickstart's test problems, in which all kinds are as frequent. The
teacher's answers to the pool are made once, and serve as the oracle. Intervals are of
benchmarks/seeds.py: they resample test problems, each with all its seeds.
"""

import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import show
from benchmarks.on_policy import accuracies, made
from benchmarks.seeds import JOB, NUM_RESAMPLES, SEEDS, mean_of
from retort import metrics
from retort.events import SILENT
from retort.jobs.choosing import ChooseRequest, choose
from retort.jobs.run import JobRun
from retort.spec import JobSpec, load
from retort.store import Store, open_store

Row = dict[str, Any]
# The kinds of stories by their words or the number of their numbers, and their rows in the pool.
KINDS = {
    "multiple": (r"times as many", 700),
    "shopping": (r"dollars and pays", 700),
    "sharing": (r"and others share", 600),
    "reading": (r"pages a day", 300),
    "comparison": (r"has \d+ (fewer|more)\. How", 150),
    "groups": (r" with \d+ \w+ each\. ", 80),
    "delivery": (r"buys \d+ (boxes|bags|jars|packs) with", 80),
    "two events": (r"^(\D+\d+){3}\D+$", 80),
    "three events": (r"^(\D+\d+){4}\D+$", 80),
}
# All students' rows: those of the first one are among the others'.
PILOT, AT_RANDOM, LEAST_SHARE = 300, 1200, 0.6
CHOSEN = int(LEAST_SHARE * AT_RANDOM)
STEPS, BATCH = 1500, 32
NAMES = ("first", "random, as few", "chosen", "random")


def kind_of(question: str) -> str:
    """Returns the kind of a problem."""
    return next(name for name, (words, _) in KINDS.items() if re.search(words, question))


def pool() -> list[Row]:
    """Returns the pool: problems without answers, in random order."""
    left = {name: number for name, (_, number) in KINDS.items()}
    found = []
    for line in (JOB.parent / "data/train.jsonl").open():
        row = json.loads(line)
        kind = kind_of(row["question"])
        if left[kind]:
            left[kind] -= 1
            found.append({"id": row["id"], "question": row["question"]})
    random.Random(0).shuffle(found)
    return found


def spec_of(path: Path, rows: list[Row], seed: int) -> JobSpec:
    """Returns the quickstart with these train rows, which it writes."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = {
        "prepare.train": str(path),
        "prepare.limit": "null",
        "curate.filters": "[finished, non_empty]",
        "train.controls": "[]",
        "train.num_epochs": round(STEPS * BATCH / len(rows)),
        "train.seed": seed,
        "generate.engine": "transformers",
        "evaluate.engine": "transformers",
    }
    return load(JOB, [f"{key}={value}" for key, value in knobs.items()])[0]


def job_of(store: Store, spec: JobSpec) -> JobRun:
    """Returns a job about to run."""
    return JobRun(spec, store, [], lambda stage, event: None)


def trained(store: Store, spec: JobSpec) -> dict[str, list[float]]:
    """Returns the accuracy of a job's student on each test problem."""
    job = job_of(store, spec)
    try:
        return accuracies(spec, made(job, "train"), "train")
    finally:
        job.close()


def chosen(store: Store, spec: JobSpec, rows: list[Row], folder: Path, seed: int) -> list[Row]:
    """Returns the rows that the student of a job chooses, in a store that has none of the oracle's
    answers but those of the job's own rows."""
    path, own = folder / "pool.jsonl", open_store(str(folder / "store"))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for artifact in made(job_of(store, spec), "train").values():
        shutil.copytree(artifact.uri, own.artifact(artifact.stage, artifact.name).uri)
    request = ChooseRequest(CHOSEN - PILOT, str(path), seed=seed)
    found = choose(spec, own, request, folder / "chosen.jsonl", SILENT)
    print(
        f"seed {seed}: "
        + ", ".join(
            f"{k.name} {k.num_chosen}/{k.num_rows} u {k.uncertainty:.2f} d {k.disagreement:.2f}"
            for k in found.kinds
        ),
        flush=True,
    )
    return [json.loads(line) for line in (folder / "chosen.jsonl").open()]


def compared(store_uri: str, seed: int) -> dict[str, dict[str, list[float]]]:
    """Returns the accuracy of each student on each test problem, by the student's name."""
    torch.set_num_threads(1)
    store, rows = open_store(store_uri), pool()
    random.Random(seed).shuffle(rows)
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as name:
        folder = Path(name)
        spec = spec_of(folder / "first.jsonl", rows[:PILOT], seed)
        found = {"first": trained(store, spec)}
        more = chosen(store, spec, rows[PILOT:], folder, seed)
        train = {
            "random, as few": rows[:CHOSEN],
            "chosen": [*rows[:PILOT], *more],
            "random": rows[:AT_RANDOM],
        }
        for which, own in train.items():
            found[which] = trained(store, spec_of(folder / f"{which}.jsonl", own, seed))
    for which, scores in found.items():
        print(
            f"seed {seed}: {which} {sum(s for s, _ in scores.values()) / len(scores):.1%}",
            flush=True,
        )
    return found
