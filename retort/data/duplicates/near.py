"""Near duplicates: candidates by MinHash in bands, then each pair compared word by word.

What distinguishes questions (numbers, scope, a short last line ...) is part of a bucket's key, so
that only texts that could ask the same meet. Buckets of texts made by a template stay small.
"""

# P pairs, N texts, B bands
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retort.data.duplicates.lines import LastLines, last_lines
from retort.data.duplicates.questions import (
    SHORT_LINE,
    Spans,
    fill_a_template,
    filling,
    holds_content,
    holds_names,
    sizes,
)
from retort.data.duplicates.sequences import (
    F64,
    Lookup,
    Ragged,
    batches,
    common_sequences,
    distinct,
    jaccard,
    num_words,
    overlaps,
    sequences,
    sequences_between,
    spread,
)
from retort.data.duplicates.sketch import buckets, mates, may_be_similar, sketched
from retort.data.duplicates.texts import I64, U64, TextColumns, mixed
from retort.spec.prepare import Deduplicate

SEEN = 1 << 22  # pairs that are remembered
MAX_SWEEPS = 4
LINE_SIMILARITY = 0.5


class ComparedTexts(NamedTuple):
    """The texts that are compared, and the facts needed to compare them."""

    columns: TextColumns
    common: Lookup
    lines: LastLines
    groups: U64  # texts of different groups ask different things
    knobs: Deduplicate


class Edges(NamedTuple):
    """Pairs of similar texts, and their similarity."""

    earlier: I64
    later: I64
    similarity: F64

    def at(self, picked: I64) -> "Edges":
        """Returns the pairs at these indices."""
        return Edges(self.earlier[picked], self.later[picked], self.similarity[picked])


_NONE = Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def joined(parts: list[Edges]) -> Edges:
    """Returns all pairs, in order."""
    return Edges(
        np.concatenate([part.earlier for part in parts]),
        np.concatenate([part.later for part in parts]),
        np.concatenate([part.similarity for part in parts]),
    )


def find_near(columns: TextColumns, texts: I64, knobs: Deduplicate) -> Edges:
    """Returns the texts to remove, each with the most similar text that is kept.

    The earliest of several similar texts is kept. Texts that fill a template with different words
    are compared once more, each with those that fill it with the same words.
    """
    found = _find_near(columns, texts, knobs, np.zeros(len(columns.scopes), dtype=np.uint64))
    order = np.lexsort((found.later, found.earlier))
    found = found.at(order)
    if not knobs.words_matter:
        return found
    differs = fill_a_template(columns, found.earlier, columns, found.later)
    if not differs.any():
        return found
    filled = found.at(np.flatnonzero(differs))
    fillings = np.zeros(len(columns.scopes), dtype=np.uint64)
    pairs = zip(filled.later.tolist(), filled.earlier.tolist(), strict=True)
    fillings[filled.later] = [filling(columns, text, other) for text, other in pairs]
    again = _find_near(columns, np.sort(filled.later), knobs, fillings)
    return joined([found.at(np.flatnonzero(~differs)), again])


def _find_near(columns: TextColumns, texts: I64, knobs: Deduplicate, fillings: U64) -> Edges:
    """Returns the texts to remove; `fillings` is a part of each text's group."""
    lines = last_lines(columns, texts)
    groups = mixed(_groups(columns, lines, texts, knobs.numbers_matter) + fillings)
    common = common_sequences(columns, texts)
    field = ComparedTexts(columns, common, lines, groups, knobs)
    texts, sketches = sketched(columns, texts, common, groups, knobs.similarity)
    seen = np.zeros(SEEN, dtype=np.uint64)
    active, alive = np.arange(len(texts)), np.ones(len(texts), dtype=np.bool_)
    met = np.zeros(len(texts), dtype=np.bool_)
    every, chosen = _NONE, _NONE
    for _ in range(MAX_SWEEPS):
        num_before = len(every.later)
        for band in range(len(sketches.keys_BN)):
            rows, bucket = buckets(sketches.keys_BN[band], active)
            met[rows] = True
            here = alive[rows]
            pairs = mates(sketches.keys_BN, band, rows[here], bucket[here])
            pairs = may_be_similar(sketches, *_unseen(*pairs, seen), knobs.similarity)
            found = _similar(field, texts[pairs[0]], texts[pairs[1]])
            every = joined([every, found])
            # Removed for now; the remaining texts meet others in the next band.
            sure = found.later[~np.isin(found.earlier, found.later)]
            alive[np.searchsorted(texts, sure)] = False
        if len(every.later) == num_before:
            break
        every, chosen = _settled(field, every)
        active, alive[:] = np.flatnonzero(met), True
        alive[np.searchsorted(texts, chosen.later)] = False
    return chosen


def _settled(field: ComparedTexts, every: Edges) -> tuple[Edges, Edges]:
    """Returns the pairs with some more, and those that count: in each the earlier text is kept.

    A text whose similar text is removed is compared with the text for which that one is removed.
    """
    while True:
        chosen = _kept_first(every)
        other = np.full(len(field.groups), -1)
        other[chosen.later] = chosen.earlier
        left = other[every.later] < 0
        pairs = distinct(other[every.earlier[left]] << 32 | every.later[left])
        pairs = pairs[~np.isin(pairs, every.earlier << 32 | every.later)]
        found = _similar(field, pairs >> 32, pairs & 0xFFFFFFFF)
        if not len(found.later):
            return every, chosen
        every = joined([every, found])


def _groups(columns: TextColumns, lines: LastLines, texts: I64, numbers_matter: bool) -> U64:
    parts = [columns.scopes, columns.negations.astype(np.uint64), lines.kinds]
    if numbers_matter:
        parts.append(columns.marks)
    if columns.answers[texts].all():
        parts.append(columns.answers)
    groups = np.zeros(len(columns.scopes), dtype=np.uint64)
    for part in parts:
        groups = mixed(groups + part + np.uint64(0x9E3779B97F4A7C15))
    return groups


def _unseen(earlier: I64, later: I64, seen: U64) -> tuple[I64, I64]:
    """Returns the pairs that were not seen before, and marks them as seen.

    A pair whose place is taken by another is forgotten; it may be compared once more.
    """
    keys = (earlier << 32 | later).astype(np.uint64)
    places = mixed(keys) % np.uint64(SEEN)
    new = seen[places] != keys
    seen[places] = keys
    return earlier[new], later[new]


def _similar(field: ComparedTexts, earlier: I64, later: I64) -> Edges:
    """Returns the pairs that ask the same, by comparing all their sequences."""
    answers = field.columns.answers
    may = (answers[earlier] == answers[later]) | (answers[earlier] == 0) | (answers[later] == 0)
    may &= field.groups[earlier] == field.groups[later]
    earlier, later = earlier[may], later[may]
    parts = [_NONE]
    sizes = num_words(field.columns, earlier) + num_words(field.columns, later)
    for part in batches(sizes):
        one, two = (sequences(field.columns, side[part], field.common) for side in (earlier, later))
        similarity = jaccard(one, two)
        near = np.flatnonzero(similarity >= field.knobs.similarity)
        found = Edges(earlier[part], later[part], similarity).at(near)
        found = found.at(np.flatnonzero(_same_lines(field, found.earlier, found.later)))
        if field.knobs.words_matter:
            found = found.at(np.flatnonzero(_same_words(field, found.earlier, found.later)))
        parts.append(found)
    return joined(parts)


def _same_words(field: ComparedTexts, earlier: I64, later: I64) -> npt.NDArray[np.bool_]:
    """Returns for each pair whether no content word of a short last line differs, and no name."""
    texts = [Spans.whole(field.columns, side) for side in (earlier, later)]
    lines = [
        Spans(field.columns, field.lines.starts[side], field.lines.counts[side])
        for side in (earlier, later)
    ]
    fine = holds_names(*texts) & holds_names(*reversed(texts))
    short = np.flatnonzero(np.minimum(sizes(lines[0]), sizes(lines[1])) < SHORT_LINE)
    one, two = (line.at(short) for line in lines)
    fine[short] &= holds_content(one, two) & holds_content(two, one)
    return fine


def _same_lines(field: ComparedTexts, earlier: I64, later: I64) -> npt.NDArray[np.bool_]:
    """Returns for each pair whether both the last lines and the texts before them are similar.

    A different last line must not occur in the text before the other: a premise and a hypothesis
    that changed places ask something else. Texts of one line always pass.
    """
    same = np.ones(len(earlier), dtype=np.bool_)
    several = np.flatnonzero(field.lines.kinds[earlier])
    if not len(several):
        return same
    one, two = earlier[several], later[several]
    words = [_line_words(field, texts) for texts in (one, two)]
    fine = jaccard(words[0], words[1]) >= LINE_SIMILARITY
    bodies = [_before_last(field, texts) for texts in (one, two)]
    fine &= jaccard(bodies[0], bodies[1]) >= field.knobs.similarity
    lasts = [_last(field, texts) for texts in (one, two)]
    for own, other in ((0, 1), (1, 0)):
        in_last, num_own, _ = overlaps(lasts[own], lasts[other])
        in_body, _, _ = overlaps(lasts[own], bodies[other])
        moved = (in_body >= in_last) & (in_body > num_own / 2)
        fine &= ~moved | (field.lines.hashes[one] == field.lines.hashes[two])
    same[several] = fine
    return same


def _last(field: ComparedTexts, texts: I64) -> Ragged:
    lines = field.lines
    return sequences_between(field.columns, lines.starts[texts], lines.counts[texts], field.common)


def _before_last(field: ComparedTexts, texts: I64) -> Ragged:
    starts = field.columns.starts[texts].astype(np.int64)
    counts = field.lines.starts[texts] - starts
    return sequences_between(field.columns, starts, counts, field.common)


def _line_words(field: ComparedTexts, texts: I64) -> Ragged:
    counts = field.lines.counts[texts]
    words = field.columns.words[spread(field.lines.starts[texts], counts)]
    return Ragged(mixed(words.astype(np.uint64)), counts)


def _kept_first(every: Edges) -> Edges:
    """Returns for each text that is similar to earlier, kept texts the most similar of them."""
    order = np.lexsort((every.earlier, -every.similarity, every.later))
    chosen: dict[int, int] = {}
    both = zip(every.earlier[order].tolist(), every.later[order].tolist(), strict=True)
    for index, (earlier, later) in zip(order.tolist(), both, strict=True):
        if later not in chosen and earlier not in chosen:
            chosen[later] = index
    return every.at(np.array(list(chosen.values()), dtype=np.int64))
