"""Items to padded tensors: a step's items cut into micro-batches, and each collated.

The signal's rows stand in the order of the supervised places, so that both can be cut alike.
"""

# B batch, T time, N supervised tokens of a batch, K teacher top-k, C labels
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.encoding import IGNORED, Row
from retort.errors import StageError
from retort.losses import Target
from retort.signals import Signal

Item = tuple[Row, Signal | None]


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch; `at_NN` are the (row, time) places of its supervised tokens."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    rows_N: Tensor
    times_N: Tensor
    target: Target


def micro_batches(items: list[Item], max_tokens: int) -> Iterator[list[Item]]:
    """Yields the items of one step in parts of at most `max_tokens` padded tokens each."""
    part: list[Item] = []
    longest = 0
    for item in items:
        length = len(item[0].input_ids)
        if part and max(longest, length) * (len(part) + 1) > max_tokens:
            yield part
            part, longest = [], 0
        part.append(item)
        longest = max(longest, length)
    if part:
        yield part


def collate(items: list[Item], device: str) -> Batch:
    """Returns a micro-batch, padded on the right; supervised places in row-major order."""
    width = max(len(row.input_ids) for row, _ in items)
    input_ids = np.zeros((len(items), width), dtype=np.int64)
    attention = np.zeros((len(items), width), dtype=np.int64)
    labels = np.full((len(items), width), IGNORED, dtype=np.int64)
    for index, (row, _) in enumerate(items):
        length = len(row.input_ids)
        input_ids[index, :length] = row.input_ids
        attention[index, :length] = 1
        labels[index, :length] = row.labels
    rows_N, times_N = np.nonzero(labels != IGNORED)
    found = [signal for _, signal in items if signal is not None]

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    target = Target(tensor(labels[rows_N, times_N]))
    if any(row.choices for row, _ in items):
        target = replace(target, choices_NC=tensor(_choices_of(items)))
    if found:
        if sum(len(s.target_ids_T) for s in found) != len(rows_N):
            raise StageError("a micro-batch mixes items with and without a signal")
        target = replace(
            target,
            ids_NK=tensor(np.concatenate([s.ids_TK for s in found]).astype(np.int64)),
            logprobs_NK=tensor(np.concatenate([s.logprobs_TK for s in found])),
            tail_N=tensor(np.concatenate([s.tail_T for s in found])),
        )
    return Batch(tensor(input_ids), tensor(attention), tensor(rows_N), tensor(times_N), target)


def _choices_of(items: list[Item]) -> np.ndarray[Any, Any]:
    """Returns the ids of the labels at each supervised token of a batch, -1 elsewhere, (N, C)."""
    width = max(1, *(len(row.choices[1]) for row, _ in items if row.choices))
    parts = []
    for row, _ in items:
        part = np.full((len(row.labels) - row.first, width), -1, dtype=np.int64)
        if row.choices:
            place, ids = row.choices
            part[place, : len(ids)] = ids
        parts.append(part)
    return np.concatenate(parts)
