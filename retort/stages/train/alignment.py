"""Whether a signal belongs to a row, token by token: what a run checks before it learns from any.

The surprise: ids that no tokenizer knows can stand in a top k, for embeddings are padded.
"""

# T tokens, K teacher top-k
from dataclasses import replace
from pathlib import Path

import numpy as np

from retort.data.encoding import EncodedRow
from retort.errors import DataError
from retort.records import State
from retort.store import model_folder
from retort.store.signals import Signal


def check_pairing(shared: bool, template_sha256: str, base: Path) -> None:
    """Raises `DataError` when the teacher's distribution cannot be used with this student."""
    if not shared:
        raise DataError(
            "teacher and student have different token maps, so the teacher's distribution does not "
            "speak of the student's tokens; set generate.top_k: 0 and train.losses: "
            "[{name: cross_entropy}], or take a student of the same family"
        )
    if template_sha256 != model_folder.template_sha256(base):
        raise DataError(
            "teacher and student have different chat templates, so the signal was captured after "
            "another prompt than the student sees; give both the same template, or learn by "
            "cross_entropy alone"
        )


def ends_well(row: EncodedRow, end_ids: list[int], state: State) -> bool:
    """Whether a row teaches to end as it should: a whole answer with one end token, its last, and
    one that was cut off with none."""
    learned = row.labels[row.first :]
    number, is_whole = sum(label in end_ids for label in learned), state == "accepted"
    return number == is_whole and (not is_whole or learned[-1] in end_ids)


def aligned(row: EncodedRow, signal: Signal | None) -> Signal:
    """Returns a signal cut or refused so that its row t predicts the row's t-th label.

    Raises `DataError` when it was made for other tokens.
    """
    if signal is None:
        raise DataError(f"example {row.id} is kept but has no signal; use --force generate")
    labels = np.asarray(row.labels[row.first :], dtype=np.int32)
    if not np.array_equal(signal.target_ids_T, labels):
        raise DataError(
            f"example {row.id}: the signal's tokens are not the labels "
            f"({len(signal.target_ids_T)} against {len(labels)}); the capture is broken"
        )
    inside_TK = signal.ids_TK == labels[:, None]
    gap_T = np.abs(np.where(inside_TK, signal.logprobs_TK, 0).sum(1) - signal.target_logprobs_T)
    if (gap_T[inside_TK.any(axis=1)] > 1e-3).any():
        raise DataError(f"example {row.id}: the label's log-probability differs from its signal")
    outside_T, own_T = ~inside_TK.any(axis=1), signal.target_logprobs_T
    least_T, most_T = (bound(signal.logprobs_TK, axis=1) for bound in (np.min, np.max))
    # 0.3 and 7 nats: what a stored signal's rounding may do, to the least probable ids above all.
    if (outside_T & (own_T > least_T + 0.3) & (own_T > most_T - 7)).any():
        raise DataError(
            f"example {row.id}: a label outside its top k is more probable than one in it; the "
            "distributions are not those of these tokens, the capture is broken"
        )
    return signal


def within(vocabulary: int, signal: Signal) -> Signal:
    """Returns a signal without ids past the tokenizer's, which a teacher's padded embedding has.

    Their mass is divided out, as if they had been cut off before the softmax. In their place stand
    other ids, with the tail's mean probability, which the tail then has less.
    """
    past_TK = signal.ids_TK >= vocabulary
    if not past_TK.any():
        return signal
    ids_TK, logprobs_TK = signal.ids_TK.copy(), signal.logprobs_TK.copy()
    others_T = vocabulary - (~past_TK).sum(axis=1)  # of the tokenizer's ids, those in the tail
    for t, k in np.argwhere(past_TK):
        taken = [*ids_TK[t], signal.target_ids_T[t]]  # the label's own probability is not the mean
        ids_TK[t, k] = np.setdiff1d(np.arange(ids_TK.shape[1] + 2), taken)[0]
        logprobs_TK[t, k] = signal.tail_T[t] - np.log(others_T[t])
    mass_T = np.where(past_TK, np.exp(signal.logprobs_TK), 0).sum(axis=1)
    rest_T = np.log1p(-np.minimum(mass_T, 1 - 1e-6)).astype(np.float32)
    left_T = np.log1p(-past_TK.sum(axis=1) / others_T)
    return replace(
        signal,
        ids_TK=ids_TK,
        logprobs_TK=logprobs_TK - rest_T[:, None],
        target_logprobs_T=signal.target_logprobs_T - rest_T,
        tail_T=signal.tail_T - rest_T + left_T.astype(np.float32),
    )
