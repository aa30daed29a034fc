"""MinHash sketches: pairs of texts that could be similar, in time linear in the texts.

Source: Broder, "On the resemblance and containment of documents" (1997). A text's group is part
of its buckets' keys, so that texts of one template that ask different things rarely meet.
"""

# B bands, K hashes, N texts, S sequences of a text
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retort.data.duplicates.sequences import (
    Lookup,
    batches,
    distinct,
    num_words,
    sequences,
)
from retort.data.duplicates.texts import I64, U64, TextColumns, mixed

NUM_HASHES = 96
LEAST_RECALL = 0.999  # of pairs exactly at the threshold of similarity
MATRIX = 1 << 16  # hashes that are multiplied at once
WINDOW = 2  # texts on each side in a sorted bucket
SAFE_DEVIATIONS = 4.5  # a similar pair is this far below its expectation 3 times in a million
_ODD = mixed(np.arange(1, 2 * NUM_HASHES + 1, dtype=np.uint64)) | np.uint64(1)
MULTIPLIERS = (_ODD[:NUM_HASHES] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
WEIGHTS = _ODD[NUM_HASHES:]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]


class Sketches(NamedTuple):
    """The key of each text's bucket in each band, and eight bits of each of its least hashes."""

    keys_BN: U32
    least_NK: U8


def bands(similarity: float) -> tuple[int, int]:
    """Returns the number of bands, and of hashes in each, that find pairs of this similarity."""
    for width in range(NUM_HASHES, 1, -1):
        count = NUM_HASHES // width
        if 1 - (1 - similarity**width) ** count >= LEAST_RECALL:
            return count, width
    return NUM_HASHES, 1


def sketched(
    columns: TextColumns, texts: I64, common: Lookup, groups: U64, similarity: float
) -> tuple[I64, Sketches]:
    """Returns the texts that have any sequences besides the common ones, and their sketches."""
    shape = bands(similarity)
    keys_BN = np.zeros((shape[0], len(texts)), dtype=np.uint32)
    least_NK = np.zeros((len(texts), NUM_HASHES), dtype=np.uint8)
    some = np.zeros(len(texts), dtype=np.bool_)
    for part in batches(num_words(columns, texts)):
        found = sequences(columns, texts[part], common)
        hashes = (found.values >> np.uint64(32)).astype(np.uint32)
        starts = np.cumsum(found.counts) - found.counts
        order = np.argsort(-found.counts, kind="stable")
        order = order[found.counts[order] > 0]
        some[part.start + order] = True
        while len(order):
            most = found.counts[order[0]]
            rows, order = np.split(order, [max(MATRIX // most, 1)])
            # Shorter texts repeat their last sequence, which changes no minimum.
            steps = np.minimum(np.arange(most)[:, None], found.counts[rows] - 1)
            least_KN = _minima(hashes[starts[rows] + steps])
            rows += part.start
            least_NK[rows] = least_KN.T
            keys_BN[:, rows] = _keys(least_KN, groups[texts[rows]], shape)
    if not some.all():
        keys_BN, least_NK = keys_BN[:, some], least_NK[some]
    return texts[some], Sketches(keys_BN, least_NK)


def _minima(hashes_SN: U32) -> U32:
    least_KN = np.empty((NUM_HASHES, hashes_SN.shape[1]), dtype=np.uint32)
    product_SN = np.empty_like(hashes_SN)
    for multiplier, least_N in zip(MULTIPLIERS, least_KN, strict=True):
        np.multiply(hashes_SN, multiplier, out=product_SN)
        product_SN.min(axis=0, out=least_N)
    return least_KN


def _keys(least_KN: U32, groups_N: U64, shape: tuple[int, int]) -> U32:
    keys_BN = np.empty((shape[0], least_KN.shape[1]), dtype=np.uint32)
    for band in range(shape[0]):
        key_N = groups_N + np.uint64(band)
        for place in range(band * shape[1], (band + 1) * shape[1]):
            key_N += least_KN[place] * WEIGHTS[place]
        keys_BN[band] = mixed(key_N) >> np.uint64(32)
    return keys_BN


def buckets(keys_N: U32, texts: I64) -> tuple[I64, I64]:
    """Returns the texts that share a bucket, sorted by bucket, and the number of its bucket."""
    named = keys_N[texts].astype(np.uint64) << np.uint64(32) | texts.astype(np.uint64)
    named.sort()
    same = named[1:] >> np.uint64(32) == named[:-1] >> np.uint64(32)
    follows, leads = np.append(False, same), np.append(same, False)
    members = np.flatnonzero(follows | leads)
    numbers = np.cumsum(leads[members] & ~follows[members])
    return (named[members] & np.uint64(0xFFFFFFFF)).astype(np.int64), numbers


def mates(keys_BN: U32, band: int, texts: I64, bucket: I64) -> tuple[I64, I64]:
    """Returns pairs of texts of the same bucket, a number linear in the texts.

    Each text is paired with the first of its bucket, and with its neighbours when the bucket is
    sorted by the keys of the next bands, which similar texts often share.
    """
    firsts = texts[np.searchsorted(bucket, bucket)]
    next_keys = [keys_BN[(band + step) % len(keys_BN), texts] for step in (2, 1)]
    beside = texts[np.lexsort((*next_keys, bucket))]
    pairs = [np.minimum(firsts, texts) << 32 | np.maximum(firsts, texts)]
    for step in range(1, WINDOW + 1):
        together = np.flatnonzero(bucket[step:] == bucket[:-step])
        one, two = beside[together], beside[together + step]
        pairs.append(np.minimum(one, two) << 32 | np.maximum(one, two))
    every = distinct(np.concatenate(pairs))
    earlier, later = every >> 32, every & 0xFFFFFFFF
    return earlier[earlier < later], later[earlier < later]


def may_be_similar(
    sketches: Sketches, earlier: I64, later: I64, similarity: float
) -> tuple[I64, I64]:
    """Returns the pairs whose sketches are similar enough."""
    variance = NUM_HASHES * similarity * (1 - similarity)
    least = NUM_HASHES * similarity - SAFE_DEVIATIONS * math.sqrt(variance)
    may = np.ones(len(earlier), dtype=np.bool_)
    for start in range(0, len(earlier), MATRIX):
        part = slice(start, start + MATRIX)
        same = sketches.least_NK[earlier[part]] == sketches.least_NK[later[part]]
        may[part] = same.sum(axis=1) >= least
    return earlier[may], later[may]
