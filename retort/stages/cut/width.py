"""Which channels, heads and hidden numbers stay: those of the largest activations.

Source: Minitron, Muralidharan et al. 2024 (arXiv:2407.14679), section 2.2: means over tokens; those
of hidden numbers are summed over all norms, so that every layer keeps the same ones.
"""

# B batch, T time, H width, I channels, A heads, G key-value heads, D numbers of a head
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from retort.stages.cut.layers import Teacher
from retort.stages.cut.shape import Shape

Indices = dict[str, Tensor]  # what stays of each axis


def indices(
    teacher: Teacher, kept: Sequence[int], before: Shape, after: Shape
) -> list[Indices] | None:
    """Returns what stays of each axis, ascending, by the layers that stay; None where all does.

    Measured on these layers alone.
    """
    if before.sizes == after.sizes:
        return None
    sums = _activations(teacher, kept, before)
    hidden = _most(sums["hidden"], after.hidden)
    return [
        {
            "hidden": hidden,
            **_channels(sums[f"channels {layer}"], before, after),
            **_heads(sums[f"heads {layer}"], before, after),
        }
        for layer in kept
    ]


def _activations(teacher: Teacher, kept: Sequence[int], shape: Shape) -> dict[str, Tensor]:
    """Returns the sums over tokens of |activations|: of hidden numbers, and by layer of channels
    and of the norms of heads' outputs."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    real_BT = torch.empty(0)

    def add(name: str, size: Callable[[Tensor], Tensor]) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            of_norm = name == "hidden"
            values_NX = size((out if of_norm else inputs[0])[real_BT].float())
            sums[name] = sums[name] + values_NX.double().sum(0).cpu()

        return hook

    def norms(values_NX: Tensor) -> Tensor:
        return values_NX.unflatten(-1, (shape.heads, shape.head_size)).norm(dim=-1)

    with ExitStack() as hooks:
        for number in kept:
            layer: Any = teacher.layers[number]
            watched = {layer.mlp.down_proj: add(f"channels {number}", torch.abs)}
            watched[layer.self_attn.o_proj] = add(f"heads {number}", norms)
            inner = (m for name, m in layer.named_children() if name.endswith("norm"))
            watched |= dict.fromkeys(inner, add("hidden", torch.abs))
            for module, hook in watched.items():
                hooks.callback(module.register_forward_hook(hook).remove)
        with teacher.without({*range(len(teacher.layers))} - {*kept}):
            for batch in teacher.batches:
                real_BT = batch.real_BT
                teacher.kl_sum(batch)
    return sums


def _most(values_X: Tensor, number: int) -> Tensor:
    """Returns the indices of the largest values, ascending."""
    return values_X.topk(number).indices.sort().values


def _channels(sums_I: Tensor, before: Shape, after: Shape) -> Indices:
    kept = _most(sums_I, after.channels)
    return {"channels": kept, "gate_up": torch.cat([kept, kept + before.channels])}


def _heads(sums_A: Tensor, before: Shape, after: Shape) -> Indices:
    """Returns the heads that stay: equally many of each group, or whole groups."""
    sums_GA = sums_A.view(before.groups, -1)
    each = sums_GA.shape[1]
    groups = _most(sums_GA.sum(1), after.groups)
    heads = [group * each + _most(sums_GA[group], after.heads // after.groups) for group in groups]
    query, key = (_numbers(some, before.head_size) for some in (torch.cat(heads), groups))
    first_key = before.heads * before.head_size
    first_value = first_key + before.groups * before.head_size
    fused = torch.cat([query, first_key + key, first_value + key])
    return {"query": query, "key": key, "query_key_value": fused}


def _numbers(heads: Tensor, size: int) -> Tensor:
    """Returns the indices of all numbers of some heads."""
    return (heads[:, None] * size + torch.arange(size)).flatten()
