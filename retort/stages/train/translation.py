"""A teacher's signal for a student with another tokenizer, by the bytes of one answer.

Where tokens of both begin at the same byte, the teacher's strings become events over the student's
vocabulary: "the text goes on with these bytes", a range of the tokens in the order of their bytes.
Between two such places lies a chunk, which both spell, each with its own tokens.

**Events.** A teacher's string stands for the longest student's token that it begins with, for that
is what the student would write; the answer's own string and the student's label, of which one
begins with the other, for the shorter. Events of which one begins with another are one, so that no
token is counted twice. What no token begins with, and special tokens, is tail. It is approximate in
one way: the teacher's mass of an event is that of its stored strings, and another way to write the
same bytes, with a shorter token, is tail unless that token is stored too.
**Chunks.** A chunk ends only where the teacher could begin a new word or end, by its stored
strings, for a token inside a word says nothing of the word's other splits (Minixhofer et al. 2025,
arXiv:2503.20083, which merges by the same threshold).
"""

# T tokens of the student, S of the teacher, K teacher top-k
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retort.data.encoding import EncodedRow
from retort.data.token_bytes import ByteOrder, TokenBytes, without_lead
from retort.store.signals import Signal
from retort.store.signals.signal import Floats, Ints

# A chunk may end where the teacher's new words and ends have more than this probability.
BOUNDARY = 0.1
# Chunks are not joined beyond the first number of student tokens, nor learned beyond the second.
JOINED_TOKENS, LONGEST_TOKENS = 16, 64


@dataclass(frozen=True)
class TranslatedSignal:
    """A signal over events, and the chunks; of a row's supervised tokens.

    Event k of token t are the ranks from `first_TK` to before `end_TK` in the student's byte order;
    an empty range has the log-probability -inf. Where the token begins inside one of the teacher's,
    all are empty, and `tail_T` is 0: such a token has no divergence. `ends_T` says after which
    tokens a chunk ends, and `surprisal_T` the teacher's -log p of the chunk that ends there, nats,
    NaN where it is not learned. `order_V` are the student's ids by rank.
    """

    first_TK: Ints
    end_TK: Ints
    logprobs_TK: Floats
    tail_T: Floats
    ends_T: npt.NDArray[np.bool_]
    surprisal_T: Floats
    order_V: npt.NDArray[np.int64]

    def part(self, end: int) -> "TranslatedSignal":
        """Returns the signal of the tokens before `end`, as views."""
        *columns, order_V = vars(self).values()
        return TranslatedSignal(*(column[:end] for column in columns), order_V)

    @property
    def num_aligned(self) -> int:
        """The number of tokens with a distribution."""
        return int((self.first_TK < self.end_TK).any(axis=1).sum())


class Translator:
    """From one teacher's tokens to one student's; keeps what it has looked up.

    With `is_exact` an event is a token, not all that begin with it: for tokenizers that are one.
    """

    def __init__(self, teacher: TokenBytes, student: ByteOrder):
        self.teacher, self.student = teacher, student
        self._order_V = np.array(student.ids, np.int64)
        self.is_exact = False
        size = len(teacher.spelled)
        # One more row, empty, for ids past the table, which a padded embedding has.
        self._ranges_V2 = np.full((size + 1, 2), -1, np.int32)
        self._ranges_V2[size] = 0
        begins = [i in teacher.ends or _begins(b) for i, b in enumerate(teacher.spelled)]
        self._begins_V = np.array([*begins, False])
        ranks = sorted(student.end_ranks.values())
        for index in teacher.ends:
            self._ranges_V2[index] = (ranks[0], ranks[-1] + 1) if ranks else 0

    def translate(
        self, rows: Sequence[tuple[EncodedRow, Signal | None, str]]
    ) -> tuple[list[TranslatedSignal], Counter[str]]:
        """Returns the signal of each row, with the text of its answer, and why some have none."""
        k = next((signal.ids_TK.shape[1] for _, signal, _ in rows if signal is not None), 1)
        reasons: Counter[str] = Counter()
        made = []
        for row, signal, text in rows:
            made.append(self.nothing(len(row.labels) - row.first, k))
            sides = self._sides(row, signal, text)
            if isinstance(sides, str):
                reasons[sides] += 1
                continue
            assert signal is not None
            # Of tokens that begin at one byte the last counts: those before it spell nothing.
            at_T = np.searchsorted(sides[0].starts, sides[1].starts, side="right") - 1
            places = at_T, sides[0].starts[at_T] == sides[1].starts
            self._fill(made[-1], signal, sides, places)
            self._chunk(made[-1], signal, sides, places)
        return made, reasons

    def splits_alike(self, rows: Sequence[tuple[EncodedRow, Signal | None, str]]) -> bool:
        """Whether the student knows all the teacher's strings and splits every row as it does: then
        both have one tokenizer, as far as can be seen, and an event may be one token."""
        known = set(self.student.sorted)
        others = (b for i, b in enumerate(self.teacher.spelled) if i not in self.teacher.ends)
        if not all(b is None or b in known for b in others):
            return False
        sides = (self._sides(*row) for row in rows)
        return all(isinstance(both, str) or both[0].parts == both[1].parts for both in sides)

    def _sides(
        self, row: EncodedRow, signal: Signal | None, text: str
    ) -> "tuple[_Side, _Side] | str":
        """Returns both sides of a row's answer, or why they cannot be compared."""
        if signal is None:
            return "the teacher's answer has no signal"
        theirs = _Side.of(self.teacher, signal.target_ids_T.tolist(), text)
        if theirs is None:
            return "the teacher's tokens do not spell the text that is learned"
        ours = _Side.of(self.student.table, row.labels[row.first :], text)
        return "the student's tokens do not spell the text" if ours is None else (theirs, ours)

    def _range(self, event: bytes) -> tuple[int, int]:
        """Returns the ranks of an event, of none for an event without a byte."""
        if not event:
            return (0, 0)
        return self.student.range_of(event, whole=self.is_exact)

    def nothing(self, num_tokens: int, k: int) -> TranslatedSignal:
        """Returns the signal of tokens of which nothing is known."""
        ends_T = np.zeros(num_tokens, np.bool_)
        ends_T[-1:] = True
        return TranslatedSignal(
            np.zeros((num_tokens, k), np.int32),
            np.zeros((num_tokens, k), np.int32),
            np.full((num_tokens, k), -np.inf, np.float32),
            np.zeros(num_tokens, np.float32),
            ends_T,
            np.full(num_tokens, np.nan, np.float32),
            self._order_V,
        )

    def _fill(
        self,
        made: TranslatedSignal,
        signal: Signal,
        sides: tuple["_Side", "_Side"],
        places: tuple[Ints, npt.NDArray[np.bool_]],
    ) -> None:
        """Writes the events of every token that begins where one of the teacher's begins."""
        (theirs, ours), (at_T, is_same_T) = sides, places
        num_labels, num_rows = len(made.tail_T), len(signal.tail_T)
        tokens_N = np.flatnonzero((is_same_T & (at_T < num_rows))[:num_labels])
        rows_N = at_T[tokens_N]
        ids_NK = np.minimum(signal.ids_TK[rows_N], len(self.teacher.spelled))
        ranges_NK2 = self._ranges(ids_NK)
        if len(tokens_N) and tokens_N[0] == 0 and (theirs.has_lead or ours.has_lead):
            ranges_NK2[0] = [self._first(i, theirs.has_lead, ours.has_lead) for i in ids_NK[0]]
        is_target_NK = ids_NK == signal.target_ids_T[rows_N][:, None]
        for n, k in np.argwhere(is_target_NK):
            token, place = int(tokens_N[n]), int(rows_N[n])
            if token < len(ours.parts) and place < len(theirs.parts):
                own, other = ours.parts[token], theirs.parts[place]
                if place == 0 and theirs.has_lead:
                    other = other[1:]
                if token == 0 and ours.has_lead:
                    other = b" " + other
                ranges_NK2[n, k] = self._range(min(own, other, key=len))
        merged = _merged(ranges_NK2, signal.logprobs_TK[rows_N], signal.tail_T[rows_N])
        made.first_TK[tokens_N], made.end_TK[tokens_N] = merged[0], merged[1]
        made.logprobs_TK[tokens_N], made.tail_T[tokens_N] = merged[2], merged[3]

    def _ranges(self, ids_NK: Ints) -> Ints:
        """Returns the range of ranks of each of the teacher's ids, (N, K, 2)."""
        for index in np.unique(ids_NK[self._ranges_V2[ids_NK, 0] < 0]).tolist():
            event = self.student.longest(self.teacher.spelled[index] or b"")
            self._ranges_V2[index] = self._range(event)
        ranges_NK2: Ints = self._ranges_V2[ids_NK]
        return ranges_NK2

    def _first(self, index: int, strips: bool, adds: bool) -> tuple[int, int]:
        """Returns the range of an id at the start of a text, where a space may be no part of it."""
        own = self.teacher.spelled[index] if index < len(self.teacher.spelled) else None
        if own is None or index in self.teacher.ends:
            first, end = self._ranges_V2[index]
            return int(first), int(end)
        own = own[1:] if strips and own.startswith(b" ") else own
        return self._range(self.student.longest(b" " + own if adds else own))

    def _chunk(
        self,
        made: TranslatedSignal,
        signal: Signal,
        sides: tuple["_Side", "_Side"],
        places: tuple[Ints, npt.NDArray[np.bool_]],
    ) -> None:
        """Writes where chunks end, and the teacher's surprisal of each."""
        (theirs, ours), (at_T, is_same_T) = sides, places
        total_S = np.concatenate([[0.0], np.cumsum(signal.target_logprobs_T, dtype=np.float64)])
        num_text = len(ours.parts)
        begins_S = np.where(
            self._begins_V[np.minimum(signal.ids_TK, len(self.teacher.spelled))],
            np.exp(signal.logprobs_TK),
            0,
        ).sum(axis=1)
        first = number = 0
        is_whole = True
        for token in range(num_text):
            number, after = number + 1, token + 1
            is_last, is_common = after == num_text, is_same_T[after] and ours.starts[after] > 0
            place = len(theirs.parts) if is_last else int(at_T[after])
            begins = is_last or number >= JOINED_TOKENS or begins_S[place] > BOUNDARY
            if is_common and begins:
                made.ends_T[token] = True
                if is_whole:
                    made.surprisal_T[token] = total_S[first] - total_S[place]
                first, number, is_whole = place, 0, True
            elif number == LONGEST_TOKENS:  # this bounds what is in memory at once
                made.ends_T[token] = True
                number, is_whole = 0, False
        if len(made.tail_T) > num_text:  # its end token
            made.ends_T[num_text] = True
            if len(signal.tail_T) > len(theirs.parts):
                made.surprisal_T[num_text] = -signal.target_logprobs_T[-1]
        made.ends_T[-1:] = True


@dataclass(frozen=True)
class OtherTokens:
    """What a live teacher with another tokenizer needs: the training items in its own tokens, each
    with the text of its answer, by id; and the way back."""

    translator: Translator
    rows: dict[str, tuple[EncodedRow, str]]


@dataclass(frozen=True)
class _Side:
    """An answer's tokens without the one that ends it: their bytes, and where each begins.

    `starts` has one more, the length of the text. With `has_lead` the first token begins with a
    space that is no part of the text.
    """

    parts: list[bytes]
    starts: Ints
    has_lead: bool

    @classmethod
    def of(cls, table: TokenBytes, ids: Sequence[int], text: str) -> "_Side | None":
        """Returns the side of an answer; None where its tokens do not spell the text."""
        parts = table.of(ids[:-1] if ids and ids[-1] in table.ends else ids)
        has_lead = None if parts is None else without_lead(parts, text)
        if parts is None or has_lead is None:
            return None
        starts = np.cumsum([0, *map(len, parts)]) - has_lead
        return cls(parts, np.maximum(starts, 0).astype(np.int32), has_lead)


def _begins(spelled: bytes | None) -> bool:
    """Whether a token begins a new word: with anything but a letter, a digit or a mark of them."""
    return bool(spelled) and spelled[0] < 128 and not chr(spelled[0]).isalnum()


def _merged(
    ranges_NK2: Ints, logprobs_NK: Floats, tail_N: Floats
) -> tuple[Ints, Ints, Floats, Floats]:
    """Returns events of which none contains another, each with the mass of all in it, and the tail.

    Two ranges of prefixes are apart, or one contains the other. What has no range is tail.
    """
    first_NK, end_NK = ranges_NK2[..., 0].astype(np.int64), ranges_NK2[..., 1].astype(np.int64)
    is_none_NK = first_NK >= end_NK
    widest = int(end_NK.max(initial=0)) + 1
    keys_NK = np.where(is_none_NK, widest * (widest + 1), first_NK * widest + (widest - end_NK))
    order_NK = np.argsort(keys_NK, axis=1, kind="stable")
    first_NK, end_NK, is_none_NK, mass_NK = (
        np.take_along_axis(x, order_NK, axis=1)
        for x in (first_NK, end_NK, is_none_NK, np.exp(logprobs_NK.astype(np.float64)))
    )
    reach_NK = np.maximum.accumulate(np.where(is_none_NK, 0, end_NK), axis=1)
    before_NK = np.concatenate([np.zeros_like(reach_NK[:, :1]) - 1, reach_NK[:, :-1]], axis=1)
    is_new_NK = ~is_none_NK & (first_NK >= before_NK)
    event_NK = np.maximum(np.cumsum(is_new_NK, axis=1) - 1, 0)
    rows_NK = np.broadcast_to(np.arange(len(mass_NK))[:, None], mass_NK.shape)
    sums_NK = np.zeros_like(mass_NK)
    np.add.at(sums_NK, (rows_NK, event_NK), np.where(is_none_NK, 0, mass_NK))
    dropped_N = np.where(is_none_NK, mass_NK, 0).sum(axis=1)
    made_first_NK, made_end_NK = np.zeros_like(first_NK), np.zeros_like(first_NK)
    at = rows_NK[is_new_NK], event_NK[is_new_NK]
    made_first_NK[at], made_end_NK[at] = first_NK[is_new_NK], end_NK[is_new_NK]
    with np.errstate(divide="ignore"):
        return (
            made_first_NK.astype(np.int32),
            made_end_NK.astype(np.int32),
            np.log(sums_NK).astype(np.float32),
            np.log(np.exp(tail_N.astype(np.float64)) + dropped_N).astype(np.float32),
        )
