"""Whether two similar texts ask the same: words that differ in a short question, or in a template.

"What is the capital of Peru?" and "... of Chad?" share most of their sequences and ask different
things. So a content word (no article, no "please") must not differ in a short line that asks, a
name not in a text of some length, and in no text the word that a template fills in.
"""

# P pairs, W words
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retort.data.duplicates.sequences import Ragged, batches, overlaps, spread
from retort.data.duplicates.texts import A_CHARACTER, A_NAME, I64, TextColumns, mixed
from retort.data.duplicates.words import hash64

# Words; two characters of a script without spaces count as one.
SHORT_LINE, NAMES_MATTER = 16, 60
LONGER = 2  # times as many words: a text that holds a question among others
MIN_FILLED, MAX_SEEN = 2, 256  # texts of a template beside the first: the least, and those counted
Mask = npt.NDArray[np.bool_]


class Spans(NamedTuple):
    """Runs of words of texts: one for each pair."""

    columns: TextColumns
    starts: I64
    counts: I64

    @classmethod
    def whole(cls, columns: TextColumns, texts: I64) -> "Spans":
        """Returns whole texts."""
        starts = columns.starts[texts].astype(np.int64)
        return cls(columns, starts, columns.starts[texts + 1].astype(np.int64) - starts)

    def at(self, picked: I64 | slice) -> "Spans":
        """Returns the runs at these indices."""
        return Spans(self.columns, self.starts[picked], self.counts[picked])

    def words(self) -> tuple[Ragged, npt.NDArray[np.uint8]]:
        """Returns the words, and what each is: CONTENT, A_NAME, A_CHARACTER or 0."""
        places = spread(self.starts, self.counts)
        words = mixed(self.columns.words[places].astype(np.uint64))
        return Ragged(words, self.counts), self.columns.kinds[places]


def sizes(spans: Spans) -> I64:
    """Returns how many words each run has, two characters counted as one word."""
    words, kinds = spans.words()
    num_characters = words.only(kinds == A_CHARACTER).counts
    size: I64 = spans.counts - num_characters // 2
    return size


def holds_content(whole: Spans, part: Spans) -> Mask:
    """Returns for each pair whether the first has all content words of the second."""
    return _holds(whole, part, least=1)


def holds_names(whole: Spans, part: Spans) -> Mask:
    """Returns for each pair whether the first has all names of the second, if that is not long."""
    fine = np.ones(len(part.starts), dtype=np.bool_)
    few = np.flatnonzero(sizes(part) < NAMES_MATTER)
    fine[few] = _holds(whole.at(few), part.at(few), least=A_NAME, most=A_NAME)
    return fine


def _holds(whole: Spans, part: Spans, least: int, most: int = A_CHARACTER) -> Mask:
    fine = [np.zeros(0, dtype=np.bool_)]
    for some in batches(whole.counts + part.counts):
        words, kinds = part.at(some).words()
        wanted = words.only((kinds >= least) & (kinds <= most))
        shared, num_wanted, _ = overlaps(wanted, whole.at(some).words()[0])
        fine.append(shared == num_wanted)
    return np.concatenate(fine)


def fill_a_template(columns: TextColumns, texts: I64, others: TextColumns, pairs: I64) -> Mask:
    """Returns for each pair of a text and another one whether they differ in a template's slot.

    `texts` are sorted, and `pairs` are the other texts beside them. If most of the others lack the
    same words of a text, and most of them do not have the same words instead, these words fill a
    template, and another text that lacks nothing else asks something else.
    """
    differs = np.zeros(len(texts), dtype=np.bool_)
    starts = np.flatnonzero(np.diff(texts, prepend=-1))
    stops = np.append(starts, len(texts))[1:]
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if stop - start < MIN_FILLED:
            continue
        own = _content(columns, int(texts[start]))
        lacking, added = Counter[int](), Counter[int]()
        members = [_content(others, int(other)) for other in pairs[start:stop]]
        for member in members[:MAX_SEEN]:
            lacking.update(own - member)
            added.update(member - own)
        enough = max(MIN_FILLED, min(len(members), MAX_SEEN) / 2)
        slots = {word for word, count in lacking.items() if count >= enough}
        if len(slots) > sum(count >= enough for count in added.values()):
            differs[start:stop] = [set() < own - member <= slots for member in members]
    return differs


def filling(columns: TextColumns, text: int, other: int) -> int:
    """Returns a hash of the content words of a text that another one lacks."""
    return hash64(str(sorted(_content(columns, text) - _content(columns, other))))


def _content(columns: TextColumns, text: int) -> frozenset[int]:
    span = slice(int(columns.starts[text]), int(columns.starts[text + 1]))
    return frozenset(columns.words[span][columns.kinds[span] > 0].tolist())
