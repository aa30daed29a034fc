"""A signal in memory. Its top k are in any order; no id occurs twice."""

# T tokens, K teacher top-k
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Signal:
    """One response's signal, natural logarithms, temperature 1, before any sampling processor.

    `tail_T` is the log-probability of everything outside the top k.
    """

    ids_TK: Ints
    logprobs_TK: Floats
    target_ids_T: Ints
    target_logprobs_T: Floats
    tail_T: Floats


def captured(
    ids_TK: Ints, logprobs_TK: Floats, target_ids_T: Ints, target_logprobs_T: Floats
) -> Signal:
    """Returns the signal of an engine's log-probabilities; the tail is the rest of the mass."""
    tail_T = tail_logprob(logprobs_TK)
    return Signal(ids_TK, logprobs_TK, target_ids_T, target_logprobs_T, tail_T)


def tail_logprob(logprobs_TK: Floats) -> Floats:
    """Returns log(1 - sum exp(logprobs)) along the last axis, at least log(1e-12) (float32)."""
    mass = np.exp(logprobs_TK.astype(np.float64)).sum(axis=-1)
    tail: Floats = np.log(np.clip(1.0 - mass, 1e-12, 1.0)).astype(np.float32)
    return tail


def join(first: Signal, second: Signal) -> Signal:
    """Returns one signal: the tokens of the first, then those of the second."""
    return joined([first, second])


def joined(signals: Iterable[Signal]) -> Signal:
    """Returns one signal of all tokens in order; there is at least one signal."""
    parts = zip(*(vars(signal).values() for signal in signals), strict=True)
    return Signal(*(np.concatenate(part) for part in parts))


def cut(signal: Signal, start: int, end: int) -> Signal:
    """Returns the tokens from `start` to before `end`, as views."""
    return Signal(*(part[start:end] for part in vars(signal).values()))
