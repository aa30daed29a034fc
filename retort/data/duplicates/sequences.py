"""Three-word sequences of texts: which are common to many texts, and how many two texts share.

A sequence is a 64-bit hash of its words. Sets of sequences are compared in full.
"""

# S sequences, P pairs
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from retort.data.duplicates.texts import I64, U64, TextColumns, mixed

WIDTH = 3  # words of a sequence
SAMPLE = 10_000  # texts
MIN_TEXTS = 50
COMMON_SHARE = 0.1
BATCH = 1 << 18  # sequences processed at once: they fit into the processor's cache
F64 = npt.NDArray[np.float64]
Integer = TypeVar("Integer", np.int64, np.uint64)
NEVER = 2**64 - 1
FACTORS = mixed(np.arange(1, WIDTH + 1, dtype=np.uint64)) | np.uint64(1)


class Ragged(NamedTuple):
    """The sequences, or words, of several texts in one array, and each text's number of them."""

    values: npt.NDArray[Any]
    counts: I64

    def owners(self) -> I64:
        """Returns for each value the index of its text."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def only(self, wanted: npt.NDArray[np.bool_]) -> "Ragged":
        """Returns the values for which `wanted` is true."""
        before = np.concatenate([[0], np.cumsum(wanted)])
        ends = np.cumsum(self.counts)
        return Ragged(self.values[wanted], before[ends] - before[ends - self.counts])


class Lookup:
    """Looks up values in a large set; a table of bits answers fast for most absent values."""

    def __init__(self, values: U64) -> None:
        self.values = distinct(values)
        bits = min(max(len(self.values).bit_length(), 8), 23)
        self._shift, self._slot = np.uint64(60 - bits), np.uint64(64 - bits)
        self._table = np.zeros(1 << (bits + 4), dtype=np.bool_)
        self._table[self.values >> self._shift] = True
        # Where the search starts; each slot holds about one value, the last none.
        slots = np.arange(1 << bits, dtype=np.uint64) << self._slot
        self._starts = np.searchsorted(self.values, slots)
        self._ended = np.append(self.values, np.uint64(NEVER))

    def find(self, wanted: U64) -> tuple[I64, I64]:
        """Returns the indices of the wanted values that are in the set, and their places in it."""
        at = np.flatnonzero(self._table[wanted >> self._shift])
        likely = wanted[at]
        places = self._starts[likely >> self._slot]
        smaller = np.flatnonzero(self._ended[places] < likely)
        while len(smaller):
            places[smaller] += 1
            smaller = smaller[self._ended[places[smaller]] < likely[smaller]]
        present = (self._ended[places] == likely) & (places < len(self.values))
        return at[present], places[present]

    def lacks(self, wanted: U64) -> npt.NDArray[np.bool_]:
        """Returns for each wanted value whether it is absent."""
        absent = np.ones(len(wanted), dtype=np.bool_)
        absent[self.find(wanted)[0]] = False
        return absent


def sequences(columns: TextColumns, texts: I64, common: Lookup | None = None) -> Ragged:
    """Returns the sequences of these texts, repeated ones too, without the common ones."""
    starts = columns.starts[texts].astype(np.int64)
    return sequences_between(columns, starts, num_words(columns, texts), common)


def sequences_between(
    columns: TextColumns, starts: I64, counts: I64, common: Lookup | None = None
) -> Ragged:
    """Returns the sequences of the words from each start on, as many words as its count."""
    counts = np.maximum(counts - (WIDTH - 1), 0)
    at = spread(starts, counts)
    values = np.zeros(len(at), dtype=np.uint64)
    for place, factor in enumerate(FACTORS):
        values += columns.words[at + place] * factor
    found = Ragged(mixed(values), counts)
    return found if common is None else found.only(common.lacks(found.values))


def distinct(values: npt.NDArray[Integer]) -> npt.NDArray[Integer]:
    """Returns the different values, sorted; much faster than np.unique, which hashes."""
    ordered = np.sort(values)
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    different: npt.NDArray[Integer] = ordered[is_first]
    return different


def spread(starts: I64, counts: I64) -> I64:
    """Returns start, start + 1 ... for each start, as many numbers as its count."""
    shifts = starts - (np.cumsum(counts) - counts)
    numbers: I64 = np.arange(counts.sum()) + np.repeat(shifts, counts)
    return numbers


def common_sequences(columns: TextColumns, texts: I64) -> Lookup:
    """Returns the sequences that more than a tenth of these texts contain, such as a template's."""
    sample = spread_sample(texts)
    found = sequences(columns, sample)
    values, places = np.unique(found.values, return_inverse=True)
    once = distinct(places << 32 | found.owners())
    return Lookup(
        values[np.bincount(once >> 32, minlength=len(values)) > COMMON_SHARE * len(sample)]
    )


def spread_sample(texts: I64) -> I64:
    """Returns an evenly spaced sample in which common sequences are counted; none of few texts."""
    count = min(SAMPLE, len(texts)) if len(texts) >= MIN_TEXTS else 0
    sample: I64 = texts[np.arange(count) * len(texts) // max(count, 1)]
    return sample


def overlaps(first: Ragged, second: Ragged) -> tuple[I64, I64, I64]:
    """Returns for each pair of sets the number of shared values, and the size of either set."""
    sides = []
    for side, ragged in enumerate((first, second)):
        # 42 bits are enough to distinguish the values of one pair.
        low = ragged.values >> np.uint64(22) << np.uint64(1) | np.uint64(side)
        sides.append(ragged.owners().astype(np.uint64) << np.uint64(43) | low)
    keys = distinct(np.concatenate(sides))
    num_pairs = len(first.counts)
    owners = (keys >> np.uint64(43)).astype(np.int64)
    is_second = keys & np.uint64(1) != 0
    both = keys[1:] >> np.uint64(1) == keys[:-1] >> np.uint64(1)
    sizes = np.bincount(owners, minlength=num_pairs)
    seconds = np.bincount(owners[is_second], minlength=num_pairs)
    shared = np.bincount(owners[1:][both], minlength=num_pairs)
    return shared, sizes - seconds, seconds


def jaccard(first: Ragged, second: Ragged) -> F64:
    """Returns the Jaccard similarity of each pair of sets, from 0 to 1; 1 for two empty sets."""
    shared, one, two = overlaps(first, second)
    either = one + two - shared
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)


def batches(sizes: npt.NDArray[Any], limit: int = BATCH) -> Iterator[slice]:
    """Yields slices whose sizes sum to at most `limit`, or slices of one larger item."""
    totals = np.cumsum(sizes)
    start = 0
    while start < len(totals):
        before = totals[start - 1] if start else 0
        stop = max(int(np.searchsorted(totals, before + limit, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def num_words(columns: TextColumns, texts: I64) -> I64:
    """Returns the numbers of words of these texts."""
    return (columns.starts[texts + 1] - columns.starts[texts]).astype(np.int64)
