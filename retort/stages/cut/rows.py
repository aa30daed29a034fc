"""The stored answers on which a cut is measured, as batches with the teacher's distribution.

The ids are those of the signal itself, after the prompt as the student will see it.
"""

# B batch, T time, N answer tokens of a batch, K teacher top-k
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.data import encoding
from retort.errors import DataError
from retort.losses import Target
from retort.stages.stage import Stage, read_decisions, read_responses, stream_examples
from retort.store import signals
from retort.store.signals import Signal, joined

# Padded tokens in one forward pass, and elements of its logits.
MOST_TOKENS, MOST_LOGITS = 8192, 2**28


@dataclass(frozen=True)
class Batch:
    """Padded rows; `real_BT` says which tokens are no padding, and the answers' distributions are
    at (`rows_N`, `times_N`)."""

    input_ids_BT: Tensor
    real_BT: Tensor
    rows_N: Tensor
    times_N: Tensor
    target: Target


Row = tuple[list[int], Signal]  # the prompt's ids, and the answer


def stored(stage: Stage, tokenizer: Any, vocabulary: int, device: str) -> list[Batch]:
    """Returns up to `num_rows` kept answers to train examples, evenly spread over all of them.

    Raises `DataError` where there is none with a signal that fits `train.max_length`.
    """
    rows = _rows(stage, tokenizer)
    if not rows:
        raise DataError(
            "cut: no kept answer to a train example has a signal and fits train.max_length: "
            f"{stage.spec.train.max_length}; raise it, or run with --force generate"
        )
    rows.sort(key=lambda row: len(row[0]) + len(row[1].target_ids_T))
    most = min(MOST_TOKENS, MOST_LOGITS // vocabulary)
    parts: list[list[Row]] = [[]]
    for row in rows:  # the last of a part is its longest
        if parts[-1] and (len(parts[-1]) + 1) * (len(row[0]) + len(row[1].target_ids_T)) > most:
            parts.append([])
        parts[-1].append(row)
    return [_batch(part, device) for part in parts]


def _rows(stage: Stage, tokenizer: Any) -> list[Row]:
    knobs = stage.spec.cut
    assert knobs
    decisions = read_decisions(stage.input("curate"))
    examples = {e.id: e for e in stream_examples(stage.input("prepare"), "train")}
    kept = [
        response
        for response in read_responses(stage.input("generate"))
        if response.example_id in examples
        and (decision := decisions.get(response.id)) is not None
        and decision.kept
    ]
    number = min(knobs.num_rows, len(kept))
    some = [kept[index * len(kept) // number] for index in range(number)]
    own = [examples[response.example_id] for response in some]
    chats = [r.messages or example.messages for r, example in zip(some, own, strict=True)]
    prompts = encoding.render_each(tokenizer, chats, [example.tools for example in own])
    found = _signals(stage, {response.id for response in some})
    pairs = ((p, found.get(r.id)) for p, r in zip(prompts, some, strict=True))
    return [
        (ids, signal)
        for ids, signal in pairs
        if signal is not None
        and not isinstance(ids, str)
        and len(ids) + len(signal.target_ids_T) <= stage.spec.train.max_length
    ]


def _signals(stage: Stage, ids: set[str]) -> dict[str, Signal]:
    """Returns the signals of some responses, holding one file at a time."""
    folder, found = stage.input("generate"), dict[str, Signal]()
    for name in folder.files():
        if name.startswith("signals-"):
            some = signals.unpack(folder.read(name))
            found |= {key: signal for key, signal in some.items() if key in ids}
    return found


def _batch(rows: list[Row], device: str) -> Batch:
    whole = [[*prompt, *signal.target_ids_T.tolist()] for prompt, signal in rows]
    shape = (len(rows), max(map(len, whole)))
    ids_BT, real_BT = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    answers_BT = np.zeros(shape, np.bool_)
    for index, (ids, (prompt, _)) in enumerate(zip(whole, rows, strict=True)):
        ids_BT[index, : len(ids)], real_BT[index, : len(ids)] = ids, True
        answers_BT[index, len(prompt) - 1 : len(ids) - 1] = True  # each predicts the next one
    signal = joined(signal for _, signal in rows)
    rows_N, times_N = (torch.from_numpy(at_N).to(device) for at_N in answers_BT.nonzero())

    def tensor(values: Any, dtype: Any) -> Tensor:
        return torch.from_numpy(values.astype(dtype)).to(device)

    target = Target(
        labels_N=tensor(signal.target_ids_T, np.int64),
        ids_NK=tensor(signal.ids_TK, np.int64),
        logprobs_NK=tensor(signal.logprobs_TK, np.float32),
        tail_N=tensor(signal.tail_T, np.float32),
    )
    return Batch(tensor(ids_BT, np.int64), tensor(real_BT, np.bool_), rows_N, times_N, target)
