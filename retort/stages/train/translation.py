"""A teacher's signal for a student with another tokenizer, by the bytes of one answer.

The teacher's strings become events over the student's vocabulary: "the text goes on with these
bytes", a range of the tokens in the order of their bytes. Where tokens of both begin at the same
byte that is the teacher's distribution there; where the student's begins inside one of the
teacher's, it is the one given the bytes before, of the strings that begin with them, without which
such tokens would be learned by their label alone. Between two common places lies a chunk, which
both spell, each with its own tokens.

**Events.** A string that is a student's token stands for all tokens that begin with it and with no
longer string of the teacher's, for more may follow (`ByteOrder`). Another stands for the longest
token that it begins with, for that is what the student writes; the answer's own, for the student's
label. Where that leaves the label open, being shorter than it or what longer tokens begin with too,
the teacher's distribution at the next place says how it goes on. Events of which one contains
another are one, so that no token is counted twice; of more than k the most probable are kept. What
no token begins with, special tokens, rare and wide events, and what is not stored is tail. It is
approximate in one way: another way to write the same bytes, with a shorter token of the teacher's,
is tail unless that is stored.
**Chunks.** A chunk ends only where the teacher could begin a new word or end, by its stored
strings, for a token inside a word says nothing of the word's other splits (Minixhofer et al. 2025,
arXiv:2503.20083, which merges by the same threshold).
"""

# T tokens of the student, S of the teacher, K teacher top-k
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from retort.data.encoding import EncodedRow
from retort.data.token_bytes import ByteOrder, TokenBytes, without_lead
from retort.stages.train.events import Event, given, largest, merged, widened
from retort.store.signals import Signal
from retort.store.signals.signal import Floats, Ints

# A chunk may end where the teacher's new words and ends have more than this probability.
BOUNDARY = 0.1
# Chunks are not joined beyond the first number of student tokens, nor learned beyond the second.
JOINED_TOKENS, LONGEST_TOKENS = 16, 64
LEAST_TAIL = float(np.log(1e-12))


@dataclass(frozen=True)
class TranslatedSignal:
    """A signal over events, and the chunks; of a row's supervised tokens.

    Event k of token t are the ranks from `first_TK` to before `end_TK` in the student's byte order;
    an empty range has the log-probability -inf. Where the teacher says nothing (not `known_T`) the
    label is the one event, as in its text. `aligned_T` says which tokens begin where one of the
    teacher's does, `ends_T` after which tokens a chunk ends, and `surprisal_T` the teacher's -log p
    of the chunk that ends there, nats, NaN where it is not learned. `order_V` are the student's ids
    by rank.
    """

    first_TK: Ints
    end_TK: Ints
    logprobs_TK: Floats
    tail_T: Floats
    known_T: npt.NDArray[np.bool_]
    aligned_T: npt.NDArray[np.bool_]
    ends_T: npt.NDArray[np.bool_]
    surprisal_T: Floats
    order_V: npt.NDArray[np.int64]

    def part(self, end: int) -> "TranslatedSignal":
        """Returns the signal of the tokens before `end`, as views."""
        columns = {name: column[:end] for name, column in vars(self).items() if name != "order_V"}
        return replace(self, **columns)

    @property
    def num_known(self) -> int:
        """The number of tokens with a distribution."""
        return int(self.known_T.sum())


class Translator:
    """From one teacher's tokens to one student's; keeps what it has looked up."""

    def __init__(self, teacher: TokenBytes, student: ByteOrder):
        self.teacher, self.student = teacher, student
        self._order_V = np.array(student.ids, np.int64)
        self._ranks = {index: rank for rank, index in enumerate(student.ids)}
        self._events: dict[bytes, tuple[int, int]] = {}
        self._wholes: dict[bytes, tuple[int, int]] = {}
        size = len(teacher.spelled)
        # One more row, empty, for ids past the table, which a padded embedding has.
        self._ranges_V2 = np.full((size + 1, 2), -1, np.int32)
        self._ranges_V2[size] = 0
        begins = [i in teacher.ends or _begins(b) for i, b in enumerate(teacher.spelled)]
        self._begins_V = np.array([*begins, False])
        self._ranges_V2[[index for index in teacher.ends if index < size]] = student.ends

    def translate(
        self, rows: Sequence[tuple[EncodedRow, Signal | None, str]], k: int | None = None
    ) -> tuple[list[TranslatedSignal], Counter[str]]:
        """Returns the signal of each row, with the text of its answer, and why some have none.

        `k` is the number of events, by default that of the signals' ids.
        """
        widths = (signal.ids_TK.shape[1] for _, signal, _ in rows if signal is not None)
        k = k or next(widths, 1)
        reasons: Counter[str] = Counter()
        made = []
        for row, signal, text in rows:
            made.append(self.nothing(row.labels[row.first :], k))
            sides = self._sides(row, signal, text)
            if isinstance(sides, str):
                reasons[sides] += 1
                continue
            assert signal is not None
            # Of tokens that begin at one byte the last counts: those before it spell nothing.
            at_T = np.searchsorted(sides[0].starts, sides[1].starts, side="right") - 1
            places = at_T.astype(np.int32), sides[0].starts[at_T] == sides[1].starts
            self._fill(made[-1], signal, sides, places)
            self._chunk(made[-1], signal, sides, places)
        return made, reasons

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

    def _event(self, text: bytes, own: bytes | None = None) -> tuple[int, int]:
        """Returns the ranks of the tokens with which the student goes on, where the text does so
        with `text`: all that begin with it, where it is a token; else the longest one within it,
        or `own`, which the student is known to write."""
        if own is not None and len(own) < len(text):
            return self._whole(own)
        event = self._events.get(text)
        if event is None:
            token = self.student.longest(text)
            event = self.student.range_of(token, whole=token != text) if token else (0, 0)
            self._events[text] = event
        return event

    def _whole(self, token: bytes) -> tuple[int, int]:
        """Returns the ranks of the tokens that are these bytes."""
        if token not in self._wholes:
            self._wholes[token] = self.student.range_of(token, whole=True)
        return self._wholes[token]

    def nothing(self, labels: Sequence[int], k: int) -> TranslatedSignal:
        """Returns the signal of labels of which the teacher says nothing: that they are right."""
        num_tokens = len(labels)
        ends_T, is_ranked_T = np.zeros(num_tokens, np.bool_), np.zeros(num_tokens, np.bool_)
        ends_T[-1:] = True
        first_TK, end_TK = (np.zeros((num_tokens, k), np.int32) for _ in range(2))
        logprobs_TK = np.full((num_tokens, k), -np.inf, np.float32)
        for token, label in enumerate(labels):
            rank = self._ranks.get(label)
            if rank is not None:
                first_TK[token, 0], end_TK[token, 0], logprobs_TK[token, 0] = rank, rank + 1, 0
                is_ranked_T[token] = True
        return TranslatedSignal(
            first_TK,
            end_TK,
            logprobs_TK,
            np.where(is_ranked_T, LEAST_TAIL, 0).astype(np.float32),
            np.zeros(num_tokens, np.bool_),
            np.zeros(num_tokens, np.bool_),
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
        """Writes the events of every token."""
        (theirs, ours), (at_T, is_same_T) = sides, places
        at_T, is_same_T = at_T[: len(made.tail_T)], is_same_T[: len(made.tail_T)]
        tokens_N = np.flatnonzero(at_T < len(signal.tail_T))
        rows_N = at_T[tokens_N]
        ids_NK = np.minimum(signal.ids_TK[rows_N], len(self.teacher.spelled))
        logprobs_NK, ranges_NK2 = signal.logprobs_TK[rows_N], self._ranges(ids_NK)
        if len(tokens_N) and tokens_N[0] == 0 and (theirs.has_lead or ours.has_lead):
            ranges_NK2[0] = [self._first(i, theirs.has_lead, ours.has_lead) for i in ids_NK[0]]
        for n in np.flatnonzero(~is_same_T[tokens_N]).tolist():
            known = theirs.starts[rows_N[n]], ours.starts[tokens_N[n]]
            inside = theirs.text(rows_N[n])[: known[1] - known[0]]
            strips = bool(rows_N[n] == 0 and theirs.has_lead)
            ranges_NK2[n], goes_on_K = self._inside(ids_NK[n], inside, strips)
            logprobs_NK[n] = given(logprobs_NK[n], goes_on_K, signal.tail_T[rows_N[n]])
        further: dict[int, list[Event]] = {}
        is_target_NK = ids_NK == signal.target_ids_T[rows_N][:, None]
        for n, k in np.argwhere(is_target_NK).tolist():
            token, place = int(tokens_N[n]), int(rows_N[n])
            if token < len(ours.parts) and place < len(theirs.parts):
                own, other = ours.parts[token], theirs.text(place)
                other = other[ours.starts[token] - theirs.starts[place] :]
                if token == 0 and ours.has_lead:
                    other = b" " + other
                if self._is_open(other, own) and place + 1 < len(signal.tail_T):
                    begun = (other, float(logprobs_NK[n, k]), place + 1)
                    further[n] = self._further(begun, own, signal, theirs)
                    ranges_NK2[n, k], logprobs_NK[n, k] = 0, -np.inf
                else:
                    ranges_NK2[n, k] = self._event(other, own)
        events = merged(*widened(ranges_NK2, logprobs_NK, further), signal.tail_T[rows_N])
        events = largest(*events, signal.ids_TK.shape[1])
        made.aligned_T[tokens_N] = is_same_T[tokens_N]
        is_known_N = (events[0] < events[1]).any(axis=1)
        known_N = tokens_N[is_known_N]
        columns = (made.first_TK, made.end_TK, made.logprobs_TK, made.tail_T)
        for column, values in zip(columns, events, strict=True):
            column[known_N] = values[is_known_N]
        made.known_T[known_N] = True

    def _inside(
        self, ids_K: Ints, inside: bytes, strips: bool
    ) -> tuple[list[tuple[int, int]], list[bool]]:
        """Returns the ranges of what is left of each string after its first bytes, and which
        strings begin with these; `strips`: without the space before a text."""
        strings = [self._spelled(index) for index in ids_K.tolist()]
        if strips:
            strings = [b[1:] if b and b.startswith(b" ") else b for b in strings]
        rest = [b[len(inside) :] if b and b.startswith(inside) else None for b in strings]
        return [self._event(b or b"") for b in rest], [b is not None for b in rest]

    def _further(
        self, begun: tuple[bytes, float, int], own: bytes, signal: Signal, theirs: "_Side"
    ) -> list[Event]:
        """Returns the events of a label that the teacher's string leaves open.

        `begun` are the string, its log-probability and the place after it, whose distribution says
        how the text goes on; and so on until the label and all that it begins are told apart.
        """
        events: list[Event] = []
        said, logprob, place = begun
        while place < len(signal.tail_T):
            target, begun_logprob = int(signal.target_ids_T[place]), None
            events.append((0, 0, logprob + float(signal.tail_T[place])))
            row = zip(
                signal.ids_TK[place].tolist(), signal.logprobs_TK[place].tolist(), strict=True
            )
            for index, more in row:
                spelled = self._spelled(index)
                if index in self.teacher.ends:
                    events.append((*self._whole(self.student.longest(said)), logprob + more))
                elif spelled is None:
                    events.append((0, 0, logprob + more))
                elif index == target and self._is_open(said + spelled, own):
                    begun_logprob = logprob + more
                else:
                    known = own if index == target else None
                    events.append((*self._event(said + spelled, known), logprob + more))
            if begun_logprob is None:
                return events
            said, logprob, place = said + theirs.text(place), begun_logprob, place + 1
        return [*events, (*self._event(said), logprob)]

    def _is_open(self, said: bytes, own: bytes) -> bool:
        """Whether what the teacher said leaves open if the student goes on with its label: it is
        shorter, or it is the label, with which longer tokens begin, too."""
        if len(said) != len(own):
            return len(said) < len(own)
        return self._event(own) != self._whole(own)

    def _spelled(self, index: int) -> bytes | None:
        """Returns what an id spells; None for an end token and for one that the table lacks."""
        is_known = index < len(self.teacher.spelled) and index not in self.teacher.ends
        return self.teacher.spelled[index] if is_known else None

    def _ranges(self, ids_NK: Ints) -> Ints:
        """Returns the range of ranks of each of the teacher's ids, (N, K, 2)."""
        for index in np.unique(ids_NK[self._ranges_V2[ids_NK, 0] < 0]).tolist():
            self._ranges_V2[index] = self._event(self._spelled(index) or b"")
        ranges_NK2: Ints = self._ranges_V2[ids_NK]
        return ranges_NK2

    def _first(self, index: int, strips: bool, adds: bool) -> tuple[int, int]:
        """Returns the range of an id at the start of a text, where a space may be no part of it."""
        own = self._spelled(index)
        if own is None:
            first, end = self._ranges_V2[index]
            return int(first), int(end)
        own = own[1:] if strips and own.startswith(b" ") else own
        return self._event(b" " + own if adds else own)

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

    def text(self, place: int) -> bytes:
        """Returns what a token adds to the text."""
        return self.parts[place][1:] if place == 0 and self.has_lead else self.parts[place]

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
    return spelled is not None and spelled[:1].isascii() and not spelled[:1].isalnum()
