"""Whether hidden states and attention's relations help: the quickstart's student with and without.

`python -m benchmarks.features` trains on 1,600 problems of the quickstart with a live teacher,
three seeds an objective: forward_kl alone, and with `hidden_states` or `attention_relations`.
Everything else is the quickstart's. The interval is of benchmarks/seeds.py: it resamples test
problems, each with all its seeds. The teacher is frozen, so each of its passes is made once and
kept: that changes the time and nothing else.
"""

# T time, N supervised tokens, D width of a vector
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from benchmarks import Measure, show
from benchmarks.seeds import JOB, SEEDS
from benchmarks.students import answered, made_in, tell
from retort.events import SILENT
from retort.spec import JobSpec, load
from retort.stages.stage import Stage
from retort.stages.train import batches, loop
from retort.stages.train.batches import Batch, TrainingItem
from retort.store import Artifact, Folder, open_store

NUM_PROBLEMS, NUM_EPOCHS = 1600, 8
# What is claimed: neither is told from no gain, and a larger gain than this is ruled out.
MOST_GAIN = 0.03
PLAIN = {"name": "forward_kl", "temperature": 2}
# At these weights the gradient of each is about a tenth of that of forward_kl. At 0.1 hidden_states
# has as large a one; with one seed and 7 passes, forward_kl in validation was 0.92 then, not 0.77.
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "plain": [PLAIN],
    "hidden_states": [PLAIN, {"name": "hidden_states", "weight": 0.01}],
    "attention_relations": [PLAIN, {"name": "attention_relations", "weight": 0.15}],
}

# What the teacher gave for each item, by objective.
KNOWN: dict[str, dict[str, Batch]] = {}


class Remembering(loop.Trainer):
    """A trainer that asks the teacher once for each item."""

    known: dict[str, Batch]  # by item's id, of one objective

    def _batch(self, part: list[TrainingItem]) -> Batch:
        for item in part:
            if item[0].id not in self.known:
                self.known[item[0].id] = super()._batch([item])
        batch = batches.collate(part, self.device)
        rows = [self.known[row.id] for row, _ in part]
        hidden_NH = torch.cat([row.target.teacher_hidden_NH for row in rows])
        states, width = {}, batch.input_ids_BT.shape[1]
        for name in rows[0].states or {}:
            parts = [(row.states or {})[name][0] for row in rows]
            states[name] = torch.stack([pad(x_TD, (0, 0, 0, width - len(x_TD))) for x_TD in parts])
        target = replace(batch.target, teacher_hidden_NH=hidden_NH)
        return replace(batch, target=target, states=states or None)


def spec_of(name: str, seed: int) -> JobSpec:
    """Returns the quickstart with an objective's losses and a live teacher."""
    knobs = {
        "prepare.limit": NUM_PROBLEMS,
        "generate.engine": "transformers",
        "generate.top_k": 0,
        "train.teacher": "live",
        "train.losses": json.dumps(OBJECTIVES[name]),
        "train.num_epochs": NUM_EPOCHS,
        "train.seed": seed,
    }
    return load(JOB, [f"{key}={value}" for key, value in knobs.items()])[0]


def scored(store: str, inputs: dict[str, Artifact], way: tuple[str, int]) -> dict[str, list[float]]:
    """Trains with an objective and a seed; returns the accuracy on each test problem, and 1."""
    name, seed = way
    torch.set_num_threads(1)
    folder = f"{store}/{name}-{seed}"
    given = (spec_of(name, seed), open_store(store), inputs, Folder(folder))
    stage = Stage("train", *given, SILENT, Path(store) / "log")
    Remembering.known = KNOWN.setdefault(name, {})
    loop.Trainer = Remembering  # type: ignore[misc]
    loop.fit(stage.arguments(), SILENT)
    found = answered(stage.spec, stage.input("prepare"), f"{folder}/student")
    print(f"{name}, seed {seed}: {sum(score for score, _ in found.values()):.0f} right", flush=True)
    return found


def main() -> None:
    """Prints a table with a line a seed and objective, then one JSON line a measure."""
    names = sys.argv[1:] or list(OBJECTIVES)
    ways = [(name, seed) for seed in SEEDS for name in names]
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        inputs = made_in(store, spec_of("plain", 0), "curate")
        one = partial(scored, store, inputs)
        with ProcessPoolExecutor(2, mp_context=spawning) as pool:
            found = dict(zip(ways, pool.map(one, ways), strict=True))
    runs = [{name: found[name, seed] for name in names} for seed in SEEDS]
    print(f"{'seed':8}{'objective':22}accuracy    gain   95% interval")
    measures: list[Measure] = []
    for name in names:
        for seed, scores in zip(SEEDS, runs, strict=True):
            tell(str(seed), [scores], name, "plain", name)
    for name in names[1:]:
        gain = tell("pooled", runs, name, "plain", name)
        is_none = gain["low"] <= 0 <= gain["high"]
        measures.append((f"features.{name}_gain", gain["value"], 0.0, is_none))
        high = gain["high"]
        measures.append((f"features.{name}_gain_high", high, MOST_GAIN, high <= MOST_GAIN))
    show(measures)


if __name__ == "__main__":
    main()
