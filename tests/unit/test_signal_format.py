"""The signal format: what its documents say, compared with a reader of single bits."""

import math

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from benchmarks.signal_store import kl, realistic
from retort.errors import DataError
from retort.store.signals import Signal, SignalFile, captured, join, pack, repack, unpack
from retort.store.signals.signal import cut, joined

LARGE = 152064


def random_signal(num_tokens: int, k: int, vocabulary: int, seed: int = 0) -> Signal:
    """Random ids in random order, distributions from flat to peaked; some targets are outside."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.choice(vocabulary, k + 1, replace=False) for _ in range(num_tokens)])
    ids[0, :2] = [0, vocabulary - 1] if k > 1 else [vocabulary - 1, 0]
    logits = random.normal(size=(num_tokens, k + 3)) * np.linspace(0, 12, num_tokens)[:, None]
    logprobs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    place = np.where(np.arange(num_tokens) % 4 == 3, k, random.integers(0, k, num_tokens))[:, None]
    return captured(
        ids[:, :k].astype(np.int32),
        logprobs[:, :k].astype(np.float32),
        np.take_along_axis(ids, place, 1)[:, 0].astype(np.int32),
        np.take_along_axis(logprobs, place, 1)[:, 0].astype(np.float32),
    )


def in_order(signal: Signal) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a signal in ascending order, and all its k + 1 log-probabilities."""
    order = np.argsort(signal.ids_TK, axis=1)
    logprobs = np.take_along_axis(signal.logprobs_TK, order, 1)
    every = np.concatenate([logprobs, signal.tail_T[:, None]], axis=1)
    return np.take_along_axis(signal.ids_TK, order, 1), every.astype(np.float64)


def error_of(log_ratio: np.ndarray, k: int) -> np.ndarray:
    """The stated bound, of the k and of the tail."""
    bits = np.append(np.full(k, 8 if k <= 32 else 6), 8)
    return -6 * np.log1p(-np.exp(np.minimum(-log_ratio, 28) / 6) / (2.0 ** (bits + 1) - 2))


def slow_read(record: bytes, k: int, vocabulary: int) -> tuple[list[int], list[float], int]:
    """One record, bit by bit, as the documents say: ids, k + 1 probabilities, slot."""
    low_bits = math.floor(math.log2(vocabulary // k))
    bits = 8 if k <= 32 else 6
    num_high = k + ((vocabulary - 1) >> low_bits) + 1
    fields = [[0] * k, [0] * k, [0], [0], [0] * num_high]
    widths = [low_bits, bits, 8, k.bit_length(), 1]
    data = list(record)
    for field, width in zip(fields, widths, strict=True):
        for i in range(width // 8):
            for j in range(len(field)):
                field[j] += data.pop(0) << (8 * i)
    stream = [(byte >> i) & 1 for byte in data for i in range(8)]
    for field, width in zip(fields, widths, strict=True):
        for i in range(width - width % 8, width):
            for j in range(len(field)):
                field[j] += stream.pop(0) << i
    assert len(stream) < 8
    assert not any(stream)
    low, codes, tail, slot, high = fields
    tops = [place - j for j, place in enumerate(p for p, bit in enumerate(high) if bit)]
    ids = [(top << low_bits) + bottom for top, bottom in zip(tops, low, strict=True)]
    shares = [code / (2**bits - 1) for code in codes] + [tail[0] / 255]
    weights = [(1 - share * (1 - math.exp(-5))) ** 6 for share in shares]
    return ids, [weight / sum(weights) for weight in weights], slot[0]


SHAPES = [
    (1, LARGE),
    (3, 4),
    (16, 70),
    (16, LARGE),
    (32, 4096),
    (50, LARGE),
    (100, LARGE),
    (300, LARGE),
]


@pytest.mark.parametrize(("k", "vocabulary"), SHAPES)
def test_a_file_holds_what_its_documents_say_bit_by_bit(k, vocabulary):
    signal = random_signal(12, k, vocabulary)
    data = pack([("a", signal)], vocabulary)
    stored, read = safetensors.numpy.load(data), unpack(data)["a"]
    ids, _ = in_order(signal)
    outside = 0
    for t, record in enumerate(stored["records"]):
        slow_ids, probabilities, slot = slow_read(record.tobytes(), k, vocabulary)
        assert slow_ids == ids[t].tolist() == read.ids_TK[t].tolist()
        assert np.allclose(np.exp([*read.logprobs_TK[t], read.tail_T[t]]), probabilities, 1e-4)
        target = slow_ids[slot] if slot < k else stored["outside_ids"][outside]
        outside += slot == k
        assert target == signal.target_ids_T[t] == read.target_ids_T[t]
    assert outside == len(stored["outside_ids"]) == 3


@pytest.mark.parametrize(("k", "vocabulary"), SHAPES)
def test_the_error_stays_within_its_bound_and_the_whole_is_one(k, vocabulary):
    signal = random_signal(300, k, vocabulary)
    read = unpack(pack([("a", signal)], vocabulary))["a"]
    (_, before), (_, after) = in_order(signal), in_order(read)
    assert np.allclose(np.exp(after).sum(axis=1), 1, atol=1e-5)
    ratio_before, ratio_after = (x - x.max(axis=1, keepdims=True) for x in (before, after))
    seen = ratio_before > -28
    error = np.abs(ratio_after - ratio_before)[seen]
    assert (error <= error_of(ratio_before, k)[seen] + 1e-4).all()


def test_a_target_has_its_own_log_probability_wherever_it_stands():
    signal = random_signal(40, 16, LARGE)
    read = unpack(pack([("a", signal)], LARGE))["a"]
    inside = read.ids_TK == read.target_ids_T[:, None]
    outside = ~inside.any(axis=1)
    assert 0 < outside.sum() < 40
    error = read.target_logprobs_T - signal.target_logprobs_T
    assert np.abs(error[outside]).max() < 0.01
    own = np.where(inside, read.logprobs_TK, 0).sum(axis=1)
    assert np.array_equal(read.target_logprobs_T[~outside], own[~outside])


@pytest.mark.parametrize(("k", "most_bytes"), [(16, 56), (50, 127)])
def test_realistic_signals_are_small_and_near_what_was_captured(k, most_bytes):
    made = realistic(320, k, 151936)
    rows = [(f"train-{at:05}", cut(made, at, at + 64)) for at in range(0, 320, 64)]
    data = pack(rows, 151936)
    assert len(data) / 320 < most_bytes
    read = joined(unpack(data).values())
    assert np.array_equal(in_order(made)[0], read.ids_TK)
    before, after = in_order(made)[1], in_order(read)[1]
    kl_T = (np.exp(before) * (before - after)).sum(axis=1)
    assert kl_T.mean() == pytest.approx(kl(made, read), abs=1e-7)
    assert kl_T.mean() < 5e-4


def test_what_cannot_be_seen_is_clipped():
    logprobs = np.array([[0, -np.inf, -80], [-0.1, -200, -29]], dtype=np.float32)
    ids = np.tile(np.array([[5, 3, 4]], dtype=np.int32), (2, 1))
    signal = captured(ids, logprobs, ids[:, 0], logprobs[:, 0])
    read = unpack(pack([("a", signal)], 6))["a"]
    assert np.isfinite(read.logprobs_TK).all()
    assert (read.logprobs_TK[:, :2] < -25).all()
    assert np.allclose(np.exp(read.target_logprobs_T), np.exp(logprobs[:, 0]), atol=0.01)


def rows_of_many_lengths() -> dict[str, Signal]:
    lengths = {"a": 5, "ü/…": 3000, "empty": 0, "": 1, '"\n': 70}
    return {
        name: cut(random_signal(length + 1, 16, LARGE, seed), 0, length)
        for seed, (name, length) in enumerate(lengths.items())
    }


def same(first: Signal, second: Signal) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_rows_are_read_one_by_one_together_and_from_a_mapped_file_the_same(tmp_path):
    rows = rows_of_many_lengths()
    data = pack(list(rows.items()), LARGE)
    (tmp_path / "signals").write_bytes(data)
    mapped, held = SignalFile.open(tmp_path / "signals"), SignalFile.open(data)
    assert mapped.ids == list(rows)
    assert (mapped.k, mapped.vocabulary) == (16, LARGE)
    assert {name: mapped.tokens(name) for name in rows} == {
        name: len(signal.tail_T) for name, signal in rows.items()
    }
    some = mapped.rows(["", "a", "empty"])
    assert list(some) == ["", "a", "empty"]
    for name, signal in held.rows().items():
        assert same(signal, mapped.row(name))
        assert same(signal, some.get(name, signal))
        assert np.array_equal(signal.target_ids_T, rows[name].target_ids_T)


def test_repacked_rows_are_the_rows_of_their_files():
    rows = rows_of_many_lengths()
    names = list(rows)
    first = SignalFile.open(pack([(name, rows[name]) for name in names[:2]], LARGE))
    second = SignalFile.open(pack([(name, rows[name]) for name in names[2:]], LARGE))
    pairs = [(f"new {name}", f.raw(name)) for f in (second, first) for name in f.ids]
    repacked = unpack(repack(pairs, 16, LARGE))
    packed = unpack(pack([(name, rows[name[4:]]) for name, _ in pairs], LARGE))
    assert list(repacked) == list(packed)
    assert all(same(repacked[name], packed[name]) for name in packed)
    assert unpack(repack([], 16, LARGE)) == unpack(pack([], LARGE)) == {}


def test_joined_signals_are_stored_as_one_after_the_other():
    first, second = random_signal(5, 3, 100), random_signal(7, 3, 100, seed=1)
    read = unpack(pack([("a", first), ("b", second), ("c", join(first, second))], 100))
    assert same(read["c"], join(read["a"], read["b"]))


def test_signals_that_cannot_share_a_file_are_refused():
    signal = random_signal(4, 5, 100)
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        pack([("a", signal), ("b", random_signal(4, 4, 100))], 100)
    with pytest.raises(ValueError, match="there are 99"):
        pack([("a", signal)], 99)
    with pytest.raises(ValueError, match="same id"):
        pack([("a", signal), ("a", signal)], 100)
    signal.logprobs_TK[1, 2] = np.nan
    with pytest.raises(ValueError, match="not a number"):
        pack([("a", signal)], 100)


def test_a_torn_file_is_refused_wherever_it_is_torn(tmp_path):
    data = pack([("a", random_signal(4, 5, 100))], 100)
    for length in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(DataError, match="damaged"):
            SignalFile.open(data[:length])
    (tmp_path / "torn").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        SignalFile.open(tmp_path / "torn")
    for foreign in (data + b" ", b"PK\3\4 an npz file, say, of format 1", b"[1, 2]" * 9):
        with pytest.raises(DataError, match="not a file of signals"):
            SignalFile.open(foreign)


def test_a_file_of_another_format_is_refused_with_what_can_be_read(tmp_path):
    path = tmp_path / "signals"
    path.write_bytes(pack([("a", random_signal(4, 5, 100))], 100))
    with safe_open(path, "np") as stored:
        assert stored.metadata() == {"signals": "2 5 100"}
        metadata = {"signals": "3 5 100"}
    data = safetensors.numpy.save(safetensors.numpy.load_file(path), metadata)
    with pytest.raises(DataError, match="'3' cannot be read, only '2'"):
        SignalFile.open(data)


def test_damaged_records_are_refused_when_they_are_read():
    data = bytearray(pack([("a", random_signal(4, 5, 100))], 100))
    records = safetensors.numpy.load(bytes(data))["records"].tobytes()
    start = data.index(records)
    data[start : start + len(records)] = bytes(len(records))
    file = SignalFile.open(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        file.row("a")


def test_equal_signals_are_equal_bytes():
    rows = [("a", random_signal(4, 5, 100))]
    assert len({pack(rows, 100) for _ in range(20)}) == 1


@pytest.mark.parametrize("k", [3, 16, 50])
def test_a_signal_that_was_stored_is_stored_the_same_in_a_vocabulary_of_another_size(k):
    ids = np.random.default_rng(k).permuted(np.tile(np.arange(300), (40, 1)), axis=1)[:, : k + 1]
    logprobs = np.log(np.random.default_rng(1).dirichlet(np.full(k + 1, 0.1), 40) + 1e-12)
    plain = captured(
        ids[:, :k].astype(np.int32),
        logprobs[:, :k].astype(np.float32),
        ids[:, 0].astype(np.int32),
        logprobs[:, 0].astype(np.float32),
    )
    wide = unpack(pack([("a", plain)], 1 << 24))
    assert pack([*wide.items()], 300) == pack([("a", plain)], 300)
