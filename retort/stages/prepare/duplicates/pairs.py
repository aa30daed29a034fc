"""The pairs of texts that are copies, near copies or leaks.

Sketches only select the pairs to compare; every reported pair was compared in full.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from retort.spec.prepare import Decontaminate, Deduplicate
from retort.stages.prepare.duplicates.leaks import find_parts
from retort.stages.prepare.duplicates.near import find_near
from retort.stages.prepare.duplicates.sequences import WIDTH, num_words
from retort.stages.prepare.duplicates.texts import I64, U64, Texts, mixed


@dataclass(frozen=True)
class DuplicatePair:
    """A text to remove, by its index, and the reason.

    `other` is the earlier, kept text that it copies, or the held-out text that it leaks.
    `similarity` is the Jaccard index of the two sets of three-word sequences; for a leak, the
    share of the held-out text's sequences that the text contains.
    """

    index: int
    other: int
    similarity: float
    kind: Literal["exact", "near", "leak"]


def find_duplicates(texts: Texts, knobs: Deduplicate) -> list[DuplicatePair]:
    """Returns the texts that repeat an earlier one, in order; the first of equal texts is kept."""
    columns = texts.columns()
    every = np.arange(len(texts))
    pairs = []
    rest = every
    if knobs.exact:
        first = _first_equal(mixed(columns.wholes + mixed(columns.scopes)))
        copies, rest = np.flatnonzero(first != every), np.flatnonzero(first == every)
        for index, other in zip(copies.tolist(), first[copies].tolist(), strict=True):
            pairs.append(DuplicatePair(index, other, 1.0, "exact"))
    if knobs.near:
        rest = rest[num_words(columns, rest) >= WIDTH]
        found = find_near(columns, rest, knobs)
        lists = (found.later.tolist(), found.earlier.tolist(), found.similarity.tolist())
        pairs += [DuplicatePair(*pair, "near") for pair in zip(*lists, strict=True)]
    return sorted(pairs, key=lambda pair: pair.index)


def find_leaks(
    texts: Texts, held_out: Texts, knobs: Decontaminate, numbers_matter: bool
) -> list[DuplicatePair]:
    """Returns the texts that equal or contain a held-out text, each with the most similar one."""
    columns, held = texts.columns(), held_out.columns()
    found = find_parts(columns, held, knobs.overlap, numbers_matter)
    lists = (found.later.tolist(), found.earlier.tolist(), found.similarity.tolist())
    leaks = {pair[0]: DuplicatePair(*pair, "leak") for pair in zip(*lists, strict=True)}
    at, other = _equal_to(columns.wholes, held.wholes)
    for index, equal in zip(at.tolist(), other.tolist(), strict=True):
        leaks[index] = DuplicatePair(index, equal, 1.0, "leak")
    return [leaks[index] for index in sorted(leaks)]


def _first_equal(keys: U64) -> I64:
    """Returns for each key the index of the first equal one."""
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    return first[places]


def _equal_to(keys: U64, wanted: U64) -> tuple[I64, I64]:
    """Returns the indices of the keys that are wanted, and of the first equal wanted key."""
    values, first = np.unique(wanted, return_index=True)
    if not len(values):
        return first, first
    places = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    at = np.flatnonzero(values[places] == keys)
    return at, first[places[at]]
