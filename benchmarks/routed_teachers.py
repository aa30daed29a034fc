"""Two teachers that each know half: is a student of both as good as one of a teacher of all?

`python -m benchmarks.routed_teachers` trains two teachers, each on half of the quickstart's kinds
of problems, and four students three times: of the quickstart's own teacher, of both halves with
each problem routed to the teacher of its kind, and of each half alone, which is asked everything.
Answers that are wrong are left out. Intervals resample test problems, each with all its seeds.
Teaching the halves takes two cores 25 minutes: of halves that learned from 15,000 problems each,
and were wrong in one of four, the routed student kept 0.67 of what the whole's has.
"""

import itertools
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks import Measure, show
from benchmarks.other_student import save
from benchmarks.seeds import SEEDS, Scores
from benchmarks.students import job_of, made_in, share, tell, trained
from benchmarks.world import HERE, module
from retort.spec import JobSpec

HALVES = {
    "events": ("chain_of_two", "chain_of_three", "groups", "delivery"),
    "sums": ("comparison", "multiple", "shopping", "reading", "sharing"),
}
OF_KIND = {kind: half for half, kinds in HALVES.items() for kind in kinds}
ROLES = ("whole", "routed", *HALVES)
NUM_TAUGHT = 40_000  # problems that a half learns from, three times each
NUM_PROBLEMS, NUM_EPOCHS = 2_700, 12
LEAST_SHARE = 0.95


def write_rows(folder: Path) -> dict[str, str]:
    """Writes the quickstart's problems with the half that each belongs to; returns the files."""
    make, world = module("make"), module("world")
    seen, files = set[str](), {}
    for split, number in make.NUM_ROWS.items():
        kinds = {p.question: p.kind for p in islice(world.problems(split, make.SEED, seen), number)}
        path = folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in (HERE / "data" / path.name).open()]
        halves = [OF_KIND[kinds[row["question"]]] for row in rows]
        lines = [
            json.dumps(row | {"metadata": {"half": half}}) + "\n"
            for row, half in zip(rows, halves, strict=True)
        ]
        path.write_text("".join(lines))
        files[split] = str(path)
    return files


def teach(folder: Path, half: str) -> None:
    """Trains a teacher by the quickstart's recipe on problems of its half alone."""
    make, world, learn = (module(name) for name in ("make", "world", "learn"))
    torch.set_num_threads(1)
    recipe = replace(make.TEACHER, num_problems=NUM_TAUGHT)
    tokenizer, seen = AutoTokenizer.from_pretrained(HERE / "models" / "teacher"), set[str]()
    for split, number in make.NUM_ROWS.items():
        list(islice(world.problems(split, make.SEED, seen), number))
    own = (
        problem
        for problem in world.problems("train", make.SEED + recipe.seed, seen)
        if OF_KIND[problem.kind] == half
    )
    model = learn.build_model(recipe, tokenizer)
    learn.train(model, tokenizer, list(islice(own, NUM_TAUGHT)), recipe)
    save(model, tokenizer, folder / half)


def spec_of(folder: Path, files: Mapping[str, str], role: str, seed: int) -> JobSpec:
    """Returns the job of a role: who teaches, and everything else alike."""
    # A half is wrong about what it never learned, and is left out there.
    generate: dict[str, Any] = {"min_success_ratio": 0.0}
    if role in HALVES:
        generate |= {"teacher": str(folder / role), "spending": {"pilot_rows": 0}}
    if role == "routed":
        shared = {"max_model_len": 256, "runtime": {"num_threads": 1}}
        teachers = {half: {"teacher": str(folder / half), **shared} for half in HALVES}
        generate |= {"teacher": None, "max_model_len": None, "runtime": None}
        generate |= {"teachers": teachers, "route": "metadata.half"}
    sections = {
        "prepare": {**files, "limit": NUM_PROBLEMS},
        "generate": generate,
        "train": {"seed": seed, "num_epochs": NUM_EPOCHS, "controls": []},
    }
    return job_of(folder, f"{role}-{seed}", sections)


def main() -> None:
    """Prints a table with a line a seed and role, then one JSON line a measure."""
    seeds = [int(seed) for seed in sys.argv[1:]] or list(SEEDS)
    ways = list(itertools.product(seeds, ROLES))
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        folder = Path(store)
        files = write_rows(folder)
        with ProcessPoolExecutor(2, mp_context=spawning) as pool:
            list(pool.map(partial(teach, folder), HALVES))
            specs = {way: spec_of(folder, files, way[1], way[0]) for way in ways}
            for role in ROLES:
                made_in(store, specs[seeds[0], role], "curate")
            found = pool.map(partial(trained, store), [specs[way] for way in ways])
            scores = dict(zip(ways, found, strict=True))
    runs: list[Scores] = [{role: scores[seed, role] for role in ROLES} for seed in seeds]
    print(f"{'seed':8}{'taught by':22}accuracy  routed minus it   95% interval")
    for seed, each in zip(seeds, runs, strict=True):
        for role in ROLES:
            tell(str(seed), [each], "routed", role, role)
    kept = share(runs, "routed") / share(runs, "whole")
    measures: list[Measure] = [
        ("routed_teachers.share_of_whole", kept, LEAST_SHARE, kept >= LEAST_SHARE)
    ]
    for role in ROLES:
        low = tell("pooled", runs, "routed", role, role)["low"]
        if role in HALVES:
            measures.append((f"routed_teachers.over_{role}_low", low, 0.0, low > 0))
    show(measures)


if __name__ == "__main__":
    main()
