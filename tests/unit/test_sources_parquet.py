"""Parquet: plain values, bad rows one by one, and never more than a batch in memory."""

import json
import random
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.data.sources import read
from retort.errors import SpecError
from tests.support.source_rows import MOST, ROWS, rows_of


def test_columns_come_as_plain_values_and_of_images_only_the_paths(tmp_path):
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]
    columns = {
        "messages": pa.array([turns, None]),
        "image": pa.array([{"bytes": b"x", "path": "p"}, None], media),
        "frames": pa.array([[{"bytes": b"x", "path": "p"}], None], pa.list_(media)),
        "number": pa.array([1.5, float("nan")]),
        "when": pa.array([datetime(2024, 5, 6, 7, 8), None], pa.timestamp("ns")),
        "day": pa.array([date(2024, 5, 6), None]),
        "price": pa.array([Decimal("1.10"), None]),
        "bytes": pa.array([b"text", b"\xff"]),
        "map": pa.array([[("k", 0.5)], None], pa.map_(pa.string(), pa.float64())),
        "word": pa.array(["a", "b"]).dictionary_encode(),
        "deep": pa.array([{"l": [{"d": date(2024, 1, 2)}]}, None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = rows_of(tmp_path / "a.parquet")
    assert first.value == {
        "messages": turns,
        "image": {"path": "p", "bytes": None},
        "frames": [{"path": "p", "bytes": None}],
        "number": 1.5,
        "when": "2024-05-06T07:08:00",
        "day": "2024-05-06",
        "price": "1.10",
        "bytes": "text",
        "map": {"k": 0.5},
        "word": "a",
        "deep": {"l": [{"d": "2024-01-02"}]},
    }
    kept = {"bytes": "/w==", "word": "b"}
    assert second.value == {**dict.fromkeys(first.value), **kept}
    assert (json.loads(first.raw), first.line, second.line) == (first.value, 1, 2)


def test_a_value_that_python_cannot_hold_is_a_bad_row_that_names_its_column(tmp_path):
    far = pa.array([1, 10**8, 2])
    columns = {
        "n": pa.array([1, 2, 2**64 - 1], pa.uint64()),
        "when": far.cast(pa.int32()).cast(pa.date32()),
        "text": ["a", "b", "c"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second, third = rows_of(tmp_path / "a.parquet")
    assert (first.value["when"], third.value["n"]) == ("1970-01-02", 2**64 - 1)
    assert second.error.startswith("a value that cannot be read: column when: ")
    pq.write_table(pa.table([[1], [2]], names=["n", "n"]), tmp_path / "b.parquet")
    with pytest.raises(SpecError, match="has the column n twice"):
        rows_of(tmp_path / "b.parquet")


@pytest.mark.parametrize("shape", ["text", "large", "view", "dictionary", "list", "struct", "map"])
def test_broken_utf8_is_one_bad_row_whatever_the_types_of_the_columns(tmp_path, shape):
    data = pa.array([b"good", b"a\xff", b"last"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    ends = pa.array([0, 1, 2, 3], pa.int32())
    column = {
        "text": lambda: text,
        "large": lambda: data.cast(pa.large_binary()).view(pa.large_string()),
        "view": lambda: data.cast(pa.binary_view()).view(pa.string_view()),
        "dictionary": text.dictionary_encode,
        "list": lambda: pa.ListArray.from_arrays(ends, text),
        "struct": lambda: pa.StructArray.from_arrays([text], ["x"]),
        "map": lambda: pa.MapArray.from_arrays(ends, text, pa.array([1, 2, 3])),
    }[shape]()
    table = pa.table({"number": [1, 2, 3], "when": pa.array([1, 2, 3], pa.date32()), "t": column})
    pq.write_table(table, tmp_path / "a.parquet")
    first, bad, last = rows_of(tmp_path / "a.parquet")
    assert (first.value["number"], last.value["number"], bad.line) == (1, 3, 2)
    assert "not UTF-8" in bad.error and "column t" in bad.error


def test_bad_rows_of_parquet_are_bad_one_by_one(tmp_path):
    texts = pa.array([b"good", b"\xff", b"x" * 900, b"last"]).cast(pa.binary())
    raw = pa.Array.from_buffers(pa.string(), 4, texts.buffers())
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    found = rows_of(tmp_path / "a.parquet", 800)
    assert [row.line for row in found] == [1, 2, 3, 4]
    assert [row.value for row in found] == [{"text": "good"}, None, None, {"text": "last"}]
    assert found[1].raw == b"\xff"
    assert "not UTF-8" in found[1].error
    assert "longer than" in found[2].error


def test_a_broken_part_of_parquet_is_a_bad_row_and_the_other_parts_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=150, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    found = rows_of(path)
    (bad,) = [row for row in found if row.error]
    assert bad.line == 151
    assert [row.value for row in found if row.value] == ROWS[:150] + ROWS[300:]
    path.write_bytes(b"none")
    with pytest.raises(SpecError, match=r"a\.parquet: not a Parquet file"):
        rows_of(path)


def test_parquet_is_read_a_batch_at_a_time(tmp_path):
    texts = [{"text": f"{random.Random(n).getrandbits(20_000):x}"} for n in range(6000)]
    table = pa.Table.from_pylist(texts)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    num_bytes = table.nbytes
    del texts, table
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    lines = []
    for row in read(str(tmp_path / "a.parquet"), "x", MOST):
        lines.append(row.line)
        most = max(most, pool.bytes_allocated() - before)
    assert lines == list(range(1, 6001))
    assert most < num_bytes / 3
