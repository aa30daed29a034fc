"""Training items to padded tensors: cuts a step's items into micro-batches and collates each.

The signal's rows are in the order of the supervised positions, so that both can be cut alike. Note:
no batch has an attention mask. Padding is on the right, where a causal model does not look, and
items that share a row are separated by their positions, which begin at 0 in each.
"""

# B batch, T time, N supervised tokens of a batch, K teacher top-k, C labels
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.data.encoding import IGNORED, EncodedRow
from retort.errors import StageError
from retort.losses import Chunks, Ranges, Target
from retort.stages.train.translation import TranslatedSignal
from retort.store.signals import Signal

TrainingItem = tuple[EncodedRow, Signal | TranslatedSignal | None]

# The row width, in tokens, at which a layer's attention costs as much as the rest of it where items
# share rows; without a mask attention costs half. Measured at 5 to 6 times the hidden size: this is
# right for a student of hidden size 350 to 400, and cautious for larger ones.
FULL_WIDTH = 2048
# The fixed cost of another micro-batch, in tokens.
START_TOKENS = 256
# The row widths that are tried, as multiples of the longest item.
STRETCHES = (1.0, 1.25, 1.5, 2.0, 3.0)

# The indices of the items in each row.
Packing = list[list[int]]


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch; its supervised tokens are at (`rows_N`, `times_N`).

    `items` are in the order of their tokens, row by row, and so is the target. `position_ids_BT` is
    None where no row holds two items, and 0 at each padding token, which makes each of them a
    sequence of its own. `states` are what features.py keeps of a live teacher's forward pass.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    rows_N: Tensor
    times_N: Tensor
    target: Target
    position_ids_BT: Tensor | None
    items: list[TrainingItem]
    states: dict[str, Tensor] | None = None


def micro_batches(
    items: list[TrainingItem], max_tokens: int, packed: bool = False
) -> Iterator[list[TrainingItem]]:
    """Yields the items of one step in parts of at most `max_tokens` padded tokens each.

    A longer item is a part by itself. With `packed` items may share rows, so parts hold more of
    them, unless that costs more than a row for each.
    """
    lengths = [len(row.input_ids) for row, _ in items]
    ends = _ends(lengths, max_tokens)
    if packed:
        ends = min(_packed_ends(lengths, max_tokens), ends, key=lambda e: _cost_of(lengths, e))
    for start, end in zip([0, *ends], ends, strict=False):
        yield items[start:end]


def _ends(lengths: list[int], max_tokens: int) -> list[int]:
    """Returns the end of each part, where each item has a row of its own."""
    ends, start, longest = [], 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index > start and longest * (index + 1 - start) > max_tokens:
            ends.append(index)
            start, longest = index, length
    return [*ends, len(lengths)] if lengths else []


def _packed_ends(lengths: list[int], max_tokens: int) -> list[int]:
    """Returns the end of each part, where items share rows."""
    ends, start = [], 0
    while start < len(lengths):
        sums = np.cumsum(lengths[start:])
        number = max(1, int(np.searchsorted(sums, max_tokens, side="right")))
        while number > 1:
            part = lengths[start : start + number]
            padded = _padded(part, in_rows(part))
            if padded <= max_tokens:
                break
            number = max(1, min(number - 1, number * max_tokens // padded))
        start += number
        ends.append(start)
    return ends


def _cost_of(lengths: list[int], ends: list[int]) -> float:
    """Returns the cost of the parts, in tokens."""
    parts = [lengths[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return sum(START_TOKENS + _cost(part, in_rows(part)) for part in parts)


def in_rows(lengths: list[int]) -> Packing:
    """Returns which items share a row: the cheapest of one item a row and rows of several widths.

    So attention over wide rows never costs more than the padding that they save.
    """
    longest = max(lengths)
    plans = [[[index] for index in range(len(lengths))]]
    plans += [_best_fit(lengths, int(longest * stretch)) for stretch in STRETCHES]
    return min(plans, key=lambda rows: _cost(lengths, rows))


def _best_fit(lengths: list[int], width: int) -> Packing:
    """Returns few rows of at most `width` tokens: each item, the longest first, goes into the row
    where it leaves the least room. Source: Johnson 1974 (SIAM J. Comput. 3:4), best-fit decreasing.
    """
    rows: Packing = []
    room: list[tuple[int, int]] = []  # the tokens left in each row, and its index, ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[index], -1))
        if at == len(room):
            left, number = width, len(rows)
            rows.append([])
        else:
            left, number = room.pop(at)
        rows[number].append(index)
        insort(room, (left - lengths[index], number))
    return rows


def _padded(lengths: list[int], rows: Packing) -> int:
    """Returns the padded tokens of rows."""
    return len(rows) * max(sum(lengths[index] for index in row) for row in rows)


def _cost(lengths: list[int], rows: Packing) -> float:
    """Returns the cost of rows, in tokens without attention."""
    padded = _padded(lengths, rows)
    share = 1.0 if len(rows) < len(lengths) else 0.5  # a causal pass without a mask skips half
    return padded * (1 + share * padded / len(rows) / FULL_WIDTH)


def collate(items: list[TrainingItem], device: str, packed: bool = False) -> Batch:
    """Returns a micro-batch, padded on the right; its supervised tokens in row-major order.

    With `packed` items share rows where that costs less, which changes the items' order.
    """
    lengths = [len(row.input_ids) for row, _ in items]
    rows = in_rows(lengths) if packed else [[index] for index in range(len(items))]
    shape = (len(rows), _padded(lengths, rows) // len(rows))
    input_ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for number, members in enumerate(rows):
        start = 0
        for index in members:
            places = (number, slice(start, start + lengths[index]))
            input_ids[places] = items[index][0].input_ids
            positions[places] = np.arange(lengths[index])
            labels[places] = items[index][0].labels
            start += lengths[index]
    at_NN = np.nonzero(labels != IGNORED)
    ordered = [items[index] for members in rows for index in members]
    rows_N, times_N = (_tensor(at_N, device) for at_N in at_NN)
    return Batch(
        input_ids_BT=_tensor(input_ids, device),
        attention_mask_BT=None,
        rows_N=rows_N,
        times_N=times_N,
        target=_target(ordered, labels[at_NN], device),
        position_ids_BT=_tensor(positions, device) if len(rows) < len(items) else None,
        items=ordered,
    )


def _target(items: list[TrainingItem], labels_N: np.ndarray[Any, Any], device: str) -> Target:
    """Returns the target of the items' supervised tokens, in their order."""
    target = Target(_tensor(labels_N, device))
    signals = [signal for _, signal in items if signal is not None]
    if any(row.choices for row, _ in items):
        target = replace(target, choices_NC=_tensor(_choices_of(items), device))
    return with_signals(target, signals) if signals else target


def with_signals(target: Target, signals: Sequence[Signal | TranslatedSignal]) -> Target:
    """Returns a target with the signals of its items, in their order, all of one kind."""
    device = str(target.labels_N.device)

    def tensor(name: str, dtype: Any) -> Tensor:
        whole = np.concatenate([getattr(signal, name) for signal in signals])
        return _tensor(whole.astype(dtype), device)

    if sum(len(signal.tail_T) for signal in signals) != len(target.labels_N):
        raise StageError("a micro-batch mixes items with and without a signal")
    first = signals[0]
    if not isinstance(first, TranslatedSignal):
        return replace(
            target,
            ids_NK=tensor("ids_TK", np.int64),
            logprobs_NK=tensor("logprobs_TK", np.float32),
            tail_N=tensor("tail_T", np.float32),
        )
    ends_N = torch.from_numpy(np.concatenate([s.ends_T for s in signals]))  # type: ignore[union-attr]
    order_V = torch.from_numpy(first.order_V).to(device)
    return replace(
        target,
        ids_NK=Ranges(tensor("first_TK", np.int64), tensor("end_TK", np.int64), order_V),
        logprobs_NK=tensor("logprobs_TK", np.float32),
        tail_N=tensor("tail_T", np.float32),
        chunks=Chunks(tensor("surprisal_T", np.float32), ends_N),
    )


def _tensor(array: np.ndarray[Any, Any], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _choices_of(items: list[TrainingItem]) -> np.ndarray[Any, Any]:
    """Returns the labels' ids at the token where each item's label is decided, else -1, (N, C)."""
    width = max(1, *(len(row.choices[1]) for row, _ in items if row.choices))
    parts = []
    for row, _ in items:
        part = np.full((len(row.labels) - row.first, width), -1, dtype=np.int64)
        if row.choices and len(part):  # a row may have nothing to learn
            place, ids = row.choices
            part[place, : len(ids)] = ids
        parts.append(part)
    return np.concatenate(parts)
