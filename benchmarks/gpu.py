"""The claims of `benchmarks.losses` and `benchmarks.train` on one GPU, at the size of real models.

`python -m benchmarks.gpu` takes two minutes on an H200; without a GPU it says so and measures
nothing. The peer of training is a plain loop of PyTorch: Hugging Face's model and loss, padded
batches, fused AdamW, all under bf16 autocast; and the hardware's limit is a product of two large
matrices, timed in the same run.
"""

# N supervised tokens, H hidden size, V vocabulary, B rows, T positions
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaForCausalLM

from benchmarks import Measure, losses, show, training_inputs
from benchmarks.train import MIX, PLAIN
from benchmarks.training_inputs import BATCH_SIZE, Shape
from retort.data.encoding import EncodedRow
from retort.events import SILENT
from retort.losses import Target
from retort.stages.train.head import Head, Sums, losses_of, sums_of
from retort.stages.train.loop import fit

NUM_TOKENS, HIDDEN, VOCABULARY = 16384, 2048, 151936
STUDENT, TEACHER = Shape(VOCABULARY, 1024, 16, 3072), Shape(VOCABULARY, 64, 1, 128)
ANSWER = (300, 500)  # tokens
NUM_STEPS, NUM_FIRST, NUM_ROUNDS = 16, 6, 3


def head_pass(way: str) -> dict[str, float]:
    """Returns the peak memory above the inputs (bytes) and the seconds of a head's pass."""
    torch.manual_seed(0)
    hidden_NH = torch.randn(NUM_TOKENS, HIDDEN, device="cuda", requires_grad=True)
    student = losses.layer(VOCABULARY, HIDDEN).cuda()
    part = losses.stored(64, VOCABULARY)
    target = Target(
        *(
            torch.cat([column] * (NUM_TOKENS // 64)).cuda()
            for column in (part.labels_N, part.ids_NK, part.logprobs_NK, part.tail_N)
        )
    )

    def run() -> Sums:
        terms = losses.OBJECTIVES["stored"]
        with torch.autocast("cuda", torch.bfloat16):
            if way == "chunked":
                return losses_of(hidden_NH, Head(student, VOCABULARY), target, terms)
            return sums_of(student(hidden_NH), target, terms)

    run().total_.backward()  # the first call chooses kernels
    found = []
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        run().total_.backward()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() - before
    print(f"head, {way}: {peak / 1e9:.2f} GB above the inputs, {min(found) * 1e3:.1f} ms")
    return {"bytes": float(peak), "seconds": min(found)}


def matmul_flops() -> float:
    """Returns the operations a second of a product of two large bf16 matrices."""
    size, found = 8192, []
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        started = time.perf_counter()
        one @ other
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(found)


def ours(folder: Path, way: str) -> float:
    """Trains with the stage's own function; returns the seconds of a step, the median."""
    marks: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *_: marks.append(_now()))
    spec = training_inputs.spec_of(
        folder,
        PLAIN if way == "plain" else MIX,
        None,
        runtime={"device": "cuda", "checkpoint_seconds": 1e6, "micro_batch_tokens": 32768},
        dtype="bfloat16",
    )
    stage = training_inputs.stage_of(folder, "rows", spec, f"{way}-{time.monotonic_ns()}")
    fit(stage.arguments(), SILENT)
    stage.out.clear()
    handle.remove()
    return _median_step(marks)


def theirs(folder: Path, steps: list[list[EncodedRow]]) -> float:
    """Trains in a plain loop on the same rows; returns the seconds of a step, the median."""
    model = LlamaForCausalLM.from_pretrained(folder / "student", dtype=torch.float32).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    marks: list[float] = []
    for step in steps:
        ids_BT = pad_sequence(
            [torch.tensor([*row.input_ids, row.labels[-1]]) for row in step], batch_first=True
        ).cuda()
        labels_BT = pad_sequence(
            [torch.tensor([-100] * (row.first + 1) + row.labels[row.first :]) for row in step],
            batch_first=True,
            padding_value=-100,
        ).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(
                input_ids=ids_BT, attention_mask=(ids_BT != 0).long(), labels=labels_BT
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(_now())
    return _median_step(marks)


def _now() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _median_step(marks: list[float]) -> float:
    last = marks[NUM_FIRST:]
    return statistics.median(b - a for a, b in itertools.pairwise(last))


def head_measures() -> list[Measure]:
    """Returns what the chunked head costs beside the dense computation."""
    found = {}
    for way in ("chunked", "dense"):
        found[way] = head_pass(way)
        torch.cuda.empty_cache()
    ratio = {name: found["chunked"][name] / found["dense"][name] for name in found["dense"]}
    return [
        ("gpu.head_memory_ratio", ratio["bytes"], 1 / 6, ratio["bytes"] <= 1 / 6),
        ("gpu.head_time_ratio", ratio["seconds"], 1.1, ratio["seconds"] <= 1.1),
    ]


def train_measures(folder: Path) -> list[Measure]:
    """Returns what a step costs with the signal and beside the plain loop."""
    training_inputs.save_model(folder / "student", STUDENT, 0)
    training_inputs.save_model(folder / "teacher", TEACHER, 1)
    made = training_inputs.answered(folder / "student", NUM_STEPS * BATCH_SIZE, ANSWER)
    training_inputs.write_inputs(folder, "rows", made, training_inputs.TOP_K)
    steps = training_inputs.steps_of(folder, "rows")
    found: dict[str, list[float]] = {"plain": [], "signal": [], "torch": []}
    for _ in range(NUM_ROUNDS):
        for way, times in found.items():
            times.append(theirs(folder, steps) if way == "torch" else ours(folder, way))
            torch.cuda.empty_cache()
    best = {way: min(times) for way, times in found.items()}
    tokens = statistics.mean(len(row.input_ids) for step in steps for row in step) * BATCH_SIZE
    weights = sum(
        p.numel() for p in LlamaForCausalLM.from_pretrained(folder / "student").parameters()
    )
    peak = matmul_flops()
    for way, seconds in best.items():
        share = 6 * weights * tokens / seconds / peak
        print(
            f"{way}: {tokens / seconds:.0f} tokens a second of {weights / 1e6:.0f}M weights, "
            f"{share:.2f} of the {peak / 1e12:.0f} TFLOP/s of a matrix product"
        )
    cost, pace = best["signal"] / best["plain"], best["torch"] / best["plain"]
    return [
        ("gpu.signal_step_ratio", cost, 1.10, cost <= 1.10),
        ("gpu.train_over_torch", pace, 1.0, pace >= 1.0),
    ]


def main() -> None:
    """Measures the head, then training, where there is a GPU."""
    if not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        show(head_measures() + train_measures(Path(scratch)))


if __name__ == "__main__":
    main()
