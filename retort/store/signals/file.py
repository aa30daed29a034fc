"""A file of signals: records behind a table of rows, memory-mapped, sliced without decoding.

**Format 2** is a safetensors file with one entry of metadata (the order of several would not be
fixed, and equal signals must be equal bytes): `signals`, the words `2 K VOCABULARY`; and with
- `records` (tokens, bytes of a record) uint8: one record a token (`record.py`), row after row;
- `rows` (rows, 2) int32: each row's number of tokens, and how many have a target outside their k;
- `names` uint8: the row ids as a JSON list in UTF-8;
- `outside_ids` int32, `outside_logprobs` float16: those targets, in the order of their tokens.
"""

# T tokens, R bytes of a record, S rows
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from safetensors.numpy import save

from retort.errors import DataError
from retort.store.signals.record import RecordLayout, StoredTokens
from retort.store.signals.signal import Signal, cut, joined

FORMAT = "2"
DTYPES = {"U8": np.uint8, "I32": np.int32, "F16": np.float16}
Arrays = dict[str, npt.NDArray[Any]]


def pack(rows: list[tuple[str, Signal]], vocabulary: int) -> bytes:
    """Returns a file of signals under their row ids.

    Raises ValueError for rows of different k, an id that the vocabulary does not have, and NaN.
    """
    if not rows:
        return repack([], 0, vocabulary)
    widths = {signal.ids_TK.shape[1] for _, signal in rows}
    if len(widths) > 1:
        raise ValueError(f"signals of different k cannot share a file: {sorted(widths)}")
    layout = RecordLayout(widths.pop(), vocabulary)
    raw, outside_T = layout.encode(joined(signal for _, signal in rows))
    bounds = np.cumsum([0, *(len(signal.tail_T) for _, signal in rows)])
    outside = np.concatenate([[0], np.cumsum(outside_T)])[bounds]
    counts_S2 = np.stack([np.diff(bounds), np.diff(outside)], axis=1)
    return _file([row_id for row_id, _ in rows], counts_S2, raw, layout)


def repack(rows: list[tuple[str, StoredTokens]], k: int, vocabulary: int) -> bytes:
    """Returns a file of rows copied from other files of this k and vocabulary, not decoded."""
    layout = RecordLayout(k, vocabulary)
    raws = [raw for _, raw in rows]
    counts = [(len(raw.records_TR), len(raw.outside_ids)) for raw in raws]
    counts_S2 = np.array(counts).reshape(-1, 2)
    return _file([row_id for row_id, _ in rows], counts_S2, _stacked(raws, layout), layout)


def unpack(data: bytes) -> dict[str, Signal]:
    """Returns all signals of a file by row id. Raises `DataError` for another format."""
    return SignalFile.open(data).rows()


class SignalFile:
    """A file of signals, read in place: a row is decoded when it is requested."""

    def __init__(self, tensors: Arrays, k: int, vocabulary: int):
        self.k, self.vocabulary = k, vocabulary
        self.ids: list[str] = orjson.loads(tensors["names"].tobytes())
        self._layout = RecordLayout(k, vocabulary)
        names = ("records", "outside_ids", "outside_logprobs")
        self._raw = StoredTokens(*(tensors[name] for name in names))
        # The number of tokens, and of targets outside, before each row; then of all.
        self._bounds = [[0, 0], *np.cumsum(tensors["rows"], axis=0, dtype=np.int64).tolist()]
        self._index = {row_id: index for index, row_id in enumerate(self.ids)}
        num_tokens, num_bytes = self._raw.records_TR.shape
        if (
            len(self._bounds) != len(self.ids) + 1
            or self._bounds[-1] != [num_tokens, len(self._raw.outside_ids)]
            or num_bytes != self._layout.num_bytes
        ):
            raise DataError("its rows and its records do not agree")

    @classmethod
    def open(cls, source: str | Path | bytes) -> "SignalFile":
        """Returns a local file, memory-mapped, or one in memory, used in place.

        Raises `DataError` for another format, and for a file that is damaged or not of signals.
        """
        name = "signals" if isinstance(source, bytes) else str(source)
        try:
            metadata, tensors = _tensors(source)
            found, *sizes = metadata["signals"].split()
            if found == FORMAT:
                k, vocabulary = map(int, sizes)
                return cls(tensors, k, vocabulary)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{name}: damaged, or not a file of signals ({error})") from None
        raise DataError(f"{name}: signal format {found!r} cannot be read, only {FORMAT!r}")

    def tokens(self, row_id: str) -> int:
        """Returns the number of tokens of a row."""
        at = self._index[row_id]
        return int(self._bounds[at + 1][0] - self._bounds[at][0])

    def raw(self, row_id: str) -> StoredTokens:
        """Returns a row as it is stored, for `repack`."""
        at = self._index[row_id]
        (start, first), (end, last) = self._bounds[at : at + 2]
        records_TR, ids, logprobs = self._raw
        return StoredTokens(records_TR[start:end], ids[first:last], logprobs[first:last])

    def row(self, row_id: str) -> Signal:
        """Returns one row decoded."""
        return self._layout.decode(self.raw(row_id))

    def rows(self, row_ids: list[str] | None = None) -> dict[str, Signal]:
        """Returns rows decoded, by id: all, or those named; as views of common arrays."""
        raw, ids = self._raw, self.ids
        if row_ids is not None:
            raw, ids = _stacked([self.raw(row_id) for row_id in row_ids], self._layout), row_ids
        whole = self._layout.decode(raw)
        ends = np.cumsum([self.tokens(row_id) for row_id in ids], dtype=np.int64).tolist()
        spans = zip([0, *ends], ends, strict=False)
        return {row_id: cut(whole, *span) for row_id, span in zip(ids, spans, strict=True)}


def _stacked(raws: list[StoredTokens], layout: RecordLayout) -> StoredTokens:
    """Returns rows as one; the empty row before them gives the shape where there are none."""
    parts = zip(*[layout.empty, *raws], strict=True)
    return StoredTokens(*(np.concatenate(part) for part in parts))


def _file(
    row_ids: list[str], counts_S2: npt.NDArray[Any], raw: StoredTokens, layout: RecordLayout
) -> bytes:
    if len(set(row_ids)) < len(row_ids):
        raise ValueError("two rows of a file of signals have the same id")
    tensors = {
        "records": raw.records_TR,
        "rows": counts_S2.astype(np.int32),
        "names": np.frombuffer(orjson.dumps(row_ids), dtype=np.uint8),
        "outside_ids": raw.outside_ids.astype(np.int32),
        "outside_logprobs": raw.outside_logprobs.astype(np.float16),
    }
    data: bytes = save(tensors, {"signals": f"{FORMAT} {layout.k} {layout.vocabulary}"})
    return data


def _tensors(source: str | Path | bytes) -> tuple[dict[str, str], Arrays]:
    """Returns a safetensors file's metadata and its tensors as views; its own reader copies."""
    if isinstance(source, bytes):
        data = np.frombuffer(source, dtype=np.uint8)
    else:
        data = np.asarray(np.memmap(source, dtype=np.uint8, mode="r"))
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = orjson.loads(data[8:start].tobytes())
    metadata, body = header.pop("__metadata__"), data[start:]
    if max(tensor["data_offsets"][1] for tensor in header.values()) != len(body):
        raise DataError(f"{len(data)} bytes are not its length")
    return metadata, {
        name: body[slice(*tensor["data_offsets"])]
        .view(DTYPES[tensor["dtype"]])
        .reshape(tensor["shape"])
        for name, tensor in header.items()
    }
