"""Which layers stay: those whose absence raises the KL to the stored signal most.

Layers are left out one after the other, each time the one that is missed least, and the outcome is
compared with two others: the layers of the largest block influence, and the first and the last.
"""

# B batch, T time, H width, N answer tokens of a batch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retort.events import Reporter
from retort.losses import forward_kl
from retort.stages.cut.rows import Batch


@dataclass(frozen=True)
class Removal:
    """A layer that was left out, and the KL before and after, in nats a token."""

    layer: int
    kl_before: float
    kl: float


@dataclass(frozen=True)
class Choice:
    """The layers that stay. `kl` is that of each way to choose them, and `teacher`'s own; `by` is
    the way that was taken."""

    layers: list[int]
    by: str
    kl: dict[str, float]
    removals: list[Removal]
    block_influence: list[float]


class Teacher:
    """A teacher, layers of which can be left out, with the stored answers."""

    def __init__(self, model: Any, layers_at: str, batches: list[Batch]):
        self.model, self.batches = model.eval(), batches
        self.layers: Sequence[nn.Module] = list(model.get_submodule(layers_at))
        self.num_tokens = sum(len(batch.rows_N) for batch in batches)

    @contextmanager
    def without(
        self, left_out: set[int], entry: tuple[int, Tensor] | None = None
    ) -> Iterator[None]:
        """Leaves out layers within the block: what comes in goes out. With `entry`, a layer and the
        hidden states that come into it, that one and all before it are left out."""
        first, states_BTH = entry or (-1, None)
        skipped = [n for n in range(len(self.layers)) if n in left_out or n <= first]
        for number in skipped:
            given = states_BTH if number == first else None
            self.layers[number].forward = _passing(given)  # hides the class's own
        try:
            yield
        finally:
            for number in skipped:
                del self.layers[number].forward

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def kl_sum(self, batch: Batch) -> Tensor:
        """Returns the sum over the answers' tokens of the KL to the stored signal, nats."""
        logits_BTV = self.model(input_ids=batch.input_ids_BT, use_cache=False).logits
        return forward_kl(logits_BTV[batch.rows_N, batch.times_N].float(), batch.target).double()

    def kl(self, kept: Sequence[int]) -> float:
        """Returns the KL of these layers alone to the stored signal, nats a token."""
        with self.without(set(range(len(self.layers))) - set(kept)):
            return float(sum(self.kl_sum(batch) for batch in self.batches)) / self.num_tokens

    @contextmanager
    def states(self) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
        """Gives a dict that holds what comes into each layer and goes out of it, of the last
        forward pass."""
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(number: int) -> Any:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], out_BTH: Tensor) -> None:
                found[number] = inputs[0], out_BTH

            return hook

        hooks = [layer.register_forward_hook(keep(n)) for n, layer in enumerate(self.layers)]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def _passing(given: Tensor | None) -> Any:
    def forward(hidden_BTH: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_BTH if given is None else given

    return forward


def choose(teacher: Teacher, number: int, metric: str, report: Reporter) -> Choice:
    """Returns which `number` layers stay, in order.

    With the metric kl it is the best of three ways, so that it is never worse than the two habits.
    """
    total = len(teacher.layers)
    influence = block_influence(teacher)
    ways = {
        "block_influence": _largest(influence, number),
        "first_and_last": sorted({*range((number + 1) // 2), *range(total - number // 2, total)}),
    }
    removals: list[Removal] = []
    if metric == "kl":
        removals = remove_greedily(teacher, number, report)
        ways = {"kl": sorted({*range(total)} - {r.layer for r in removals}), **ways}
    kl = {name: teacher.kl(layers) for name, layers in ways.items()}
    by = min(ways, key=lambda name: kl[name]) if metric == "kl" else metric
    whole = teacher.kl(range(total))
    return Choice(ways[by], by, {"teacher": whole, **kl}, removals, influence)


def _largest(values: Sequence[float], number: int) -> list[int]:
    ranked = sorted(range(len(values)), key=lambda index: (-values[index], index))
    return sorted(ranked[:number])


@torch.inference_mode()  # type: ignore[untyped-decorator]
def block_influence(teacher: Teacher) -> list[float]:
    """Returns how much each layer changes what comes in: 1 - the mean cosine of its input and its
    output over all tokens. Source: ShortGPT, Men et al. 2024 (arXiv:2403.03853), eq. 1."""
    sums, num_tokens = [0.0] * len(teacher.layers), 0
    with teacher.states() as states:
        for batch in teacher.batches:
            teacher.kl_sum(batch)
            num_tokens += int(batch.real_BT.sum())
            for number, (in_BTH, out_BTH) in states.items():
                like_BT = torch.cosine_similarity(in_BTH.float(), out_BTH.float(), dim=-1)
                sums[number] += float((1 - like_BT)[batch.real_BT].double().sum())
    return [total / num_tokens for total in sums]


def remove_greedily(teacher: Teacher, number: int, report: Reporter) -> list[Removal]:
    """Returns the layers that are left out until `number` are left, in that order.

    Each time every layer that is left is tried. What comes into it is known from one pass of all,
    so that only the layers after it are computed again.
    """
    kept, removals = list(range(len(teacher.layers))), list[Removal]()
    while len(kept) > number:
        before, after = 0.0, dict.fromkeys(kept, 0.0)
        left_out = {*range(len(teacher.layers))} - {*kept}
        for batch in teacher.batches:
            with teacher.states() as states, teacher.without(left_out):
                before += float(teacher.kl_sum(batch))
            for candidate in kept:
                with teacher.without(left_out, (candidate, states[candidate][0])):
                    after[candidate] += float(teacher.kl_sum(batch))
        least = min(kept, key=lambda layer: after[layer])
        values = before / teacher.num_tokens, after[least] / teacher.num_tokens
        removals.append(Removal(least, *values))
        kept.remove(least)
        report.metrics({"kl": values[1]}, len(removals))
        done = len(teacher.layers) - len(kept), len(teacher.layers) - number
        report.progress(*done, "layers", f"without layer {least}: {values[1]:.4f} nats a token")
    return removals
