"""The pairs of texts that are copies, near copies or leaks.

Sketches only select the pairs to compare; every reported pair was compared in full.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retort.data.duplicates.leaks import find_parts
from retort.data.duplicates.near import find_near
from retort.data.duplicates.sequences import WIDTH, num_words
from retort.data.duplicates.texts import I64, U64, TextColumns, Texts, mixed
from retort.spec.prepare import Decontaminate, Deduplicate


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
        first = _first_copied(columns)
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
    texts: Texts,
    held_out: Texts,
    knobs: Decontaminate,
    numbers_matter: bool,
    words_matter: bool = True,
) -> list[DuplicatePair]:
    """Returns the texts that equal or contain a held-out text, each with the most similar one.

    The last two are those of `Deduplicate`: which differences make another question.
    """
    columns, held = texts.columns(), held_out.columns()
    differences = Deduplicate(numbers_matter=numbers_matter, words_matter=words_matter)
    found = find_parts(columns, held, knobs.overlap, differences)
    lists = (found.later.tolist(), found.earlier.tolist(), found.similarity.tolist())
    leaks = {pair[0]: DuplicatePair(*pair, "leak") for pair in zip(*lists, strict=True)}
    for index, equal in _equal_to(columns, held):
        leaks[index] = DuplicatePair(index, equal, 1.0, "leak")
    return [leaks[index] for index in sorted(leaks)]


def _first_copied(columns: TextColumns) -> I64:
    """Returns for each text the first one that asks the same and does not want another answer."""
    asked = mixed(columns.wholes + mixed(columns.scopes))
    first, answers = _first_equal(asked), columns.answers
    differs = (answers[first] != answers) & (answers[first] != 0) & (answers != 0)
    return np.where(differs, _first_equal(mixed(asked + mixed(answers))), first)


def _first_equal(keys: U64) -> I64:
    """Returns for each key the index of the first equal one."""
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    return first[places]


def _equal_to(columns: TextColumns, held: TextColumns) -> Iterator[tuple[int, int]]:
    """Yields the texts that equal a held-out one and do not want another answer, each with it."""
    held_out: dict[int, dict[int, int]] = {}
    for index, whole in enumerate(held.wholes.tolist()):
        held_out.setdefault(whole, {}).setdefault(int(held.answers[index]), index)
    for index in np.flatnonzero(np.isin(columns.wholes, held.wholes)).tolist():
        by_answer, answer = held_out[int(columns.wholes[index])], int(columns.answers[index])
        same = [
            other for known, other in by_answer.items() if 0 in (known, answer) or known == answer
        ]
        if same:
            yield index, min(same)
