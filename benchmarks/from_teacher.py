"""A student cut from its teacher: the quickstart's, 4 layers to 2, and how layers are chosen.

`python -m benchmarks.from_teacher` runs the quickstart's job with `train.student: {from_teacher:
{layers: 2}}` and the control random_start, in one store, so that all students learn from the same
answers. `python -m benchmarks.from_teacher 0` runs one seed. The seconds are those of one core that
cutting and training take together, in a process of their own, its imports included.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from benchmarks import Measure, show
from benchmarks.seeds import JOB, NUM_RESAMPLES, Scores, mean_of
from retort import metrics, processes
from retort.data import task_types
from retort.events import SILENT, Reporter
from retort.losses import Target
from retort.records import Response, read_lines
from retort.spec import StageName, build, load
from retort.stages import cut, train
from retort.stages.cut.layers import Teacher, choose
from retort.stages.cut.rows import Batch
from retort.stages.stage import Stage, read_examples
from retort.store import Folder, Store

SEEDS = (0, 1, 2)
CUT = "train.student={from_teacher: {layers: 2}}"
# 2,000 problems, of which about 1,980 answers are kept, in nine passes.
KNOBS = ("prepare.limit=2000", "train.num_epochs=9", "train.learning_rate=2e-3")
LOSS = "train.losses=[{name: forward_kl}]"
OTHERS = ("train.controls=[random_start]", "report.gate={min_retention: 0.5}")
# Only the answers count here.
SHORT = ("evaluate.rounds=1", "evaluate.likelihood=false", "evaluate.latency_samples=2")
NUM_TEACHERS = 4


def run(store: str, seed: int) -> dict[str, Any]:
    """Returns the report of the job with that seed of its training."""
    command = [sys.executable, "-m", "flows.cli", "run", str(JOB), "--store", store, "--json"]
    for knob in (CUT, *KNOBS, LOSS, *OTHERS, *SHORT, f"train.seed={seed}"):
        command += ["--set", knob]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def scores_of(report: dict[str, Any]) -> Scores:
    """Returns each model's accuracy on every test example, from the stored answers."""
    task_type = task_types.load(load(JOB)[0].prepare.task_type)
    examples = read_examples(Folder(report["artifacts"]["prepare"]), "test")
    answers = Folder(report["artifacts"]["evaluate"])
    found: Scores = {}
    for role in ("teacher", "base", "student", "random_start"):
        lines = answers.read(f"answers-{role}.jsonl")
        texts = {response.id: response.text for response in read_lines(Response, lines)}
        found[role] = metrics.statistics(task_type, examples, texts, texts)["accuracy"]
    return found


def again(arguments: list[dict[str, Any]], report: Reporter) -> float:
    """Returns the seconds of the CPU that this process takes to cut and train once more."""
    torch.set_num_threads(1)
    for arguments_of_stage, function in zip(arguments, (cut.make, train.fit), strict=True):
        function(arguments_of_stage, report)
    return time.process_time()


def seconds_of(report: dict[str, Any], folder: Path) -> float:
    """Returns the CPU seconds of cutting and training; the student is the job's, bit for bit."""
    read = {name: Folder(report["artifacts"][name]) for name in ("prepare", "generate", "curate")}
    inputs = {name: made.reference(made.read_manifest()) for name, made in read.items()}
    spec, arguments = build(report["ran"]["spec"]), list[dict[str, Any]]()
    names: tuple[StageName, ...] = ("cut", "train")
    for name in names:
        own = spec if name == "cut" else spec.based_on(str(folder / "cut" / "student"))
        out = Folder(str(folder / name))
        arguments.append(
            Stage(name, own, Store(str(folder)), inputs, out, SILENT, folder / "log").arguments()
        )
    runtime = {"timeout_seconds": 600.0, "num_threads": 1}
    seconds = processes.run(again, {"arguments": arguments}, SILENT, folder / "log", runtime)
    weights = "student/model.safetensors"
    assert Folder(report["artifacts"]["train"]).read(weights) == out.read(weights)
    return seconds


def random_teacher(seed: int) -> Teacher:
    """Returns a teacher of six layers with random weights of several sizes, and random answers."""
    shape = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 128}
    shape |= {"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = (LlamaConfig, Qwen3Config)[seed % 2](**shape, head_dim=16, initializer_range=0.1)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # alike, all layers would matter alike
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= 4 * torch.rand(())
            layer.self_attn.o_proj.weight *= 4 * torch.rand(())
    ids = torch.randint(200, (8, 24))
    places = torch.meshgrid(torch.arange(8), torch.arange(23), indexing="ij")
    rows, times = (each.flatten() for each in places)
    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[rows, times].log_softmax(-1)
    top = logprobs.topk(16)
    tail = torch.log1p(-top.values.exp().sum(1).clamp(max=1 - 1e-6))
    target = Target(ids[rows, times + 1], top.indices, top.values, tail)
    return Teacher(model, "model.layers", [Batch(ids, ids >= 0, rows, times, target)])


def choices(report: dict[str, Any]) -> list[tuple[str, dict[str, float], str]]:
    """Returns the KL of each way to choose layers, and the way taken, of several teachers."""
    facts = Folder(report["artifacts"]["cut"]).read_manifest()["facts"]
    found = [("quickstart, 2 of 4", facts["kl"], facts["by"])]
    for seed in range(NUM_TEACHERS):
        for number in (2, 4):
            made = choose(random_teacher(seed), number, "kl", SILENT)
            found.append((f"random {seed}, {number} of 6", made.kl, made.by))
    return found


def never_worse(report: dict[str, Any]) -> bool:
    """Prints the KL of each way of each teacher; returns whether the one taken is never worse."""
    ways = ("kl", "block_influence", "first_and_last")
    print(f"{'nats a token':20}" + "".join(f"{way:>17}" for way in ways) + "   taken")
    found = choices(report)
    for name, kl, by in found:
        print(f"{name:20}" + "".join(f"{kl[way]:17.4f}" for way in ways) + f"   {by}")
    return all(kl[by] <= min(kl[way] for way in ways) for _, kl, by in found)


def gap(runs: Sequence[Scores], role: str) -> dict[str, float]:
    """Returns student minus another model in accuracy, the mean over runs, with its interval."""
    student, other = mean_of(runs, "student"), mean_of(runs, role)
    return metrics.difference("accuracy", student, other, NUM_RESAMPLES, seed=0)


def tell(name: str, runs: Sequence[Scores]) -> dict[str, float]:
    """Prints one line of the table; returns the mean accuracy by role."""
    roles = ("teacher", "base", "random_start", "student")
    means = {role: float(np.mean([s for s, _ in mean_of(runs, role).values()])) for role in roles}
    found = gap(runs, "random_start")
    print(
        f"{name:8}" + "".join(f"{means[role]:14.1%}" for role in roles),
        f"{found['value'] * 100:+9.1f}   {found['low'] * 100:+.1f} to {found['high'] * 100:+.1f}",
        flush=True,
    )
    return means


def main() -> None:
    """Prints a line a seed and the choices of layers, then one JSON line a measure."""
    seeds = [int(word) for word in sys.argv[1:]] or SEEDS
    heads = ("teacher", "cut alone", "random start", "student")
    print(f"{'seed':8}" + "".join(f"{head:>14}" for head in heads), "     gain   95% interval")
    measures: list[Measure] = []
    runs, reports = list[Scores](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        for seed in seeds:
            reports.append(run(store, seed))
            runs.append(scores_of(reports[-1]))
            means = tell(str(seed), runs[-1:])
            kept, gain = (
                means["student"] / means["teacher"],
                means["student"] - means["random_start"],
            )
            measures += [
                (f"from_teacher.retention_seed_{seed}", kept, 0.9, kept >= 0.9),
                (f"from_teacher.over_random_seed_{seed}", gain, 0.5, gain >= 0.5),
            ]
        facts = Folder(reports[0]["artifacts"]["cut"]).read_manifest()["facts"]
        seconds = seconds_of(reports[0], Path(store) / "again")
        chosen = never_worse(reports[0])
    tell("pooled", runs)
    low = gap(runs, "random_start")["low"]
    share = facts["parameters_after"] / facts["parameters_before"]
    show(
        [
            *measures,
            ("from_teacher.over_random_low", low, 0.5, low >= 0.5),
            ("from_teacher.parameters", share, 0.52, share <= 0.52),
            ("from_teacher.seconds", seconds, 120.0, seconds <= 120),
            ("from_teacher.never_worse", float(chosen), 1.0, chosen),
        ]
    )


if __name__ == "__main__":
    main()
