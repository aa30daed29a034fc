"""How much a row would teach, and which rows together: uncertain, often wrong, and not alike.

The sketch of a row are its runs of one to three words, all numbers being one, weighted by how rare
each is; rows are near by the square of the cosine of their sketches. Each choice lowers the worth
of the rows near it, as does each row that is answered already; a row that is near no other counts
less, for what is learned from it is hardly ever asked.
Source: the information density of Settles and Craven, "An analysis of active learning strategies
for sequence labeling tasks" (2008), with a kernel density of what is known.
"""

# N rows of the pool, K known rows, H hashes of runs of words, B rows of a block
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data.balance import READ_CHARACTERS
from retort.data.duplicates import normal_words

F64 = npt.NDArray[np.float64]
RUN, HASHES = 3, 1 << 20
# How far the frequency of rows like it counts: 1 for as much as it is asked, 0 for not at all.
FREQUENCY = 0.5
# How frequent rows like one are, is counted among so many.
COUNTED_ROWS, BLOCK = 4096, 512


def sketches(texts: Sequence[str]) -> Any:
    """Returns the sketches of texts as rows (N, H) of length one, sparse; runs of words that one
    text alone holds are left out."""
    from scipy import sparse

    found = [_hashes(text[:READ_CHARACTERS]) for text in texts]
    hashes = np.concatenate([np.zeros(0, dtype=np.int32), *found])
    owners = np.repeat(np.arange(len(texts)), [len(each) for each in found])
    counts = np.bincount(hashes, minlength=HASHES)
    shared = counts[hashes] > 1
    kept, columns = np.unique(hashes[shared], return_inverse=True)
    weights = np.log(len(texts) / counts[kept])[columns]
    rows_NH = sparse.csr_array((weights, (owners[shared], columns)), (len(texts), len(kept)))
    lengths_N = np.sqrt((rows_NH * rows_NH).sum(axis=1))
    return (sparse.diags_array(1 / np.where(lengths_N > 0, lengths_N, 1)) @ rows_NH).tocsr()


def _hashes(text: str) -> npt.NDArray[np.int32]:
    words = ["0" if word[:1].isdigit() else word for word in normal_words(text)]
    runs = {
        " ".join(words[start : start + length])
        for length in range(1, RUN + 1)
        for start in range(len(words) - length + 1)
    }
    hashes = {zlib.crc32(run.encode(errors="surrogatepass")) % HASHES for run in runs}
    return np.array(sorted(hashes), dtype=np.int32)


def nearness(rows_BH: Any, others_KH: Any) -> F64:
    """Returns how near rows are to others (B, K): 1 for the same words, 0 for none in common."""
    near_BK: F64 = (rows_BH @ others_KH.T).toarray() ** 2
    return near_BK


def crowd(rows_NH: Any, others_KH: Any) -> F64:
    """Returns how many of some rows are near each row of the pool (N,)."""
    found_N = np.zeros(rows_NH.shape[0])
    for start in range(0, len(found_N), BLOCK):
        part = slice(start, start + BLOCK)
        found_N[part] = nearness(rows_NH[part], others_KH).sum(axis=1)
    return found_N


def disagreement(rows_NH: Any, known_KH: Any, wrong_K: F64) -> F64:
    """Returns how often the student disagrees with the teacher near each row of the pool (N,).

    `wrong_K` says how far it does on each known row, from 0 to 1. Their mean counts as one near row
    more, so that it is the value where none is near.
    """
    found_N, mean = np.zeros(rows_NH.shape[0]), wrong_K.mean()
    for start in range(0, len(found_N), BLOCK):
        part = slice(start, start + BLOCK)
        near_BK = nearness(rows_NH[part], known_KH)
        found_N[part] = (near_BK @ wrong_K + mean) / (near_BK.sum(axis=1) + 1)
    return found_N


def ranks(values_N: F64) -> F64:
    """Returns the share of values that are smaller, equal ones counted half (N,): in (0, 1)."""
    ordered = np.sort(values_N)
    below = np.searchsorted(ordered, values_N, side="left")
    not_above = np.searchsorted(ordered, values_N, side="right")
    shares_N: F64 = (below + not_above) / (2 * len(values_N))
    return shares_N


def pick(scores_N: F64, rows_NH: Any, known_KH: Any, number: int) -> list[tuple[int, float]]:
    """Returns the rows to choose, in their order, and each one's worth when it was chosen. The rows
    are in random order.

    A row's worth is its score, times the number of rows near it to the power FREQUENCY, over the
    number of rows near it that are known or chosen already; both numbers are one more than counted.
    """
    base_N = scores_N * (1 + crowd(rows_NH, rows_NH[:COUNTED_ROWS])) ** FREQUENCY
    num_known_N = 1 + crowd(rows_NH, known_KH)
    chosen = list[tuple[int, float]]()
    for _ in range(number):
        worth_N = base_N / num_known_N
        best = int(worth_N.argmax())
        chosen.append((best, float(worth_N[best])))
        num_known_N += (rows_NH @ rows_NH[[best]].toarray()[0]) ** 2
        base_N[best] = -1.0
    return chosen
