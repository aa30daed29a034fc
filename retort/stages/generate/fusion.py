"""Fuses what several teachers say of the same tokens into one signal.

A teacher's stored top k says nothing of a single id outside it, except of the answer's own token.
Such an id is taken to have its even part of the tail, tail / (V - k). The true probabilities there
are some other split of the same tail, so that the mixture is off by no more than the tail in total
variation: that bound is returned, 0 where no teacher lacked an id.
"""

# T tokens, K top-k of a teacher, M teachers, C candidate ids: all in any top k, and the target
import numpy as np
import numpy.typing as npt

from retort.store.signals import Signal, cut, joined

Floats64 = npt.NDArray[np.float64]
SMALLEST = 1e-12
BLOCK = 256  # tokens at a time: each takes C * K numbers


def fuse(
    parts: list[Signal], weights: list[float], vocabularies: list[int], k: int
) -> tuple[Signal, Floats64]:
    """Returns the mixture of signals of the same tokens, its k most probable ids and the rest as
    tail; and the bound of its error per token, in probability.

    `vocabularies` are the numbers of ids that the teachers' own distributions are over.
    """
    shares = np.asarray(weights, np.float64) / sum(weights)
    blocks = [
        _fuse([cut(part, start, start + BLOCK) for part in parts], shares, vocabularies, k)
        for start in range(0, max(len(parts[0].tail_T), 1), BLOCK)
    ]
    return joined(fused for fused, _ in blocks), np.concatenate([bound for _, bound in blocks])


def _fuse(
    parts: list[Signal], shares: Floats64, vocabularies: list[int], k: int
) -> tuple[Signal, Floats64]:
    target_T = parts[0].target_ids_T
    ids_TC = np.concatenate([*(part.ids_TK for part in parts), target_T[:, None]], axis=1)
    earlier_CC = np.tri(ids_TC.shape[1], k=-1, dtype=bool)
    repeated_TC = ((ids_TC[:, :, None] == ids_TC[:, None, :]) & earlier_CC).any(axis=2)
    mixed_TC, bound_T = np.zeros(ids_TC.shape), np.zeros(len(target_T))
    target_mass_T = np.zeros(len(target_T))
    for share, part, vocabulary in zip(shares, parts, vocabularies, strict=True):
        probabilities_TC, lacks_T, free_T = _of(part, ids_TC, repeated_TC, vocabulary)
        mixed_TC += share * probabilities_TC
        bound_T += share * np.where(lacks_T, free_T, 0.0)
        target_mass_T += share * np.exp(part.target_logprobs_T.astype(np.float64))
    order_TC = np.argsort(np.where(repeated_TC, 1.0, -mixed_TC), axis=1, kind="stable")[:, :k]
    top_TK = np.take_along_axis(mixed_TC, order_TC, axis=1)
    tail_T = np.clip(1.0 - top_TK.sum(axis=1), SMALLEST, 1.0)
    fused = Signal(
        np.take_along_axis(ids_TC, order_TC, axis=1).astype(np.int32),
        np.log(np.maximum(top_TK, SMALLEST)).astype(np.float32),
        target_T,
        np.log(np.maximum(target_mass_T, SMALLEST)).astype(np.float32),
        np.log(tail_T).astype(np.float32),
    )
    return fused, bound_T


def best_of_each(parts: list[Signal]) -> Signal:
    """Returns for each token the distribution of the teacher that finds it most probable, of equal
    ones the first: `min_ce`. Nothing is estimated."""
    best_T = np.argmax(np.stack([part.target_logprobs_T for part in parts]), axis=0)
    rows = np.arange(len(best_T))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Signal(*(np.stack(column)[best_T, rows] for column in columns))


def _of(
    part: Signal, ids_TC: npt.NDArray[np.int32], repeated_TC: npt.NDArray[np.bool_], vocabulary: int
) -> tuple[Floats64, npt.NDArray[np.bool_], Floats64]:
    """Returns a teacher's probabilities of the candidates, whether any of them was estimated, and
    the mass that estimates are taken from."""
    same_TCK = ids_TC[:, :, None] == part.ids_TK[:, None, :]
    stored_TK = np.exp(part.logprobs_TK.astype(np.float64))
    found_TC = np.where(same_TCK, stored_TK[:, None, :], 0.0).sum(axis=2)
    known_TC = same_TCK.any(axis=2)
    # The answer's own token is known, in the top k or not.
    is_target_TC = ids_TC == part.target_ids_T[:, None]
    own_T = np.exp(part.target_logprobs_T.astype(np.float64))
    outside_T = ~(part.ids_TK == part.target_ids_T[:, None]).any(axis=1)
    free_T = np.exp(part.tail_T.astype(np.float64)) - np.where(outside_T, own_T, 0.0)
    free_T = np.maximum(free_T, 0.0)
    rest_T = np.maximum(vocabulary - part.ids_TK.shape[1] - outside_T, 1)
    missing_TC = ~known_TC & ~is_target_TC
    estimated_TC = np.where(missing_TC, (free_T / rest_T)[:, None], found_TC)
    probabilities_TC = np.where(is_target_TC & ~known_TC, own_T[:, None], estimated_TC)
    return probabilities_TC, (missing_TC & ~repeated_TC).any(axis=1), free_T
