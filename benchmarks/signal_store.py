"""Measures the signal format: bytes a token, KL error, and tokens a second of one core.

`python -m benchmarks.signal_store` compares it with arrays of float16 and int32, and with JSON.
"""

# T tokens, K teacher top-k, V vocabulary
import io
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import orjson

from benchmarks import Measure, show
from retort.store.signals import Signal, captured, pack, unpack
from retort.store.signals.signal import cut, joined

VOCABULARY = 151936  # Qwen3's
ROW_TOKENS = 128
NUM_TOKENS = {"retort": 1 << 17, "float16 + int32": 1 << 17, "JSON": 1 << 13}
MOST_BYTES = {16: 56, 50: 127}
Rows = list[tuple[str, Signal]]


class Format(NamedTuple):
    """A way to store rows of signals."""

    name: str
    write: Callable[[Rows], bytes]
    read: Callable[[bytes], dict[str, Signal]]


def realistic(num_tokens: int, k: int, vocabulary: int, seed: int = 0) -> Signal:
    """Returns sampled tokens of softmaxes of heavy-tailed logits, from nearly certain to open."""
    random = np.random.default_rng(seed)
    tokens = []
    for _ in range(num_tokens):
        logits_V = random.standard_normal(vocabulary, dtype=np.float32)
        logits_V *= np.abs(logits_V) * np.float32(random.choice([0.6, 1.0, 1.5, 2.5]))
        top = np.argpartition(-logits_V, k)[: k + 1]
        top = top[np.argsort(-logits_V[top])]
        tokens.append((top, logits_V[top] - np.log(np.exp(logits_V.astype(np.float64)).sum())))
    ids, logprobs = (np.stack(parts) for parts in zip(*tokens, strict=True))
    # The place of the sampled token; outside the k it is that of the next one.
    place = (np.exp(logprobs[:, :k]).cumsum(axis=1) < random.random((num_tokens, 1))).sum(axis=1)
    every = np.arange(num_tokens)
    return captured(
        ids[:, :k].astype(np.int32),
        logprobs[:, :k].astype(np.float32),
        ids[every, place].astype(np.int32),
        logprobs[every, place].astype(np.float32),
    )


def write_arrays(rows: Rows) -> bytes:
    """Returns ids as int32 and log-probabilities as float16, in an npz file."""
    stream = io.BytesIO()
    parts = vars(joined(signal for _, signal in rows))
    np.savez(
        stream,
        names=np.array([row_id for row_id, _ in rows]),
        lengths=np.array([len(signal.tail_T) for _, signal in rows]),
        **{name: part if "ids" in name else part.astype("f2") for name, part in parts.items()},
    )
    return stream.getvalue()


def read_arrays(data: bytes) -> dict[str, Signal]:
    """Returns the signals of `write_arrays`."""
    with np.load(io.BytesIO(data)) as stored:
        names, lengths, *parts = (stored[name] for name in stored.files)
    whole = Signal(*(part.astype("f4") if part.dtype == "f2" else part for part in parts))
    ends = np.cumsum(lengths)
    return {
        str(name): cut(whole, end - length, end)
        for name, length, end in zip(names, lengths, ends, strict=True)
    }


def write_json(rows: Rows) -> bytes:
    """Returns JSON lines: of each token its id, its log-probability, and a map of the k."""
    return b"\n".join(orjson.dumps([row_id, _tokens(signal)]) for row_id, signal in rows)


def _tokens(signal: Signal) -> list[dict[str, Any]]:
    columns = (part.tolist() for part in vars(signal).values())
    return [
        {
            "id": target,
            "logprob": logprob,
            "top": dict(zip(map(str, ids), logprobs, strict=True)),
        }
        for ids, logprobs, target, logprob, _ in zip(*columns, strict=True)
    ]


def read_json(data: bytes) -> dict[str, Signal]:
    """Returns the signals of `write_json`."""
    found = {}
    for line in data.split(b"\n"):
        row_id, tokens = orjson.loads(line)
        found[row_id] = captured(
            np.array([list(map(int, token["top"])) for token in tokens], dtype=np.int32),
            np.array([list(token["top"].values()) for token in tokens], dtype=np.float32),
            np.array([token["id"] for token in tokens], dtype=np.int32),
            np.array([token["logprob"] for token in tokens], dtype=np.float32),
        )
    return found


FORMATS = [
    Format("retort", lambda rows: pack(rows, VOCABULARY), unpack),
    Format("float16 + int32", write_arrays, read_arrays),
    Format("JSON", write_json, read_json),
]


def kl(first: Signal, second: Signal) -> float:
    """Returns the mean over tokens of KL(first || second), of the k and the tail, in nats."""
    before, after = (
        np.concatenate(
            [np.take_along_axis(s.logprobs_TK, s.ids_TK.argsort(1), 1), s.tail_T[:, None]], axis=1
        ).astype(np.float64)
        for s in (first, second)
    )
    before -= np.logaddexp.reduce(before, axis=1, keepdims=True)
    after -= np.logaddexp.reduce(after, axis=1, keepdims=True)
    return float((np.exp(before) * (before - after)).sum(axis=1).mean())


def best_seconds(function: Callable[[], Any], times: int = 5) -> float:
    """Returns the least time of several calls."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return min(taken)


def measure(form: Format, rows: Rows) -> tuple[float, float, float, float]:
    """Returns bytes a token, mean KL, and tokens a second written and read."""
    num_tokens = sum(len(signal.tail_T) for _, signal in rows)
    data = form.write(rows)
    error = kl(joined(s for _, s in rows[:32]), joined(list(form.read(data).values())[:32]))
    written = num_tokens / best_seconds(lambda: form.write(rows))
    return (
        len(data) / num_tokens,
        error,
        written,
        num_tokens / best_seconds(lambda: form.read(data)),
    )


def main() -> None:
    """Prints a table of the formats, then the measures."""
    measures: list[Measure] = []
    print(f"{'':24} {'bytes/token':>12} {'KL nats':>10} {'write tok/s':>13} {'read tok/s':>13}")
    for k, most in MOST_BYTES.items():
        made = realistic(32 * ROW_TOKENS, k, VOCABULARY)
        distinct = [cut(made, at, at + ROW_TOKENS) for at in range(0, 32 * ROW_TOKENS, ROW_TOKENS)]
        for form in FORMATS:
            num_rows = NUM_TOKENS[form.name] // ROW_TOKENS
            rows = [(f"train-{index:05}", distinct[index % 32]) for index in range(num_rows)]
            size, error, written, read = measure(form, rows)
            print(
                f"{form.name:18} K={k:<3} {size:12.1f} {error:10.1e} {written:13,.0f} {read:13,.0f}"
            )
            if form.name == "retort":
                measures += [
                    (f"signal_store.bytes_per_token_k{k}", size, most, size <= most),
                    (f"signal_store.kl_nats_k{k}", error, 1e-3, error <= 1e-3),
                    (f"signal_store.read_tokens_per_second_k{k}", read, 3e5, read >= 3e5),
                ]
    show(measures)


if __name__ == "__main__":
    main()
