"""What choosing is worth: further rows that the student asks for, against more of them at random.

`python -m benchmarks.choose [seed ...]`: a student of the quickstart knows six kinds of stories,
and hardly three others. The pool is what it is asked later: many problems like those it knows,
asked again of other people and things, and some of the new kinds. The student chooses which to pay
for, and goes on learning from them beside the rows before; a control learns from more rows at
random, another from as few. All make about as many steps, and are measured on the quickstart's
test problems, in which all kinds are as frequent. Intervals are of benchmarks/seeds.py: they
resample test problems, each with all its seeds.
"""

import json
import multiprocessing
import random
import re
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import show
from benchmarks.seeds import JOB, NUM_RESAMPLES, SEEDS, Scores, mean_of
from benchmarks.students import accuracies, made
from retort import metrics
from retort.events import SILENT
from retort.jobs.choosing import ChooseRequest, choose
from retort.jobs.run import JobRun
from retort.spec import JobSpec, load
from retort.store import Artifact, InputFolder, Store, open_store

Row = dict[str, Any]
Case = tuple[str, int, list[Row]]  # how they were bought, the training's seed, the rows
COMMON = {
    "multiple": r"times as many",
    "shopping": r"dollars and pays",
    "sharing": r"and others share",
    "comparison": r"has \d+ (fewer|more)\. How",
    "two events": r"^(\D+\d+){3}\D+$",
    "three events": r"^(\D+\d+){4}\D+$",
}
NEW = {
    "reading": r"pages a day",
    "groups": r" with \d+ \w+ each\. ",
    "delivery": r"buys \d+ (boxes|bags|jars|packs) with",
}
KINDS = {**NEW, **COMMON}
# Rows of each common and each new kind that are answered. The pool has half as many of each common
# one, told again, and so many of each new one.
ANSWERED, FEW, MORE = 600, 20, 100
# Rows that are bought at random, and of the chosen ones this share.
BOUGHT, SHARE = 400, 0.6
CHOSEN = int(SHARE * BOUGHT)
# The steps of the second training, which learns all rows of before with the bought ones.
STEPS, BATCH_SIZE, LEARNING_RATE = 750, 32, 2e-3
WORLD = runpy.run_path(str(JOB.parent / "world.py"), run_name="world")
CAST = [
    [name for name, who in WORLD["NAMES"].items() if who == pronoun] for pronoun in ("he", "she")
]


def kind_of(question: str) -> str:
    """Returns the kind of a problem."""
    return next(name for name, words in KINDS.items() if re.search(words, question))


def retold(row: Row) -> Row:
    """Returns a problem as others ask it, of other things."""
    chosen = random.Random(row["id"])
    names: dict[str, str] = {}
    for words in (*CAST, WORLD["OBJECTS"]):
        names |= zip(words, chosen.sample(words, len(words)), strict=True)
    found = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), row["question"])
    return {"id": f"{row['id']}-again", "question": found}


def rows() -> tuple[list[Row], list[Row]]:
    """Returns the rows that are answered first, and the pool, both in random order."""
    counts, first, later = Counter[str](), list[Row](), list[Row]()
    for line in (JOB.parent / "data/train.jsonl").open():
        row = {key: value for key, value in json.loads(line).items() if key != "answer"}
        kind = kind_of(row["question"])
        counts[kind] += 1
        if counts[kind] <= (ANSWERED if kind in COMMON else FEW):
            first.append(row)
            later += [retold(row)] if kind in COMMON and counts[kind] <= ANSWERED // 2 else []
        elif kind in NEW and counts[kind] <= FEW + MORE:
            later.append(row)
    for each in (first, later):
        random.Random(0).shuffle(each)
    return first, later


def write(path: Path, rows: list[Row]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(path: Path, seed: int = 0, **more: Any) -> JobSpec:
    """Returns the quickstart with the train rows of a file."""
    knobs = {
        "prepare.train": path,
        "prepare.limit": "null",
        "curate.filters": "[finished, non_empty]",
        "train.controls": "[]",
        "train.seed": seed,
        "evaluate.engine": "transformers",
        "generate.engine": "transformers",
        **more,
    }
    return load(JOB, [f"{key}={value}" for key, value in knobs.items()])[0]


def trained(store: Store, spec: JobSpec) -> tuple[dict[str, Artifact], dict[str, list[float]]]:
    """Returns the artifacts of a job up to its student, and that one's accuracy on each test
    problem."""
    job = JobRun(spec, store, [], lambda stage, event: None)
    try:
        artifacts = made(job, "train")
    finally:
        job.close()
    return artifacts, accuracies(spec, artifacts, "train")


def started(home: Path) -> tuple[JobSpec, dict[str, list[float]]]:
    """Trains the first student, which is also put where it can choose and be learned on from.

    It chooses in a store that has the answers to its own rows only.
    """
    first, later = rows()
    spec = spec_of(write(home / "first.jsonl", first))
    write(home / "pool.jsonl", later)
    artifacts, found = trained(open_store(f"{home}/store"), spec)
    with InputFolder(artifacts["train"].uri).local_copy("student") as folder:
        shutil.copytree(folder, home / "student")
    for each in artifacts.values():
        shutil.copytree(each.uri, choosing(home).artifact(each.stage, each.name).uri)
    return spec, found


def choosing(home: Path) -> Store:
    """Returns the store in which rows are chosen."""
    return open_store(f"{home}/choosing")


def bought(home: Path, spec: JobSpec, **request: Any) -> list[Row]:
    """Returns the rows that are chosen of the pool, in their order."""
    out = home / "bought.jsonl"
    asked = ChooseRequest(pool=str(home / "pool.jsonl"), **request)
    choose(spec, choosing(home), asked, out, SILENT)
    found = [json.loads(line) for line in out.open()]
    counts = Counter(kind_of(row["question"]) for row in found)
    print(f"{request}: {dict(counts.most_common())}", flush=True)
    return found


def learned(home: Path, case: Case) -> dict[str, list[float]]:
    """Returns the accuracy on each test problem of the first student after it has learned from
    more rows beside those before."""
    torch.set_num_threads(1)
    name, seed, more = case
    before = [json.loads(line) for line in (home / "first.jsonl").open()]
    path = write(home / f"{name}-{seed}.jsonl", [*before, *more])
    knobs = {
        "train.student": home / "student",
        "train.num_epochs": round(STEPS * BATCH_SIZE / (len(before) + len(more))),
        "train.learning_rate": LEARNING_RATE,
    }
    return trained(open_store(f"{home}/store"), spec_of(path, seed, **knobs))[1]


def tell(runs: dict[str, list[Scores]], name: str) -> dict[str, float]:
    """Prints a line of the table; returns what the chosen rows gain over others."""
    own, other = mean_of(runs["chosen"], "student"), mean_of(runs[name], "student")
    found = metrics.difference("accuracy", own, other, NUM_RESAMPLES, seed=0)
    share = sum(score for score, _ in other.values()) / len(other)
    bounds = " to ".join(f"{100 * found[bound]:+.1f}" for bound in ("low", "high"))
    print(f"{name:20}{share:8.1%}{100 * found['value']:+8.1f}   {bounds}", flush=True)
    return found


def main() -> None:
    """Prints a table with a line for each way of buying, then one JSON line a measure."""
    seeds = [int(seed) for seed in sys.argv[1:]] or list(SEEDS)
    spawning = multiprocessing.get_context("spawn")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as name:
        home = Path(name)
        spec, before = started(home)
        chosen = bought(home, spec, number=CHOSEN)
        cases: list[Case] = []
        for seed in seeds:
            at_random = bought(home, spec, number=BOUGHT, by="random", seed=seed)
            cases += [("chosen", seed, chosen), ("random", seed, at_random)]
            cases.append(("few at random", seed, at_random[:CHOSEN]))
        with ProcessPoolExecutor(2, mp_context=spawning) as pool:
            found = list(pool.map(partial(learned, home), cases))
    runs: dict[str, list[Scores]] = {"first": [{"student": before}]}
    for (which, _, _), scores in zip(cases, found, strict=True):
        runs.setdefault(which, []).append({"student": scores})
    print(f"{'':20}accuracy  chosen minus it   95% interval")
    gains = {which: tell(runs, which) for which in runs}
    low, over = gains["random"]["low"], gains["few at random"]["low"]
    show(
        [
            ("choose.share_of_rows", CHOSEN / BOUGHT, SHARE, CHOSEN <= SHARE * BOUGHT),
            ("choose.over_random_with_more_rows_low", low, 0.0, low > 0),
            ("choose.over_random_with_as_few_low", over, 0.0, over > 0),
        ]
    )


if __name__ == "__main__":
    main()
