"""How much a row would teach, and which rows together: uncertain, often wrong, and not alike.

A row is like another by the cosine of their places in the space of their words. Each choice lowers
the worth of the rows like it, as does each row that is answered already; a row that is like none of
the others counts little, for what is learned from it is hardly ever asked.
Source: the information density of Settles and Craven, "An analysis of active learning strategies
for sequence labeling tasks" (2008), with a kernel density for what is known already.
"""

# N rows of the pool, K known rows, D directions, B rows of a block
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
# How far the frequency of a row's kind counts: with 1 as much as it is asked, with 0 not at all.
FREQUENCY = 0.5
# How frequent a row's kind is, is counted among so many rows.
COUNTED_ROWS, BLOCK = 4096, 1024


def nearness(places_BD: F32, others_KD: F32) -> F32:
    """Returns how near rows are to others (B, K), from 0 to 1: the fourth power of the cosine, so
    that rows of another kind, whose cosine is below one half, hardly count."""
    near_BK: F32 = np.maximum(places_BD @ others_KD.T, 0.0)
    near_BK *= near_BK
    near_BK *= near_BK
    return near_BK


def crowd(places_ND: F32, others_KD: F32) -> F64:
    """Returns how many of some rows are near each row of the pool (N,)."""
    found = [
        nearness(places_ND[start : start + BLOCK], others_KD).sum(axis=1, dtype=np.float64)
        for start in range(0, len(places_ND), BLOCK)
    ]
    return np.concatenate(found) if found else np.zeros(0)


def disagreement(places_ND: F32, known_KD: F32, wrong_K: F64) -> F64:
    """Returns how often the student disagrees with the teacher near each row of the pool (N,).

    `wrong_K` says how far it does on each known row, from 0 to 1. Where none is near, it is the
    mean of all, which counts as one near row.
    """
    found, mean = np.zeros(len(places_ND)), wrong_K.mean()
    for start in range(0, len(places_ND), BLOCK):
        near_BK = nearness(places_ND[start : start + BLOCK], known_KD).astype(np.float64)
        found[start : start + BLOCK] = (near_BK @ wrong_K + mean) / (near_BK.sum(axis=1) + 1)
    return found


def ranks(values_N: F64) -> F64:
    """Returns the share of values that are smaller, equal ones counted half (N,): in (0, 1)."""
    ordered = np.sort(values_N)
    below = np.searchsorted(ordered, values_N, side="left")
    not_above = np.searchsorted(ordered, values_N, side="right")
    shares: F64 = (below + not_above) / (2 * len(values_N))
    return shares


def pick(scores_N: F64, places_ND: F32, known_KD: F32, number: int) -> list[tuple[int, float]]:
    """Returns the rows to choose, in their order, and each one's worth when it was chosen. The rows
    are in random order.

    A row's worth is its score, times the number of rows like it to the power FREQUENCY, over the
    number of rows like it that are known or chosen already; both numbers are one more than counted.
    """
    num_known = crowd(places_ND, known_KD)
    base_N = scores_N * (1 + crowd(places_ND, places_ND[:COUNTED_ROWS])) ** FREQUENCY
    chosen = list[tuple[int, float]]()
    for _ in range(number):
        worth_N = base_N / (1 + num_known)
        best = int(worth_N.argmax())
        chosen.append((best, float(worth_N[best])))
        num_known += nearness(places_ND, places_ND[best : best + 1])[:, 0]
        base_N[best] = -1.0
    return chosen
