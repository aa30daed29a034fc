"""Events of many tokens at once, as arrays: conditioned, joined, cut to the most probable."""

# N tokens, K events of each, W with further ones
import numpy as np

from retort.store.signals.signal import Floats, Ints

# An event of more tokens than this is tail where its log-probability is below that: it says little,
# and takes long.
WIDE, RARE = 64, float(np.log(0.01))
# First rank, rank after the last, log-probability.
Event = tuple[int, int, float]


def given(logprobs_K: Floats, goes_on_K: list[bool], tail: float) -> Floats:
    """Returns the log-probabilities of strings given that the text goes on as some of them do.

    What is not stored is taken to go on so as often as what is.
    """
    mass_K = np.where(goes_on_K, np.exp(logprobs_K.astype(np.float64)), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        given_K = np.log(mass_K * -np.expm1(tail) / mass_K.sum())
    found: Floats = np.nan_to_num(given_K, nan=-np.inf, neginf=-np.inf).astype(np.float32)
    return found


def widened(
    ranges_NK2: Ints, logprobs_NK: Floats, further: dict[int, list[Event]]
) -> tuple[Ints, Floats]:
    """Returns the events with those that some tokens have besides."""
    width = max(map(len, further.values()), default=0)
    if not width:
        return ranges_NK2, logprobs_NK
    number = len(ranges_NK2)
    more_NW2 = np.zeros((number, width, 2), np.int32)
    more_NW = np.full((number, width), -np.inf, np.float32)
    for n, events in further.items():
        for at, (first, end, logprob) in enumerate(events):
            more_NW2[n, at], more_NW[n, at] = (first, end), logprob
    return np.concatenate([ranges_NK2, more_NW2], axis=1), np.concatenate(
        [logprobs_NK, more_NW], axis=1
    )


def largest(
    first_NW: Ints, end_NW: Ints, logprobs_NW: Floats, tail_N: Floats, k: int
) -> tuple[Ints, Ints, Floats, Floats]:
    """Returns the k most probable events; the others are tail."""
    if first_NW.shape[1] <= k:
        return first_NW, end_NW, logprobs_NW, tail_N
    order_NW = np.argsort(-logprobs_NW, axis=1, kind="stable")
    mass_NW = np.exp(np.take_along_axis(logprobs_NW, order_NW, axis=1).astype(np.float64))
    tail_N = np.log(np.exp(tail_N.astype(np.float64)) + mass_NW[:, k:].sum(axis=1))
    kept_NK = order_NW[:, :k]
    return (
        np.take_along_axis(first_NW, kept_NK, axis=1),
        np.take_along_axis(end_NW, kept_NK, axis=1),
        np.take_along_axis(logprobs_NW, kept_NK, axis=1),
        tail_N.astype(np.float32),
    )


def merged(
    ranges_NK2: Ints, logprobs_NK: Floats, tail_N: Floats
) -> tuple[Ints, Ints, Floats, Floats]:
    """Returns events of which none contains another, each with the mass of all in it, and the tail.

    Two ranges of prefixes are apart, or one contains the other. What has no range is tail.
    """
    first_NK, end_NK = ranges_NK2[..., 0].astype(np.int64), ranges_NK2[..., 1].astype(np.int64)
    is_vague_NK = (end_NK - first_NK > WIDE) & (logprobs_NK < RARE)
    is_none_NK = (first_NK >= end_NK) | is_vague_NK
    widest = int(end_NK.max(initial=0)) + 1
    keys_NK = np.where(is_none_NK, widest * (widest + 1), first_NK * widest + (widest - end_NK))
    order_NK = np.argsort(keys_NK, axis=1, kind="stable")
    first_NK, end_NK, is_none_NK, mass_NK = (
        np.take_along_axis(x, order_NK, axis=1)
        for x in (first_NK, end_NK, is_none_NK, np.exp(logprobs_NK.astype(np.float64)))
    )
    reach_NK = np.maximum.accumulate(np.where(is_none_NK, 0, end_NK), axis=1)
    before_NK = np.concatenate([np.zeros_like(reach_NK[:, :1]) - 1, reach_NK[:, :-1]], axis=1)
    is_new_NK = ~is_none_NK & (first_NK >= before_NK)
    event_NK = np.maximum(np.cumsum(is_new_NK, axis=1) - 1, 0)
    rows_NK = np.broadcast_to(np.arange(len(mass_NK))[:, None], mass_NK.shape)
    sums_NK = np.zeros_like(mass_NK)
    np.add.at(sums_NK, (rows_NK, event_NK), np.where(is_none_NK, 0, mass_NK))
    dropped_N = np.where(is_none_NK, mass_NK, 0).sum(axis=1)
    made_first_NK, made_end_NK = np.zeros_like(first_NK), np.zeros_like(first_NK)
    at = rows_NK[is_new_NK], event_NK[is_new_NK]
    made_first_NK[at], made_end_NK[at] = first_NK[is_new_NK], end_NK[is_new_NK]
    with np.errstate(divide="ignore"):
        return (
            made_first_NK.astype(np.int32),
            made_end_NK.astype(np.int32),
            np.log(sums_NK).astype(np.float32),
            np.log(np.exp(tail_N.astype(np.float64)) + dropped_N).astype(np.float32),
        )
