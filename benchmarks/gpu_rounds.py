"""On-policy rounds on one GPU, at the size of real models: students of 0.5 billion weights and a
teacher of 1.5 billion, both random, with 151,936 ids.

`python -m benchmarks.gpu_rounds` needs an NVIDIA GPU; without one it says so and measures nothing.
The peer is TRL's DistillationTrainer with vLLM in the same process, as its documentation advises
for one GPU. `python -m benchmarks.gpu_rounds small` runs both with tiny shapes on a CPU, the peer
without vLLM, which shows that they run, and nothing else.
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import Measure, show
from benchmarks.students import made_in
from benchmarks.training_inputs import Shape, save_model
from benchmarks.trl_rounds import tokens_a_second
from retort.engines import find_engine
from retort.spec import JobSpec, build, rounds
from retort.stages.engine_settings import settings_of
from retort.store import InputFolder

NUM_ROUNDS, RELOADS = 3, 3
# What is claimed: tokens a second over TRL's, seconds to take 1 GB of weights, nats between the
# engine's distribution and the trainer's in bf16.
LEAST_OVER_TRL, MOST_RELOAD_SECONDS, MOST_NATS = 1.5, 2.0, 5e-3


@dataclass(frozen=True)
class Size:
    """The shapes of student and teacher, and of a round."""

    student: Shape
    teacher: Shape
    num_prompts: int
    prompt_words: int
    answer_tokens: int
    is_on_gpu: bool


VOCABULARY = 151_936
REAL = Size(
    Shape(VOCABULARY, 1024, 24, 4096), Shape(VOCABULARY, 1536, 28, 8192), 512, 128, 256, True
)
SMALL = Size(Shape(512, 64, 2, 128), Shape(512, 128, 2, 256), 32, 12, 8, False)


def write_inputs(folder: Path, size: Size) -> None:
    """Writes both models and as many rows of random words as a round has prompts."""
    for seed, (name, shape) in enumerate({"base": size.student, "teacher": size.teacher}.items()):
        save_model(folder / name, shape, seed)
    random = np.random.default_rng(0)
    for name, number in {"train": size.num_prompts, "test": 8}.items():
        words = random.integers(5, size.student.vocabulary, (number, size.prompt_words))
        rows = ({"question": " ".join(f"w{word}" for word in row), "answer": "w7"} for row in words)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def spec_of(folder: Path, size: Size) -> JobSpec:
    """Returns a job whose offline phase is a few steps, and whose rounds learn each answer once, as
    the peer does."""
    runtime: dict[str, Any] = {"max_num_seqs": 256}
    if size.is_on_gpu:
        runtime |= {"gpu_memory_utilization": 0.3}
    knobs: dict[str, Any] = {
        "rounds": NUM_ROUNDS,
        "prompts": size.num_prompts,
        "passes": 1,
        "held_out": 0,
    }
    knobs |= {"max_truncated": 1.0, "max_repeated": 1.0}  # random students never end
    dtype = "bfloat16" if size.is_on_gpu else "float32"
    return build(
        {
            "name": "gpu-rounds",
            "prepare": {
                "task_type": "qa",
                "train": str(folder / "train.jsonl"),
                "test": str(folder / "test.jsonl"),
                "deduplicate": {"exact": False, "near": False},
            },
            "generate": {
                "teacher": str(folder / "teacher"),
                "engine": "vllm",
                "mode": "score",
                "max_tokens": size.answer_tokens,
                "max_model_len": 1024,
                "top_k": 16,
                "dtype": dtype,
                "runtime": runtime,
            },
            "curate": {"filters": ["non_empty"]},
            "train": {
                "student": str(folder / "base"),
                "num_epochs": 1,
                "dtype": dtype,
                "save_dtype": dtype,
                "learning_rate": 1e-5,
                "on_policy": knobs,
            },
        }
    )


def ours(folder: Path, size: Size) -> tuple[float, float]:
    """Returns the tokens a second of the last round, when all engines are open, and the largest KL
    between an engine and a plain forward pass, in nats a token."""
    spec = spec_of(folder, size)
    made = made_in(str(folder / "store"), spec)
    facts = InputFolder(made["train"].uri).read_manifest()["facts"]["rounds"]
    last = rounds.names_of(spec, NUM_ROUNDS)
    seconds = sum(InputFolder(made[name].uri).read_manifest()["seconds"] for name in last)
    captured = [
        InputFolder(made[name].uri).read_manifest()["facts"]["parity"]
        for number in range(1, NUM_ROUNDS + 1)
        for name in rounds.names_of(spec, number)[:1]
    ]
    gaps = [found["kl_nats"] for found in captured if found]
    return facts[-1]["num"] * facts[-1]["length"] / seconds, max(gaps)


def reload_seconds(folder: Path, size: Size) -> float:
    """Returns the seconds in which an open engine takes 1 GB of new weights; of smaller models the
    seconds are of all that there is."""
    settings = replace(settings_of(spec_of(folder, size), ""), model=str(folder / "base"))
    settings = replace(settings, scores=False, top_k=0)
    engine: Any = find_engine("vllm").open_engine(settings)
    took = []
    for _ in range(RELOADS):
        started = time.perf_counter()
        engine.reload(str(folder / "base"))
        took.append(time.perf_counter() - started)
    weights = (folder / "base/model.safetensors").stat().st_size / 2  # written in float32
    return statistics.median(took) * max(1.0, 1e9 / weights if size.is_on_gpu else 1.0)


def main() -> None:
    """Prints one JSON line a measure."""
    size = SMALL if sys.argv[1:] == ["small"] else REAL
    if size.is_on_gpu and not torch.cuda.is_available():
        print("there is no NVIDIA GPU, and so nothing to measure")
        return
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as name:
        folder = Path(name)
        write_inputs(folder, size)
        with ProcessPoolExecutor(1, mp_context=spawning, max_tasks_per_child=1) as pool:
            pace, gap = pool.submit(ours, folder, size).result()
            seconds = pool.submit(reload_seconds, folder, size).result()
            questions = [json.loads(line)["question"] for line in (folder / "train.jsonl").open()]
            models = str(folder / "base"), str(folder / "teacher")
            peer = pool.submit(
                tokens_a_second,
                *models,
                questions,
                max_tokens=size.answer_tokens,
                on_gpu=size.is_on_gpu,
            ).result()
    print(f"tokens a second: {pace:,.0f}, TRL {peer:,.0f}")
    measures: list[Measure] = [
        ("gpu_rounds.tokens_over_trl", pace / peer, LEAST_OVER_TRL, pace / peer >= LEAST_OVER_TRL),
        ("gpu_rounds.reload_seconds", seconds, MOST_RELOAD_SECONDS, seconds <= MOST_RELOAD_SECONDS),
        ("gpu_rounds.nats", gap, MOST_NATS, gap <= MOST_NATS),
    ]
    show(measures)


if __name__ == "__main__":
    main()
