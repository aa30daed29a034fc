"""Signals: the teacher's stored distribution for each generated token, and the files of them.

Row t of a signal belongs to the t-th *generated* token and names it (`target_ids[t]`), so that a
shift by one is noticed. The k largest probabilities are stored; the rest is the tail's mass. Note:
what is read back is quantized, sums to one, and is in ascending order of id.
"""

from retort.store.signals.file import SignalFile, pack, repack, unpack
from retort.store.signals.record import StoredTokens
from retort.store.signals.signal import Signal, captured, cut, join, joined, tail_logprob

__all__ = [
    "Signal",
    "SignalFile",
    "StoredTokens",
    "captured",
    "cut",
    "join",
    "joined",
    "pack",
    "repack",
    "tail_logprob",
    "unpack",
]
