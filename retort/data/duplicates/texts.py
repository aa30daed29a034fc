"""The words of many texts as hashes: four bytes for each word, and a few hashes for each text.

In sequences a word has 31 bits, so that two different words are equal at a chance of one in two
billion; whole texts, their numbers and their scopes are compared by 64 bits.
"""

# T tokens, W words, N texts
from array import array
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retort.data.duplicates.words import (
    BRACKET,
    BREAK,
    CHARACTER,
    KIND_BITS,
    LINE,
    NAME,
    NEGATION,
    NUMBER,
    OPERATOR,
    WORD,
    Pieces,
    hash64,
)

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
MAX_PENDING = 4096  # texts
MAX_PENDING_CHARS = 1 << 22
MAX_SCOPES = 1 << 16
# What a word may be where two texts that differ in it are compared; 0 for any other.
CONTENT, A_NAME, A_CHARACTER = 1, 2, 3
# The type of each column in an `array`, which grows in place.
TYPES = {
    "words": "I",
    "kinds": "B",
    "starts": "Q",
    "lines": "Q",
    "wholes": "Q",
    "marks": "Q",
    "scopes": "Q",
    "answers": "Q",
    "numbers": "Q",
    "negations": "B",
}


class TextColumns(NamedTuple):
    """N texts: their W words, where texts and lines of them start, and hashes of each text.

    Texts are equal if `wholes` are, have the same numbers and operators in the same order if
    `marks` are, and the same scope or answer if `scopes` or `answers` are (0: no answer). `numbers`
    has a bit for each number in a text; `negations` counts its words such as "not".
    """

    words: npt.NDArray[np.uint32]  # the lowest bit: is a number
    kinds: npt.NDArray[np.uint8]  # of each word: CONTENT, A_NAME, A_CHARACTER or 0
    starts: U64  # N + 1
    lines: U64
    wholes: U64
    marks: U64
    scopes: U64
    answers: U64
    numbers: U64
    negations: npt.NDArray[np.uint8]


class Texts:
    """Word sequences of many texts, in the order they were added."""

    def __init__(self) -> None:
        self._pieces = Pieces()
        self._scopes: dict[str, int] = {}
        self._pending: list[str] = []
        self._num_chars = 0
        self._columns: dict[str, array[int]] = {name: array(code) for name, code in TYPES.items()}
        self._columns["starts"].append(0)

    def add(self, text: str, scope: str = "", answer: str | None = None) -> None:
        """Adds a text; `scope` is the rest of the question, such as the system prompt."""
        self._pending.append(text)
        self._num_chars += len(text)
        if scope not in self._scopes:
            if len(self._scopes) >= MAX_SCOPES:
                self._scopes.clear()
            self._scopes[scope] = hash64(scope)
        self._columns["scopes"].append(self._scopes[scope])
        known = 0 if answer is None else hash64(" ".join(answer.casefold().split()))
        self._columns["answers"].append(known)
        if len(self._pending) >= MAX_PENDING or self._num_chars >= MAX_PENDING_CHARS:
            self._store()

    def __len__(self) -> int:
        return len(self._columns["scopes"])

    def columns(self) -> TextColumns:
        """Returns all texts; no text can be added while one of the arrays is in use."""
        self._store()
        return TextColumns(
            **{
                name: np.frombuffer(held, dtype=held.typecode)
                for name, held in self._columns.items()
            }
        )

    def _store(self) -> None:
        if not self._pending:
            return
        find = self._pieces.__getitem__
        rows = []
        for text in self._pending:
            split = text.replace("\n", f" {BREAK} ") if "\n" in text else text
            rows.append(b"".join(map(find, split.split())))
        tokens_T = np.frombuffer(b"".join(rows), dtype="<u8").astype(np.uint64, copy=False)
        counts_N = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // 8
        made = _columns(tokens_T, counts_N)
        for row in np.flatnonzero(np.diff(made["starts"], prepend=0) == 0).tolist():
            # A text without words is compared by its punctuation.
            made["wholes"][row] = hash64("".join(self._pending[row].split()))
        done = len(self._columns["words"])
        for name in ("starts", "lines"):
            made[name] += np.uint64(done)
        for name, column in made.items():
            self._columns[name].frombytes(column.tobytes())
        self._pending, self._num_chars = [], 0
        self._pieces.trim()


def _columns(tokens_T: U64, counts_N: I64) -> dict[str, npt.NDArray[Any]]:
    """Returns the columns of texts with these numbers of tokens; `starts` lacks its first 0."""
    num_texts = len(counts_N)
    kinds_T = (tokens_T & np.uint64((1 << KIND_BITS) - 1)).astype(np.uint8)
    text_T = np.repeat(np.arange(num_texts), counts_N)
    is_word_T = kinds_T < BRACKET
    # A capital changes no word.
    tokens_T = np.where(kinds_T == NAME, tokens_T - np.uint64(NAME - WORD), tokens_T)
    words_W, kinds_W, text_W = tokens_T[is_word_T], kinds_T[is_word_T], text_T[is_word_T]
    ends_N = np.cumsum(np.bincount(text_W, minlength=num_texts))
    starts_N = np.concatenate([[0], ends_N[:-1]])
    before_T: I64 = np.cumsum(is_word_T) - is_word_T  # words
    is_mark_T = (kinds_T == NUMBER) | (kinds_T == OPERATOR)
    marks_before_T = np.cumsum(is_mark_T) - is_mark_T
    first_mark_N = np.concatenate([[0], np.cumsum(is_mark_T)])[np.cumsum(counts_N) - counts_N]

    def ordered(at: I64, places: I64) -> U64:
        return ordered_sums(tokens_T[at], places, np.bincount(text_T[at], minlength=num_texts))

    word_at, mark_at = np.flatnonzero(is_word_T), np.flatnonzero(is_mark_T)
    wholes_N = ordered(word_at, np.arange(len(words_W)) - starts_N[text_W])
    marks_N = ordered(mark_at, np.arange(len(mark_at)) - first_mark_N[text_T[mark_at]])
    # Brackets are punctuation, except in a calculation.
    calculates_N = np.bincount(text_W[kinds_W == OPERATOR], minlength=num_texts) > 0
    at = np.flatnonzero(kinds_T == BRACKET)
    at = at[calculates_N[text_T[at]]]
    wholes_N += ordered(at, before_T[at] - starts_N[text_T[at]])
    marks_N += ordered(at, marks_before_T[at] - first_mark_N[text_T[at]])
    lines = np.concatenate([starts_N[starts_N < ends_N], before_T[kinds_T == LINE]])
    is_number_W = kinds_W == NUMBER
    negations_N = np.bincount(text_W[kinds_W == NEGATION], minlength=num_texts)
    return {
        "words": (words_W >> np.uint64(33) << np.uint64(1) | is_number_W).astype(np.uint32),
        "kinds": _kinds(kinds_T, text_T, num_texts)[is_word_T],
        "starts": ends_N.astype(np.uint64),
        "lines": np.unique(lines[lines < len(words_W)]).astype(np.uint64),
        "wholes": wholes_N,
        "marks": marks_N,
        "numbers": _bits(words_W[is_number_W], text_W[is_number_W], num_texts),
        "negations": np.minimum(negations_N, 255).astype(np.uint8),
    }


def _kinds(kinds_T: npt.NDArray[np.uint8], text_T: I64, num_texts: int) -> npt.NDArray[np.uint8]:
    """Returns what each token is where texts are compared; names only where a capital tells one.

    It tells none at the start of a sentence, nor where most words have one.
    """
    found = np.zeros(len(kinds_T), dtype=np.uint8)
    found[(kinds_T == WORD) | (kinds_T == NAME)] = CONTENT
    found[kinds_T == CHARACTER] = A_CHARACTER
    follows = np.zeros(len(kinds_T), dtype=np.bool_)
    follows[1:] = (text_T[1:] == text_T[:-1]) & (kinds_T[:-1] <= BRACKET)
    is_capital = (kinds_T == NAME) & follows
    num_capitals = np.bincount(text_T[is_capital], minlength=num_texts)
    num_words = np.bincount(text_T[kinds_T < BRACKET], minlength=num_texts)
    found[is_capital & (2 * num_capitals <= num_words)[text_T]] = A_NAME
    return found


def _bits(numbers: U64, groups: I64, num_groups: int) -> U64:
    """Returns for each group 64 bits, one of them set for each number in it; groups ascend."""
    found = np.zeros(num_groups, dtype=np.uint64)
    present, first = np.unique(groups, return_index=True)
    if len(present):
        bits = np.uint64(1) << (numbers >> np.uint64(KIND_BITS) & np.uint64(63))
        found[present] = np.bitwise_or.reduceat(bits, first)
    return found


def mixed(values: U64) -> U64:
    """Returns hashes of 64-bit values (the last steps of splitmix64)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def ordered_sums(values: U64, places: I64, counts: I64) -> U64:
    """Returns a hash of each run of values, which depends on their order; `places` count in it."""
    factors = mixed(places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    totals = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * factors)])
    ends = np.cumsum(counts)
    sums: U64 = totals[ends] - totals[ends - counts]
    return sums
