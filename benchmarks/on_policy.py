"""What on-policy rounds are worth, against learning on from stored rows.

`python -m benchmarks.on_policy` trains the quickstart's student on 2,000 of its problems, three
seeds: all passes, then rounds on its own answers, and two controls that go on from the same student
with stored rows: for as many steps, and for as many seconds as the rounds took, the teacher's
scores and the student's answers included. Intervals are of benchmarks/seeds.py: they resample test
problems, each with all its seeds. Then a few rounds that learn once from each answer, as TRL's
trainer does, beside that on the same models and problems: tokens a second, after the first.
"""

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks import Measure, show
from benchmarks.seeds import JOB, SEEDS
from benchmarks.students import accuracies, made_in, tell
from benchmarks.trl_rounds import tokens_a_second
from retort.spec import JobSpec, load, rounds, training_of
from retort.store import Artifact, InputFolder

NUM_PROBLEMS, NUM_EPOCHS = 2000, 14
NUM_ROUNDS, TIMED = 8, 4
ROUNDS = {"rounds": NUM_ROUNDS, "prompts": 1024, "passes": 9, "learning_rate": 3e-3, "held_out": 64}
CONTROLS = ("offline_steps", "offline_cost")
ROLES = ("student", "offline", *CONTROLS)
# What is claimed: points over equal steps in each seed, the interval's bound over equal cost, the
# share of a round's time that is not learning, and the tokens a second over TRL's.
LEAST_OVER_STEPS, MOST_NOT_LEARNING, LEAST_OVER_TRL = 0.06, 0.4, 1.5


def spec_of(seed: int, controls: Sequence[str] = CONTROLS, **knobs: int) -> JobSpec:
    """Returns the quickstart with few problems, rounds and their controls."""
    own: dict[str, Any] = {
        "prepare.limit": NUM_PROBLEMS,
        "train.num_epochs": NUM_EPOCHS,
        "train.seed": seed,
        "train.controls": json.dumps(controls),
        "train.on_policy": json.dumps({**ROUNDS, **knobs}),
        "report.gate": json.dumps({"min_retention": 0.5}),
    }
    return load(JOB, [f"{key}={value}" for key, value in own.items()])[0]


def trained(store: str, seed: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """Trains with a seed; returns the accuracy of each role on each test problem, and the seconds
    of the rounds' parts."""
    torch.set_num_threads(1)
    spec = spec_of(seed)
    artifacts = made_in(store, spec)
    found = {role: accuracies(spec, artifacts, training_of(role)) for role in ROLES}
    # In the first round the engines start.
    seconds = parts_of(spec, artifacts, 2)
    for row in InputFolder(artifacts["train"].uri).read_manifest()["facts"]["rounds"]:
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    counts = {role: sum(score for score, _ in found[role].values()) for role in ROLES}
    print(f"seed {seed}: {counts} {seconds}", flush=True)
    return found, seconds


def parts_of(spec: JobSpec, artifacts: Mapping[str, Artifact], first: int) -> dict[str, float]:
    """Returns the seconds of the parts of all rounds from the first one on."""
    assert spec.train.on_policy
    seconds = {"learning": 0.0, "answers and scores": 0.0}
    for number in range(first, spec.train.on_policy.rounds + 1):
        *others, update = rounds.names_of(spec, number)
        seconds["learning"] += seconds_of(artifacts[update])
        seconds["answers and scores"] += sum(seconds_of(artifacts[name]) for name in others)
    return seconds


def own_tokens_a_second(store: str) -> float:
    """Returns the tokens that a student wrote in rounds over the time of these rounds, after the
    first: each answer is learned from once. With one thread."""
    spec = spec_of(0, controls=(), rounds=TIMED, prompts=NUM_PROBLEMS, passes=1)
    artifacts = made_in(store, spec)
    rows = InputFolder(artifacts["train"].uri).read_manifest()["facts"]["rounds"]
    written = sum(row["num"] * row["length"] for row in rows[1:])
    return float(written / sum(parts_of(spec, artifacts, 2).values()))


def seconds_of(artifact: Artifact) -> float:
    """Returns how long an artifact took to make."""
    return float(InputFolder(artifact.uri).read_manifest()["seconds"])


def tokens_of_trl() -> float:
    """Returns what TRL's trainer makes of the same models and problems."""
    rows = [json.loads(line) for line in (JOB.parent / "data/train.jsonl").open()][:NUM_PROBLEMS]
    models, questions = JOB.parent / "models", [row["question"] for row in rows]
    return tokens_a_second(str(models / "base"), str(models / "teacher"), questions, max_tokens=96)


def main() -> None:
    """Prints a table with a line a seed and role, then one JSON line a measure."""
    seeds = [int(seed) for seed in sys.argv[1:]] or list(SEEDS)
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        made_in(store, spec_of(0), "curate")
        with ProcessPoolExecutor(2, mp_context=spawning) as pool:
            found = list(pool.map(partial(trained, store), seeds))
        # One after the other, so that the machine is the same for both.
        with ProcessPoolExecutor(1, mp_context=spawning) as pool:
            ours = pool.submit(own_tokens_a_second, store).result()
            theirs = pool.submit(tokens_of_trl).result()
    runs = [scores for scores, _ in found]
    print(f"{'seed':8}{'against':22}accuracy    gain   95% interval")
    measures: list[Measure] = []
    for seed, scores in zip(seeds, runs, strict=True):
        tell(str(seed), [scores], "student", "student", "student")
        for role in ROLES[1:]:
            gain = tell(str(seed), [scores], "student", role, role)["value"]
            if role == "offline_steps":
                name = f"on_policy.over_equal_steps_seed_{seed}"
                measures.append((name, gain, LEAST_OVER_STEPS, gain >= LEAST_OVER_STEPS))
    low = tell("pooled", runs, "student", "offline_cost", "offline_cost")["low"]
    measures.append(("on_policy.over_equal_cost_low", low, 0.0, low > 0))
    total = sum(sum(seconds.values()) for _, seconds in found)
    share = sum(seconds["answers and scores"] for _, seconds in found) / total
    measures.append(
        ("on_policy.not_learning_share", share, MOST_NOT_LEARNING, share <= MOST_NOT_LEARNING)
    )
    print(f"tokens a second: {ours:,.0f}, TRL {theirs:,.0f}")
    ratio = ours / theirs
    measures.append(("on_policy.tokens_over_trl", ratio, LEAST_OVER_TRL, ratio >= LEAST_OVER_TRL))
    show(measures)


if __name__ == "__main__":
    main()
