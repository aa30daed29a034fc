"""The chunked head's claims: memory and time beside the dense computation, and exact gradients.

`python -m benchmarks.losses` needs 10 GB of free memory and some minutes: each way runs in a fresh
process on two threads, the best of two in turn. Dense is the same losses in fp32, on the logits of
the whole batch.
"""

# N supervised tokens, H hidden size, V vocabulary, K teacher top-k
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import Measure, show
from retort import losses
from retort.losses import Target
from retort.stages.train.head import Head, Sums, Term, losses_of, sums_of

NUM_THREADS, NUM_ROUNDS = 2, 2
NUM_TOKENS, HIDDEN, TOP_K = 4096, 1024, 16
# The vocabulary of a case: Qwen3's; with a live teacher Llama 2's, for all its dense logits of the
# other would fill most machines.
CASES = {"stored": 151936, "live": 32000}
OBJECTIVES = {
    "stored": [
        Term("cross_entropy", losses.cross_entropy, 0.2),
        Term("forward_kl", losses.forward_kl, 0.8),
    ],
    "live": [Term("jsd", losses.jsd)],
}
EVERY_LOSS: dict[str, Callable[[Tensor, Target], Tensor]] = {
    "cross_entropy": losses.cross_entropy,
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "jsd": losses.jsd,
    "skewed_forward_kl": losses.skewed_forward_kl,
    "skewed_reverse_kl": losses.skewed_reverse_kl,
    "adaptive_kl": losses.adaptive_kl,
    "total_variation": losses.total_variation,
    "forward_kl at T 2": partial(losses.forward_kl, temperature=2.0),
}


def stored(num_tokens: int, vocabulary: int) -> Target:
    """Returns random labels and a random top-k that holds 95% of the teacher's mass."""
    ids_NK = torch.rand(num_tokens, vocabulary).topk(TOP_K, dim=1).indices
    logprobs_NK = torch.log_softmax(2 * torch.randn(num_tokens, TOP_K), dim=1) + math.log(0.95)
    tail_N = (1 - logprobs_NK.exp().sum(dim=1)).log()
    return Target(ids_NK[:, 0], ids_NK, logprobs_NK, tail_N)


def layer(vocabulary: int, hidden: int) -> nn.Linear:
    """Returns a head that makes logits of standard deviation 3 of normal hidden states."""
    made = nn.Linear(hidden, vocabulary, bias=False)
    nn.init.normal_(made.weight, std=3 / hidden**0.5)
    return made


def memory(field: str) -> int:
    """Returns a field of this process's status in bytes: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measured(case: str, way: str) -> dict[str, float]:
    """Returns the peak memory above the inputs (bytes), and the seconds of one pass."""
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    vocabulary, terms = CASES[case], OBJECTIVES[case]
    hidden_NH = torch.randn(NUM_TOKENS, HIDDEN, requires_grad=True)
    student, teacher = layer(vocabulary, HIDDEN), None
    if case == "live":
        teacher = layer(vocabulary, HIDDEN).requires_grad_(False)
        states_NH = torch.randn(NUM_TOKENS, HIDDEN)
        target = Target(torch.zeros(NUM_TOKENS).long(), teacher_hidden_NH=states_NH)
    else:
        parts = [stored(64, vocabulary) for _ in range(NUM_TOKENS // 64)]
        columns = zip(
            *((p.labels_N, p.ids_NK, p.logprobs_NK, p.tail_N) for p in parts), strict=True
        )
        target = Target(*(torch.cat(column) for column in columns))

    def run() -> Sums:
        if way == "chunked":
            theirs = None if teacher is None else Head(teacher, vocabulary)
            return losses_of(hidden_NH, Head(student, vocabulary), target, terms, theirs)
        if teacher is None:
            return sums_of(student(hidden_NH), target, terms)
        dense = Target(target.labels_N, teacher_logits_NV=teacher(target.teacher_hidden_NH))
        return sums_of(student(hidden_NH), dense, terms)

    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before, started = memory("VmRSS"), (time.perf_counter(), time.process_time())
    sums = run()
    sums.total_.backward()
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    norm = float(hidden_NH.grad.norm()) + float(student.weight.grad.norm())
    peak = memory("VmHWM") - before
    return {"bytes": peak, "wall": wall, "cpu": cpu, "loss": sums.total_.item(), "norm": norm}


def in_fresh_process(case: str, way: str) -> dict[str, float]:
    """Returns what `measured` gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.losses", case, way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def worst_error(is_bf16: bool) -> float:
    """Returns the largest relative error of a gradient against float64 autograd, of all losses.

    In bf16 the hidden states and the head are held so, and so are their gradients.
    The dense teacher's odds are those of the student times e or 1/e. That keeps the probabilities
    apart: where they meet total variation has a kink, and rounding decides its gradient's sign.
    """
    torch.manual_seed(0)
    num_tokens, hidden, vocabulary = 200, 64, 4096
    states_NH, head = torch.randn(num_tokens, hidden), layer(vocabulary, hidden)
    with torch.no_grad():
        odds_NV = torch.randint(0, 2, (num_tokens, vocabulary)) * 2 - 1
        dense_NV = head(states_NH) + odds_NV
    dense = Target(torch.randint(0, vocabulary, (num_tokens,)), teacher_logits_NV=dense_NV)
    if is_bf16:
        states_NH, head = states_NH.bfloat16(), head.bfloat16()
    worst = 0.0
    for target in (dense, stored(num_tokens, vocabulary)):
        for name, loss in EVERY_LOSS.items():
            terms, ours, exact = (
                [Term(name, loss)],
                copy.deepcopy(head),
                copy.deepcopy(head).double(),
            )
            leaf_NH = states_NH.clone().requires_grad_()
            chunks = Head(ours, vocabulary, chunk_tokens=48)
            losses_of(leaf_NH, chunks, target, terms).total_.backward()
            exact_NH = states_NH.double().requires_grad_()
            sums_of(exact(exact_NH), target, terms).total_.backward()
            for one, other in ((leaf_NH, exact_NH), (ours.weight, exact.weight)):
                error = (one.grad.double() - other.grad).norm() / other.grad.norm()
                worst = max(worst, float(error))
    return worst


def main() -> None:
    """Prints the two ways side by side, then the measures."""
    measures: list[Measure] = []
    for name, is_bf16, most in (("fp32", False, 1e-5), ("bf16", True, 2e-2)):
        error = worst_error(is_bf16)
        measures.append((f"losses.gradient_error_{name}", error, most, error <= most))
    for case, vocabulary in CASES.items():
        found: dict[str, dict[str, float]] = {}
        for way in ("chunked", "dense") * NUM_ROUNDS:
            new = in_fresh_process(case, way)
            best = found.setdefault(way, new)
            found[way] |= {name: min(best[name], new[name]) for name in ("wall", "cpu")}
            print(
                f"{case}, vocabulary {vocabulary}, {way}: {new['bytes'] / 1e9:.2f} GB above the "
                f"inputs, {new['wall']:.1f} s ({new['cpu']:.1f} s of CPU), loss {new['loss']:.4f}, "
                f"gradient norms {new['norm']:.4f}",
                flush=True,
            )
        ratio = {name: found["chunked"][name] / found["dense"][name] for name in found["dense"]}
        measures += [
            (f"losses.{case}_memory_ratio", ratio["bytes"], 1 / 6, ratio["bytes"] <= 1 / 6),
            (f"losses.{case}_time_ratio", ratio["wall"], 1.1, ratio["wall"] <= 1.1),
        ]
    show(measures)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measured(*sys.argv[1:])))
    else:
        main()
