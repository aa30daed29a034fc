"""Finds texts that contain a held-out text, whole or in great part, by its rarest sequences.

A text with 60% of the sequences of a held-out text contains at least one of any 40% (and one more)
of them. So looking up the rarest of each finds all candidates, and none is missed by chance.
"""

# S sequences, H held-out texts
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retort.data.duplicates.lines import LastLines, last_lines
from retort.data.duplicates.near import Edges, joined
from retort.data.duplicates.questions import (
    LONGER,
    SHORT_LINE,
    Spans,
    fill_a_template,
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
    num_words,
    overlaps,
    sequences,
    spread,
)
from retort.data.duplicates.texts import I64, U64, TextColumns, mixed
from retort.spec.prepare import Deduplicate

MIN_HITS = 2  # rare sequences in common before a pair is compared
MORE_HITS, MIN_LOOKED_AT = 3, 64  # times as many texts may be looked at, or these few
MAX_HITS = 1 << 21  # of one batch


class Side(NamedTuple):
    """One text of each pair."""

    columns: TextColumns
    texts: I64


class Index(NamedTuple):
    """The rarest sequences of the held-out texts, and the texts that contain each."""

    lookup: Lookup
    ends: I64  # of each sequence's owners
    owners: I64
    least: I64  # of each held-out text: how many of its rarest sequences a leak contains


def find_parts(
    texts: TextColumns, held_out: TextColumns, overlap: float, differences: Deduplicate
) -> Edges:
    """Returns the texts that contain a share `overlap` of a held-out text's sequences.

    Each comes with the held-out text of which it contains the largest share: that is `earlier` of
    an edge, and the leaking text `later`.
    """
    every = np.arange(len(texts.scopes))
    common = common_sequences(texts, every)
    index = _index(texts, held_out, common, overlap)
    lines = last_lines(held_out, np.arange(len(held_out.scopes)))
    parts = [Edges(every[:0], every[:0], np.zeros(0))]
    for part in batches(num_words(texts, every)) if len(index.owners) else ():
        for leaking, held in _candidates(texts, every[part], index):
            answers = texts.answers[leaking], held_out.answers[held]
            may = (answers[0] == answers[1]) | (answers[0] == 0) | (answers[1] == 0)
            if differences.numbers_matter:
                may &= held_out.numbers[held] & ~texts.numbers[leaking] == 0
            leaking, held = leaking[may], held[may]  # noqa: PLW2901
            share = _shares(Side(texts, leaking), Side(held_out, held), common)
            enough = np.flatnonzero(share >= overlap)
            if differences.numbers_matter:
                sides = Side(texts, leaking[enough]), Side(held_out, held[enough])
                enough = enough[_same_numbers(*sides)]
            if differences.words_matter:
                sides = Side(texts, leaking[enough]), Side(held_out, held[enough])
                enough = enough[_same_words(*sides, lines)]
            parts.append(Edges(held[enough], leaking[enough], share[enough]))
    found = joined(parts)
    if differences.words_matter:
        found = _without_templates(found, texts, held_out)
    order = np.lexsort((found.earlier, -found.similarity, found.later))
    _, first = np.unique(found.later[order], return_index=True)
    return found.at(order[first])


def _same_words(texts: Side, held_out: Side, lines: LastLines) -> npt.NDArray[np.bool_]:
    """Returns for each pair whether the text has all names and content words that tell a question.

    These are the content words of the held-out text's last line, if that is short. If the text is
    not much longer than a held-out text of one short line, it may have no other ones either.
    """
    whole, held = Spans.whole(*texts), Spans.whole(*held_out)
    asked = Spans(held.columns, lines.starts[held_out.texts], lines.counts[held_out.texts])
    fine = holds_names(whole, held)
    is_short = sizes(asked) < SHORT_LINE
    short = np.flatnonzero(is_short)
    fine[short] &= holds_content(whole.at(short), asked.at(short))
    is_alone = (asked.counts == held.counts) & (sizes(whole) < LONGER * sizes(held))
    alone = np.flatnonzero(is_short & is_alone)
    fine[alone] &= holds_content(held.at(alone), whole.at(alone))
    return fine


def _without_templates(found: Edges, texts: TextColumns, held_out: TextColumns) -> Edges:
    """Returns the pairs without those in which a text and a held-out one only share a template."""
    found = found.at(np.lexsort((found.later, found.earlier)))
    differs = fill_a_template(held_out, found.earlier, texts, found.later)
    found = found.at(np.flatnonzero(~differs))
    # A text that holds a held-out one among others has more words, which say nothing.
    whole, held = Spans.whole(texts, found.later), Spans.whole(held_out, found.earlier)
    is_longer = sizes(whole) >= LONGER * sizes(held)
    longer, alike = found.at(np.flatnonzero(is_longer)), found.at(np.flatnonzero(~is_longer))
    alike = alike.at(np.lexsort((alike.earlier, alike.later)))
    differs = fill_a_template(texts, alike.later, held_out, alike.earlier)
    return joined([longer, alike.at(np.flatnonzero(~differs))])


def _index(texts: TextColumns, held_out: TextColumns, common: Lookup, overlap: float) -> Index:
    num_held = len(held_out.scopes)
    found = sequences(held_out, np.arange(num_held), common)
    values, places = np.unique(found.values, return_inverse=True)
    owners, places = _unpacked(distinct(found.owners() << 32 | places))
    sizes_H = np.bincount(owners, minlength=num_held)
    in_texts = _occurrences(texts, values)
    order = np.lexsort((places, in_texts[places], owners))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes_H) - sizes_H, sizes_H)
    needed_H = np.ceil(overlap * sizes_H - 1e-9).astype(np.int64)
    spare_H = sizes_H - needed_H  # so many may lack
    least_H = _least_hits(Ragged(in_texts[places[order]], sizes_H), spare_H, needed_H)
    rare = order[rank < (spare_H + least_H)[owners]]
    rare = rare[in_texts[places[rare]] > 0]
    rare = rare[np.lexsort((owners[rare], places[rare]))]
    used, counts = np.unique(places[rare], return_counts=True)
    return Index(Lookup(values[used]), np.cumsum(counts), owners[rare], least_H)


def _least_hits(times: Ragged, spare_H: I64, needed_H: I64) -> I64:
    """Returns how many of a held-out text's rarest sequences a text needs to be compared with it.

    More are required if further sequences are as rare, so that looking them up costs little: that
    keeps texts made by a template apart. `times` is how often each sequence occurs in the texts,
    the rarest first.
    """
    least_H = np.minimum(MIN_HITS, needed_H)
    totals = np.concatenate([[0], np.cumsum(times.values)])
    starts = np.cumsum(times.counts) - times.counts
    affordable_H = MORE_HITS * (totals[starts + spare_H + least_H] - totals[starts]) + MIN_LOOKED_AT
    owners = times.owners()
    cheap = totals[1:] - totals[starts][owners] <= affordable_H[owners]
    num_cheap_H = np.bincount(owners[cheap], minlength=len(starts))
    return np.clip(num_cheap_H - spare_H, least_H, needed_H)


def _occurrences(texts: TextColumns, values: U64) -> I64:
    """Returns how often each of the sorted values occurs in the texts."""
    lookup, counts = Lookup(values), np.zeros(len(values), dtype=np.int64)
    every = np.arange(len(texts.scopes))
    for part in batches(num_words(texts, every)):
        np.add.at(counts, lookup.find(sequences(texts, every[part]).values)[1], 1)
    return counts


def _candidates(texts: TextColumns, part: I64, index: Index) -> Iterator[tuple[I64, I64]]:
    """Yields pairs of a text of this part and a held-out text with enough rare sequences in it."""
    found = sequences(texts, part)
    at, places = index.lookup.find(found.values)
    rows, places = _unpacked(distinct(found.owners()[at] << 32 | places))
    num_owners = np.diff(index.ends, prepend=0)[places]
    hits = np.bincount(rows, weights=num_owners, minlength=len(part))
    for some in batches(hits, MAX_HITS):
        span = slice(*np.searchsorted(rows, [some.start, some.stop]))
        counts = num_owners[span]
        held = index.owners[spread(index.ends[places[span]] - counts, counts)]
        pairs, times = np.unique(np.repeat(rows[span], counts) << 32 | held, return_counts=True)
        leaking, held = _unpacked(pairs)
        enough = times >= index.least[held]
        yield part[leaking[enough]], held[enough]


def _unpacked(pairs: I64) -> tuple[I64, I64]:
    return pairs >> 32, pairs & 0xFFFFFFFF


def _shares(texts: Side, held_out: Side, common: Lookup) -> F64:
    """Returns for each pair the share of the held-out text's sequences that the text contains."""
    parts = [np.zeros(0)]
    for part in batches(num_words(*texts) + num_words(*held_out)):
        sets = (sequences(side.columns, side.texts[part], common) for side in (texts, held_out))
        shared, _, sizes = overlaps(*sets)
        parts.append(shared / np.maximum(sizes, 1))
    return np.concatenate(parts)


def _same_numbers(texts: Side, held_out: Side) -> npt.NDArray[np.bool_]:
    """Returns for each pair whether the text contains all numbers of the held-out text."""
    shared, _, sizes = overlaps(_numbers(texts), _numbers(held_out))
    same: npt.NDArray[np.bool_] = shared == sizes
    return same


def _numbers(side: Side) -> Ragged:
    """Returns the numbers of texts; a second 5 in a text counts as another number."""
    columns, texts = side
    counts = num_words(columns, texts)
    words = columns.words[spread(columns.starts[texts].astype(np.int64), counts)]
    found = Ragged(words.astype(np.uint64), counts).only(words & 1 == 1)
    keys = np.sort(found.owners().astype(np.uint64) << np.uint64(32) | found.values)
    changes = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    repeats = np.arange(len(keys)) - np.repeat(changes, np.diff(changes, append=len(keys)))
    values = keys & np.uint64(0xFFFFFFFF) | repeats.astype(np.uint64) << np.uint64(32)
    return Ragged(mixed(values), found.counts)
