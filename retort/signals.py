"""Signals: the teacher's stored distribution per generated token, as log-probabilities.

Row t of a signal belongs to the t-th *generated* token and says which one (`target_ids[t]`), so
that a shift by one can be noticed. The k largest are stored; what is left is the tail's mass.
"""

# T tokens, K teacher top-k, N tokens of a shard
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retort.errors import DataError

FORMAT = 1
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Signal:
    """One response's signal, natural logarithms, temperature 1, before any sampling processor."""

    ids_TK: Ints
    logprobs_TK: Floats
    target_ids_T: Ints
    target_logprobs_T: Floats

    @property
    def tail_T(self) -> Floats:
        """The log-probability of everything outside the top k, per token."""
        return tail_logprob(self.logprobs_TK)


def tail_logprob(logprobs_TK: Floats) -> Floats:
    """Returns log(1 - sum exp(logprobs)) along the last axis, at least log(1e-12) (float32)."""
    mass = np.exp(logprobs_TK.astype(np.float64)).sum(axis=-1)
    tail: Floats = np.log(np.clip(1.0 - mass, 1e-12, 1.0)).astype(np.float32)
    return tail


def pack(signals: list[tuple[str, Signal]]) -> bytes:
    """Returns signals with their example ids as one npz file (format 1, no pickle)."""
    stream = io.BytesIO()
    lengths = np.array([len(signal.target_ids_T) for _, signal in signals], dtype=np.int64)
    np.savez(
        stream,
        format=np.array(FORMAT),
        example_ids=np.array([example_id for example_id, _ in signals], dtype=np.str_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ids_NK=np.concatenate([signal.ids_TK for _, signal in signals]),
        logprobs_NK=np.concatenate([signal.logprobs_TK for _, signal in signals]),
        target_ids_N=np.concatenate([signal.target_ids_T for _, signal in signals]),
        target_logprobs_N=np.concatenate([signal.target_logprobs_T for _, signal in signals]),
    )
    return stream.getvalue()


def unpack(data: bytes) -> dict[str, Signal]:
    """Returns the signals of a file by example id. Raises `DataError` for another format."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        if int(stored["format"]) != FORMAT:
            raise DataError(f"signal format {stored['format']} cannot be read, only {FORMAT}")
        arrays = {name: stored[name] for name in stored.files}
    bounds = arrays["offsets"]
    return {
        str(example_id): Signal(
            arrays["ids_NK"][start:end],
            arrays["logprobs_NK"][start:end],
            arrays["target_ids_N"][start:end],
            arrays["target_logprobs_N"][start:end],
        )
        for example_id, start, end in zip(
            arrays["example_ids"], bounds[:-1], bounds[1:], strict=True
        )
    }
