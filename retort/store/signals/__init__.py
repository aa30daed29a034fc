"""Signals: the teacher's stored distribution per generated token, and the files that hold them.

Row t of a signal belongs to the t-th *generated* token and says which one (`target_ids[t]`), so
that a shift by one can be noticed. The k largest are stored; what is left is the tail's mass. The
surprise: what is read back is quantized, sums to one, and stands in ascending order of id.
"""

from retort.store.signals.file import SignalFile, pack, repack, unpack
from retort.store.signals.record import StoredTokens
from retort.store.signals.signal import Signal, captured, join, tail_logprob

__all__ = [
    "Signal",
    "SignalFile",
    "StoredTokens",
    "captured",
    "join",
    "pack",
    "repack",
    "tail_logprob",
    "unpack",
]
