"""What a training step costs: the signal beside plain fine-tuning, and both beside TRL's trainers.

Each way runs in a fresh process on one thread, on the same rows in the same order; its time is
counted between optimizer steps, by a hook that is the same for all, so that it holds everything but
the set-up and the first steps. A figure is the median of the rounds' ratios. It is of CPU time:
with nothing to wait for, that is the wall time of a machine that does nothing else; the wall's
ratio is printed beside it. TRL's trainers and those beside them, which are far apart, run two at a
time. That both sides do the same work is asserted on their losses.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks import Measure, show, training_inputs
from benchmarks.training_inputs import BATCH_SIZE, Shape
from retort.data.encoding import IGNORED, EncodedRow
from retort.events import SILENT
from retort.stages.train.loop import fit

NUM_THREADS, NUM_ROUNDS = 1, 3
PLAIN = [{"name": "cross_entropy"}]
MIX = [{"name": "cross_entropy", "weight": 0.2}, {"name": "forward_kl", "weight": 0.8}]
# Loss a token of both sides: of the first step, and of a batch after the last.
FIRST_GAP, LAST_GAP = 1e-3, 1e-2


class Case(NamedTuple):
    """Models of one vocabulary by name; how many steps are made, and how many are not counted;
    the ways to go, each round's in this order; how many processes at a time."""

    models: dict[str, Shape]
    num_steps: int
    num_first: int
    ways: list[str]
    at_once: int = 1


CASES = {
    "quickstart": Case(
        {"student": Shape(118, 64, 2, 128), "teacher": Shape(118, 192, 4, 576)},
        250,
        50,
        ["plain", "signal"],
    ),
    "wide": Case(
        {"student": Shape(32000, 256, 2, 512), "teacher": Shape(32000, 32, 1, 64)},
        12,
        4,
        ["plain", "signal"],
    ),
    "peer": Case(  # 0.36 million weights, and 2.5 and 7.2 million
        {
            "student": Shape(118, 128, 2, 280),
            "teacher": Shape(118, 256, 4, 480),
            "teacher_20": Shape(118, 384, 4, 1040),
        },
        50,
        10,
        ["plain", "sft", "gkd", "signal", "gkd_20", "live"],
        at_once=2,
    ),
}


def ours(folder: Path, way: str) -> tuple[Any, float]:
    """Trains with the stage's own function; returns the student, and its last loss."""
    teacher = way.replace("live", "teacher") if way.startswith("live") else None
    spec = training_inputs.spec_of(folder, PLAIN if way == "plain" else MIX, teacher)
    stage = training_inputs.stage_of(folder, "rows", spec, f"{way}-{os.getpid()}")
    facts = fit(stage.arguments(), SILENT)
    student = LlamaForCausalLM.from_pretrained(Path(stage.out.uri) / "student")
    stage.out.clear()
    return student, facts["loss"]


def theirs(folder: Path, way: str, steps: list[list[EncodedRow]]) -> tuple[Any, float]:
    """Trains with TRL; returns the student, and the loss of the first step.

    Everything that TRL does beside training is off; the rows come tokenized and in our order.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    datasets.disable_progress_bars()
    found = [row for step in steps for row in step]
    labels = [[IGNORED] * (row.first + 1) + row.labels[row.first :] for row in found]
    dataset = datasets.Dataset.from_dict(
        {"input_ids": [[*row.input_ids, row.labels[-1]] for row in found], "labels": labels}
    )
    options: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_first_step": True,
        "logging_steps": 1_000_000,
        "logging_nan_inf_filter": False,
    }
    shared: dict[str, Any] = {
        "model": LlamaForCausalLM.from_pretrained(folder / "student", dtype=torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(folder / "student"),
        "train_dataset": dataset,
        "data_collator": DataCollatorForLanguageModeling(pad_token_id=0),
    }
    if way == "sft":
        trainer = SFTTrainer(args=SFTConfig(**options), **shared)
    else:
        # Off-policy and with beta 0: the forward KL, the least that it can do.
        args = GKDConfig(**options, lmbda=0.0, beta=0.0, seq_kd=False, temperature=1.0)
        path = folder / way.replace("gkd", "teacher")
        teacher = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
        trainer = GKDTrainer(args=args, teacher_model=teacher, **shared)
    trainer.train()
    return trainer.model, trainer.state.log_history[0]["loss"]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def loss_of(model: Any, step: list[EncodedRow]) -> float:
    """Returns the cross-entropy per supervised token, row by row in a plain forward."""
    model.eval()
    sums = [
        cross_entropy(
            model(input_ids=torch.tensor([row.input_ids])).logits[0],
            torch.tensor(row.labels),
            ignore_index=IGNORED,
            reduction="sum",
        )
        for row in step
    ]
    return float(sum(sums)) / _num_supervised([step])


def _num_supervised(steps: list[list[EncodedRow]]) -> int:
    return sum(len(row.labels) - row.first for step in steps for row in step)


def measured(folder: Path, way: str, num_first: int) -> dict[str, float]:
    """Returns the supervised tokens and the seconds of a way's steps after the first ones; the
    loss that it reports, and that of its student after the last step."""
    torch.set_num_threads(NUM_THREADS)
    marks: list[tuple[float, float]] = []
    steps = training_inputs.steps_of(folder, "rows")
    register_optimizer_step_post_hook(
        lambda *_: marks.append((time.perf_counter(), time.process_time()))
    )
    trains_ours = not way.startswith(("sft", "gkd"))
    model, loss = ours(folder, way) if trains_ours else theirs(folder, way, steps)
    assert len(marks) == len(steps), f"{len(marks)} steps were made, not {len(steps)}"
    wall, cpu = (last - first for first, last in zip(marks[num_first - 1], marks[-1], strict=True))
    tokens, after = _num_supervised(steps[num_first:]), loss_of(model, steps[0])
    return {"tokens": tokens, "wall": wall, "cpu": cpu, "loss": loss, "after": after}


def in_fresh_process(folder: Path, way: str, num_first: int) -> dict[str, float]:
    """Returns what `measured` gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", str(folder), way, str(num_first)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(NUM_THREADS)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def set_up(folder: Path, case: Case) -> None:
    """Writes the models of a case and the rows of all its steps."""
    for seed, (name, shape) in enumerate(case.models.items()):
        training_inputs.save_model(folder / name, shape, seed)
    made = training_inputs.answered(folder / "student", case.num_steps * BATCH_SIZE)
    training_inputs.write_inputs(folder, "rows", made, training_inputs.TOP_K)


def first_step(folder: Path, vocabulary: int) -> dict[str, float]:
    """Returns the losses of our trainer's first step, with every id of the teacher stored."""
    wanted = {row.id for row in training_inputs.steps_of(folder, "rows")[0]}
    made = [
        one for one in training_inputs.answered(folder / "student", 10_000) if one[0].id in wanted
    ]
    training_inputs.write_inputs(folder, "first", made, vocabulary)
    stage = training_inputs.stage_of(
        folder, "first", training_inputs.spec_of(folder, MIX, None), "run"
    )
    return fit(stage.arguments(), SILENT)


def rounds_of(folder: Path, name: str) -> dict[str, list[dict[str, float]]]:
    """Returns what each way of a case gave in each round; every other round goes backwards."""
    case = CASES[name]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in case.ways}
    rounds = [case.ways[:: -1 if index % 2 else 1] for index in range(NUM_ROUNDS)]
    ways = [way for each in rounds for way in each]
    with ThreadPoolExecutor(case.at_once) as pool:
        run = partial(in_fresh_process, folder, num_first=case.num_first)
        for way, new in zip(ways, pool.map(run, ways), strict=True):
            found[way].append(new)
            paces = [new["tokens"] / new[clock] for clock in ("cpu", "wall")]
            print(
                f"{name}, {way}: {paces[0]:.0f} supervised tokens a second of CPU time, "
                f"{paces[1]:.0f} of the wall's; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    return found


def ratio(found: dict[str, list[dict[str, float]]], one: str, other: str) -> float:
    """Returns the median over the rounds of how many times the pace of the other way one has."""
    cpu, wall = (
        statistics.median(
            b[clock] / a[clock] for a, b in zip(found[one], found[other], strict=True)
        )
        for clock in ("cpu", "wall")
    )
    print(f"{one} over {other}: {cpu:.3f} times the pace; by the wall's time {wall:.3f} times")
    return cpu


def check_same_work(found: dict[str, list[dict[str, float]]], first: dict[str, float]) -> None:
    """Asserts that TRL's trainers and ours have the same losses in the first step, and that plain
    fine-tuning leaves the same student."""
    for way, loss in {"sft": "cross_entropy", "gkd": "forward_kl"}.items():
        gap = abs(found[way][0]["loss"] - first[loss])
        print(f"first step, {way}: {found[way][0]['loss']:.4f}, ours {first[loss]:.4f}")
        assert gap <= FIRST_GAP, f"{way} does other work: its first loss is {gap} off"
    after = {way: found[way][0]["after"] for way in ("plain", "sft")}
    print(f"loss of a batch after the last step: {after}")
    assert abs(after["plain"] - after["sft"]) <= LAST_GAP, after


def measures_of(name: str) -> list[Measure]:
    """Returns the measures of a case, after its rounds."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        folder = Path(scratch)
        set_up(folder, CASES[name])
        found = rounds_of(folder, name)
        if name != "peer":
            cost = ratio(found, "plain", "signal")  # of as many tokens, so a step's cost
            return [(f"train.signal_step_ratio_{name}", cost, 1.10, cost <= 1.10)]
        check_same_work(found, first_step(folder, CASES[name].models["student"].vocabulary))
    ratio(found, "live", "gkd")  # printed, not a target: the same teacher in memory on both sides
    return [
        (label, value, target, value >= target)
        for label, value, target in (
            ("train.sft_ratio", ratio(found, "plain", "sft"), 1.0),
            ("train.gkd_ratio", ratio(found, "signal", "gkd"), 2.5),
            ("train.gkd_ratio_20", ratio(found, "signal", "gkd_20"), 4.0),
        )
    ]


def main() -> None:
    """Measures the cases that are named, or all."""
    show([measure for name in sys.argv[1:] or CASES for measure in measures_of(name)])


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] not in CASES:
        print(json.dumps(measured(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
    else:
        main()
