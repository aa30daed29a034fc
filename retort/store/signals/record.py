"""A token's distribution as a record of fixed size: 48 bytes at k = 16, 124 at k = 50, V = 152k.

A record holds five fields of unsigned integers. For a vocabulary of V tokens let l = floor(log2(V
// k)), and b = 8 for k <= 32, 6 above:
1. `low`: k of l bits, the low bits of the ids in ascending order;
2. `codes`: k of b bits, the log-probabilities of these ids;
3. `tail`: one of 8 bits, the log-probability of all other ids together;
4. `slot`: one of bit_length(k) bits: which of the k ids is the target, k where it is none of them;
5. `high`: k + ((V - 1) >> l) + 1 of one bit. Of the j-th id (from 0) bit (id >> l) + j is set, no
   other (Elias-Fano: P. Elias, J. ACM 21, 1974, 246-260).

First come the whole bytes: of every field in order, the lowest byte of all its integers, then the
next, w // 8 for w bits. Then the w % 8 bits left over: again of every field in order, the lowest
of all its integers, then the next; packed into bytes from the lowest bit up, zeros at the end.

Code c of b bits stands for the ratio r of a probability to the largest of the token's k + 1, with
(1 - r^(1/6)) / (1 - exp(-30/6)) = c / (2^b - 1); the nearest is stored, and r < exp(-30) counts as
exp(-30). Reading divides the k + 1 ratios by their sum, so that no probability is stored twice.
**The error:** log r is off by no more than -6 * log(1 - r^(-1/6) / (2^(b+1) - 2)). For k <= 32 that
is 0.012 at r = 1, 0.026 at r = 0.01 and 0.055 at r = 0.0001; above, 0.048, 0.10 and 0.23.
`python -m benchmarks.signal_store` measures the mean KL of the stored from the captured.
"""

# T tokens, K teacher top-k, R bytes of a record, N integers of a field, H integers of `high`
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retort.errors import DataError
from retort.store.signals.signal import Floats, Ints, Signal, cut, joined

ROOT = 6.0  # larger favours small ratios; of 3 to 8, 4 and 6 gave the least mean KL
DEEPEST = 30.0
TAIL_BITS = 8
CHUNK = 2048  # tokens coded at a time, so that the arrays stay in the processor's cache
Bytes = npt.NDArray[np.uint8]
BitField = tuple[int, int]  # number of integers, bits of each


class StoredTokens(NamedTuple):
    """Tokens as they are stored: their records, and the targets that are outside the top k."""

    records_TR: Bytes
    outside_ids: Ints
    outside_logprobs: npt.NDArray[np.float16]


class RecordLayout:
    """The records of one k and vocabulary."""

    def __init__(self, k: int, vocabulary: int):
        if not 0 < vocabulary <= 1 << 24:
            raise ValueError(f"a vocabulary of {vocabulary}; from 1 to {1 << 24} can be stored")
        self.k, self.vocabulary = k, vocabulary
        self.low_bits = max(vocabulary // max(k, 1), 1).bit_length() - 1
        self.code_bits = 8 if k <= 32 else 6
        self.num_high = k + ((vocabulary - 1) >> self.low_bits) + 1
        self.fields: list[BitField] = [
            (k, self.low_bits),
            (k, self.code_bits),
            (1, TAIL_BITS),
            (1, k.bit_length()),
            (self.num_high, 1),
        ]
        num_bits = sum(number * (width % 8) for number, width in self.fields)
        self.num_bytes = _num_whole(self.fields) + (num_bits + 7) // 8
        none = np.zeros((0, self.num_bytes), np.uint8)
        self.empty = StoredTokens(none, np.zeros(0, np.int32), np.zeros(0, np.float16))

    def encode(self, signal: Signal) -> tuple[StoredTokens, npt.NDArray[np.bool_]]:
        """Returns tokens as they are stored, and which of them have a target outside the top k.

        Raises ValueError for an id that the vocabulary does not have, and for NaN.
        """
        for ids in (signal.ids_TK, signal.target_ids_T):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
                raise ValueError(f"ids {ids.min()} to {ids.max()}; there are {self.vocabulary}")
        if np.isnan(signal.logprobs_TK).any() or np.isnan(signal.tail_T).any():
            raise ValueError("a log-probability is not a number")
        starts = range(0, len(signal.tail_T), CHUNK)
        parts = [self._encode(cut(signal, at, at + CHUNK)) for at in starts]
        records_TR = np.concatenate([self.empty.records_TR, *(part[0] for part in parts)])
        outside_T = np.concatenate([np.zeros(0, np.bool_), *(part[1] for part in parts)])
        logprobs = signal.target_logprobs_T[outside_T].astype(np.float16)
        return StoredTokens(records_TR, signal.target_ids_T[outside_T], logprobs), outside_T

    def _encode(self, signal: Signal) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        num_tokens, k, bits = len(signal.tail_T), self.k, self.code_bits
        top_T = np.maximum(signal.logprobs_TK.max(axis=1, initial=-np.inf), signal.tail_T)
        codes_TK = _codes(signal.logprobs_TK - top_T[:, None], bits)
        # One sort puts the ids in order and takes the codes along.
        keys_TK = np.sort((signal.ids_TK.astype(np.uint32) << bits) | codes_TK, axis=1)
        ids_TK = keys_TK >> bits
        slot_T = np.full(num_tokens, k, dtype=np.uint32)
        at = np.flatnonzero(ids_TK == signal.target_ids_T.astype(np.uint32)[:, None])
        slot_T[at // max(k, 1)] = at % max(k, 1)
        high_TH = np.zeros((num_tokens, self.num_high), dtype=np.uint8)
        high_TH.ravel()[(ids_TK >> self.low_bits) + self._origin(num_tokens)] = 1
        tail_T = _codes(signal.tail_T - top_T, TAIL_BITS)
        values = [ids_TK, keys_TK, tail_T[:, None], slot_T[:, None], high_TH]
        return _join(values, self.fields), slot_T == k

    def decode(self, raw: StoredTokens) -> Signal:
        """Returns stored tokens as a signal. Raises `DataError` for records that are damaged."""
        starts = range(0, max(len(raw.records_TR), 1), CHUNK)
        whole = joined(self._decode(raw.records_TR[at : at + CHUNK]) for at in starts)
        outside_T = whole.target_ids_T < 0
        if np.count_nonzero(outside_T) != len(raw.outside_ids):
            raise DataError("a signal's records are damaged: wrong number of targets outside the k")
        whole.target_ids_T[outside_T] = raw.outside_ids
        whole.target_logprobs_T[outside_T] = raw.outside_logprobs
        return whole

    def _decode(self, records_TR: Bytes) -> Signal:
        """Returns the signal of records; a target outside the top k has the id -1."""
        num_tokens, k = len(records_TR), self.k
        low_TK, codes_TK, tail_T1, slot_T1, high_TH = _split(records_TR, self.fields)
        places = np.flatnonzero(high_TH.view(np.bool_))
        if len(places) != num_tokens * k:
            raise DataError("a signal's records are damaged: wrong number of ids")
        high_TK = places.reshape(num_tokens, k) - self._origin(num_tokens)
        ids_TK = (high_TK.astype(np.int32) << self.low_bits) | low_TK
        logprobs_TK, tail_T = (
            TABLES[self.code_bits].take(codes_TK),
            TABLES[TAIL_BITS].take(tail_T1[:, 0]),
        )
        sum_T = np.log(np.exp(logprobs_TK).sum(axis=1) + np.exp(tail_T))
        logprobs_TK -= sum_T[:, None]
        outside_T1 = slot_T1 == k
        slot_T1[outside_T1] = 0
        target_ids_T1 = np.take_along_axis(ids_TK, slot_T1, axis=1)
        return Signal(
            ids_TK,
            logprobs_TK,
            np.where(outside_T1, -1, target_ids_T1)[:, 0],
            np.take_along_axis(logprobs_TK, slot_T1, axis=1)[:, 0],
            tail_T - sum_T,
        )

    def _origin(self, num_tokens: int) -> npt.NDArray[np.int64]:
        """Returns where in `high` of all tokens the j-th id's bit would be if id >> l were 0."""
        starts_T = np.arange(num_tokens) * self.num_high
        return starts_T[:, None] + np.arange(self.k)


def _codes(log_ratios: Floats, bits: int) -> npt.NDArray[np.uint32]:
    """Returns the nearest code of each logarithm of a ratio."""
    scale = (2**bits - 1) / -math.expm1(-DEEPEST / ROOT)
    roots = np.exp(np.maximum(log_ratios, -DEEPEST) * np.float32(1 / ROOT))
    codes: npt.NDArray[np.uint32] = (np.float32(scale + 0.5) - np.float32(scale) * roots).astype(
        np.uint32
    )
    return codes


def _table(bits: int) -> Floats:
    """Returns the logarithm of each code's ratio."""
    codes = np.arange(2**bits) / (2**bits - 1)
    table: Floats = (ROOT * np.log1p(codes * math.expm1(-DEEPEST / ROOT))).astype(np.float32)
    return table


TABLES = {bits: _table(bits) for bits in (6, 8)}


def _num_whole(fields: list[BitField]) -> int:
    return sum(number * (width // 8) for number, width in fields)


def _join(values: list[npt.NDArray[Any]], fields: list[BitField]) -> Bytes:
    """Returns the records of values (T, N), of each as many low bits as its field has."""
    whole, bits = [], []
    for value_TN, (_, width) in zip(values, fields, strict=True):
        whole += [(value_TN >> 8 * i).astype(np.uint8) for i in range(width // 8)]
        rest_TN = (value_TN >> width // 8 * 8).astype(np.uint8)
        bits += [(rest_TN >> i) & 1 for i in range(width % 8)]
    packed = np.packbits(np.concatenate(bits, axis=1), axis=1, bitorder="little")
    return np.concatenate([*whole, packed], axis=1)


def _split(records_TR: Bytes, fields: list[BitField]) -> list[npt.NDArray[Any]]:
    """Returns the values (T, N) of each field."""
    bits = np.unpackbits(records_TR[:, _num_whole(fields) :], axis=1, bitorder="little")
    values: list[npt.NDArray[Any]] = []
    at_byte = at_bit = 0
    for number, width in fields:
        value_TN: npt.NDArray[Any] = np.zeros((len(records_TR), number), dtype=np.uint8)
        for i in range(width % 8):
            value_TN |= bits[:, at_bit : at_bit + number] << i
            at_bit += number
        if width >= 8:
            value_TN = value_TN.astype(np.int32) << width // 8 * 8
        for i in range(width // 8):
            value_TN |= records_TR[:, at_byte : at_byte + number].astype(np.int32) << 8 * i
            at_byte += number
        values.append(value_TN)
    return values
