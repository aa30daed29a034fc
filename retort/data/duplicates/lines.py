"""The last line of each text that few others have: the question, or the hypothesis, is there."""

# L lines, N texts
from typing import NamedTuple

import numpy as np

from retort.data.duplicates.sequences import (
    COMMON_SHARE,
    batches,
    distinct,
    spread,
    spread_sample,
)
from retort.data.duplicates.texts import I64, U64, TextColumns, mixed, ordered_sums

SHORT_LINE = 8  # words


class LastLines(NamedTuple):
    """The place of the last line of each text; a text of one line is its own last line.

    Lines of more than a tenth of the texts ("Answer:") are skipped.
    """

    starts: I64
    counts: I64  # words
    hashes: U64  # 0 for a text of one line
    kinds: U64  # 0 for a text of one line, 1 for a long last line, else the hash of a short one


def last_lines(columns: TextColumns, texts: I64) -> LastLines:
    """Returns the last lines of all texts; lines that are common in `texts` are skipped."""
    bounds = columns.starts.astype(np.int64)
    starts, counts = bounds[:-1].copy(), np.diff(bounds)
    lines = columns.lines.astype(np.int64)
    owner_L = np.searchsorted(bounds, lines, side="right") - 1
    several = np.bincount(owner_L, minlength=len(starts)) > 1
    inside_L = several[owner_L]
    owner_L, start_L = owner_L[inside_L], lines[inside_L]
    count_L = np.diff(lines, append=bounds[-1])[inside_L]
    hash_L = _hashes(columns, start_L, count_L)
    last = np.zeros(len(starts), dtype=np.int64)
    own_L = ~np.isin(hash_L, _common(hash_L, owner_L, texts))
    for wanted in (np.arange(len(own_L)), np.flatnonzero(own_L)):
        last[owner_L[wanted]] = wanted  # of several the last is assigned
    starts[several], counts[several] = start_L[last[several]], count_L[last[several]]
    hashes = np.zeros(len(starts), dtype=np.uint64)
    hashes[several] = hash_L[last[several]] | np.uint64(2)
    kinds = np.where(several & (counts > SHORT_LINE), np.uint64(1), hashes)
    return LastLines(starts, counts, hashes, kinds)


def _hashes(columns: TextColumns, starts: I64, counts: I64) -> U64:
    parts = [np.zeros(0, dtype=np.uint64)]
    for part in batches(counts):
        words = mixed(columns.words[spread(starts[part], counts[part])].astype(np.uint64))
        places = spread(np.zeros_like(counts[part]), counts[part])
        parts.append(ordered_sums(words, places, counts[part]))
    return np.concatenate(parts)


def _common(hashes: U64, owners: I64, texts: I64) -> U64:
    """Returns the lines of more than a tenth of these texts."""
    sample = spread_sample(texts)
    taken = np.isin(owners, sample)
    values, places = np.unique(hashes[taken], return_inverse=True)
    once = distinct(places << 32 | owners[taken])
    found: U64 = values[np.bincount(once >> 32, minlength=len(values)) > COMMON_SHARE * len(sample)]
    return found
