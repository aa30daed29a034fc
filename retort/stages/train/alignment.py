"""Checks that a stored signal belongs to a training row, token by token, before it is learned from.

Note: a top k can hold ids that no tokenizer knows, because models pad their embeddings.
"""

# T tokens, K teacher top-k
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retort.data.encoding import EncodedRow
from retort.errors import DataError
from retort.records import Decision, Response, State
from retort.store import model_folder
from retort.store.signals import Signal


def check_pairing(template_sha256: str, base: Path) -> None:
    """Raises `DataError` where teacher and student share their tokens and not their template."""
    if template_sha256 != model_folder.template_sha256(base):
        raise DataError(
            "teacher and student have different chat templates, so the signal follows another "
            "prompt than the student sees; give both the same template, or set train.losses: "
            "[{name: cross_entropy}]"
        )


def ends_well(row: EncodedRow, end_ids: list[int], state: State) -> bool:
    """Whether a row has the right end tokens: a whole answer exactly one, as its last token, and a
    truncated one none."""
    labels = row.labels[row.first :]
    num_ends, is_whole = sum(label in end_ids for label in labels), state == "accepted"
    return num_ends == is_whole and (not is_whole or labels[-1] in end_ids)


def learned(
    tokenizer: Any, response: Response, decision: Decision, own_ids: bool
) -> tuple[str, list[int]]:
    """Returns the text that is learned and its ids: the response's own ids, unless curation rewrote
    the text; without `own_ids` (another token map, or a cut text) it is tokenized again."""
    text = response.text if decision.target_text is None else decision.target_text
    ids = response.token_ids if own_ids and decision.target_text is None else []
    return text, ids or tokenizer(text, add_special_tokens=False)["input_ids"]


def aligned(row: EncodedRow, signal: Signal | None) -> Signal:
    """Returns the signal of a row, checked: its t-th distribution predicts the row's t-th label.

    Raises `DataError` where there is none, and where it was made for other tokens.
    """
    if signal is None:
        raise DataError(f"response {row.id} is kept but has no signal; run with --force generate")
    labels = np.asarray(row.labels[row.first :], dtype=np.int32)
    if not np.array_equal(signal.target_ids_T, labels):
        raise DataError(
            f"response {row.id}: the signal's tokens are not the labels "
            f"({len(signal.target_ids_T)} tokens, {len(labels)} labels); run with --force generate"
        )
    inside_TK = signal.ids_TK == labels[:, None]
    gap_T = np.abs(np.where(inside_TK, signal.logprobs_TK, 0).sum(1) - signal.target_logprobs_T)
    if (gap_T[inside_TK.any(axis=1)] > 1e-3).any():
        raise DataError(
            f"response {row.id}: a label's log-probability is not the one in its top k; run with "
            "--force generate"
        )
    outside_T, own_T = ~inside_TK.any(axis=1), signal.target_logprobs_T
    least_T, most_T = (bound(signal.logprobs_TK, axis=1) for bound in (np.min, np.max))
    # Rounding moves a stored log-probability by up to 0.3 nats, and by more 7 below the largest.
    if (outside_T & (own_T > least_T + 0.3) & (own_T > most_T - 7)).any():
        raise DataError(
            f"response {row.id}: a label outside its top k is more probable than an id in it, so "
            "the distributions belong to other tokens; run with --force generate"
        )
    return signal


def largest(k: int | None, signal: Signal) -> Signal:
    """Returns a signal with its k largest log-probabilities alone; the others are in the tail."""
    if k is None or k >= signal.ids_TK.shape[1]:
        return signal
    order_TK = np.argsort(-signal.logprobs_TK, axis=1, kind="stable")
    kept_TK = np.sort(order_TK[:, :k], axis=1)
    rest_TK = np.take_along_axis(signal.logprobs_TK, order_TK[:, k:], axis=1)
    tail_T = np.logaddexp(signal.tail_T, np.logaddexp.reduce(rest_TK, axis=1))
    return replace(
        signal,
        ids_TK=np.take_along_axis(signal.ids_TK, kept_TK, axis=1),
        logprobs_TK=np.take_along_axis(signal.logprobs_TK, kept_TK, axis=1),
        tail_T=tail_T.astype(np.float32),
    )


def within(vocabulary: int, signal: Signal) -> Signal:
    """Returns a signal without the ids past the tokenizer's, which a padded embedding has.

    Their mass is divided out, as if they had been cut off before the softmax. Each is replaced by
    an id from the tail, with the tail's mean probability, which is taken from the tail.
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
