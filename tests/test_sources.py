"""Rows from any file and place: what is good comes as it stands, what is bad with its reason."""

import csv
import gzip
import hashlib
import io
import json
import random
import shutil
import tracemalloc
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from retort.errors import SpecError, StoreError
from retort.sources import describe, digest, read
from retort.spec.data import HubDataset
from retort.storage import find_urls, open_url, read_url

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
ROWS = [{"question": f"Was ist {n} + {n}?\n“ü”", "answer": str(2 * n)} for n in range(600)]
MOST = 1_000_000


def rows_of(source, most=MOST):
    return list(read(source if isinstance(source, tuple | HubDataset) else str(source), "x", most))


def values(source, most=MOST):
    found = rows_of(source, most)
    assert [row.error for row in found if row.error] == []
    return [row.value for row in found]


def jsonl(rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_csv(rows, delimiter=",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=250)
    return buffer.getvalue()


FORMS = {
    "a.jsonl": jsonl(ROWS),
    "a.ndjson": jsonl(ROWS).replace(b"}\n", b"}\r\n\r\n \t\n"),
    "one-a-line.json": jsonl(ROWS),
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "pretty-object.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "a.csv": as_csv(ROWS),
    "semicolon.csv": as_csv(ROWS, ";"),
    "bar.csv": as_csv(ROWS, "|"),
    "a.tsv": as_csv(ROWS, "\t"),
    "lines": jsonl(ROWS),
    "list": json.dumps(ROWS).encode(),
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", FORMS)
def test_rows_are_the_same_in_every_form_however_packed(tmp_path, name, packed, mark):
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACK[packed](mark + FORMS[name]))
    assert values(path) == ROWS


def test_parquet_and_what_is_packed_are_known_by_their_bytes_too(tmp_path):
    for name, data in (("a.parquet", as_parquet(ROWS)), ("b", as_parquet(ROWS))):
        (tmp_path / name).write_bytes(data)
        assert values(tmp_path / name) == ROWS
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(jsonl(ROWS)))
    assert values(tmp_path / "c.jsonl") == ROWS


def test_members_and_frames_one_after_the_other_are_one_file(tmp_path):
    data = jsonl(ROWS)
    for packed, pack in list(PACK.items())[1:]:
        path = tmp_path / f"a.jsonl{packed}"
        parts = [pack(data[start : start + 5000]) for start in range(0, len(data), 5000)]
        path.write_bytes(b"".join(parts) + bytes(512))
        assert values(path) == ROWS


def test_a_bad_row_comes_with_line_bytes_and_reason_and_nothing_after_it_is_lost(tmp_path):
    bad = {
        b"not json": "not JSON: ",
        b"[1, 2]": "a row must be a JSON object, this is a list",
        b'"x"': "this is a text",
        b"null": "this is a null",
        b'{"a": NaN}': "not JSON: ",
        b'{"a": -Infinity}': "not JSON: ",
        b'{"a": "\\ud800"}': "not JSON: ",
        b'{"a": "\xff"}': "not UTF-8: ",
        b'{"a": 1} {"a": 2}': "not JSON: ",
        b"[" * 5000: "not JSON: ",
        b'{"a": "' + b"x" * 9000 + b'"}': "longer than prepare.max_row_bytes=8000",
    }
    lines = [line for one in bad for line in (one, b"", b'{"good": 1}')]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = rows_of(tmp_path / "a.jsonl", 8000)
    assert sum(row.value == {"good": 1} for row in found) == len(bad)
    for number, (row, (line, reason)) in enumerate(zip(found[::2], bad.items(), strict=True)):
        assert (row.line, row.raw, row.value) == (3 * number + 1, line, None)
        assert reason in row.error
        assert row.file == str(tmp_path / "a.jsonl")


def test_only_line_feeds_end_a_row(tmp_path):
    row = {"a": "x\u2028y\u0085z\x0b\x0c\x1c", "b": "\r"}
    (tmp_path / "a.jsonl").write_bytes(jsonl([row, row]))
    assert values(tmp_path / "a.jsonl") == [row, row]


def test_integers_of_any_size_stay_whole(tmp_path):
    row = {"small": 2**63 - 1, "large": 2**64, "low": -(10**30), "list": [10**20], "real": 0.5}
    (tmp_path / "a.jsonl").write_bytes(jsonl([row]))
    (tmp_path / "a.json").write_text(json.dumps({"rows": [row]}, indent=1))
    for name in ("a.jsonl", "a.json"):
        (found,) = values(tmp_path / name)
        assert found == row
        assert type(found["large"]) is int


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_a_row_of_many_megabytes_is_never_in_memory_whole(tmp_path, name):
    good = {"question": "1 + 1", "answer": "2"}
    rows = [good, {"question": "x" * 20_000_000, "answer": ""}, good]
    form = {"a.json": lambda rows: json.dumps(rows).encode(), "a.csv": as_csv}.get(name, jsonl)
    data = form(rows)
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    del rows, data
    tracemalloc.start()
    first, long, last = rows_of(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first.value, last.value) == (good, good)
    assert long.error == "longer than prepare.max_row_bytes=1000000"
    assert len(long.raw) == 65536
    assert b"xxx" in long.raw
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.csv"])
@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_rows_before_the_cut_of_a_packed_file_are_kept_and_the_cut_is_one_bad_row(
    tmp_path, name, packed
):
    texts = random.Random(0)
    rows = [{"n": str(n), "text": str(texts.getrandbits(400))} for n in range(3000)]
    data = {"a.jsonl": jsonl, "a.csv": as_csv}.get(name, lambda r: json.dumps(r).encode())(rows)
    whole = PACK[packed](data)
    for length in (len(whole) - 1, len(whole) // 2, 30, 5):
        (tmp_path / f"{name}{packed}").write_bytes(whole[:length])
        *good, bad = rows_of(tmp_path / f"{name}{packed}")
        assert [row.value for row in good] == rows[: len(good)]
        assert bad.error == "the file ends in the middle of its compressed data"
        assert (bad.value, bad.file) == (None, str(tmp_path / f"{name}{packed}"))
        assert len(good) >= (3000 if length == len(whole) - 1 and packed == ".gz" else 0)
        assert len(good) > 500 or length < len(whole) // 2


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_broken_packed_data_is_one_bad_row_after_the_good_ones(tmp_path, packed):
    rows = [{"text": str(random.Random(n).getrandbits(4000))} for n in range(1000)]
    data = bytearray(PACK[packed](jsonl(rows)))
    half = len(data) // 2
    data[half : half + 9] = b"\xff" * 9
    (tmp_path / f"a.jsonl{packed}").write_bytes(data)
    *good, bad = rows_of(tmp_path / f"a.jsonl{packed}")
    assert [row.value for row in good[:300]] == rows[:300]
    assert "compressed data is broken" in bad.error


def test_elements_of_a_list_are_bad_one_by_one(tmp_path):
    elements = [
        b'{"a": "[{,\\"}\\\\"}',
        b'{"a": NaN}',
        b"7",
        b'{"a": "\xff"}',
        b'{"a": ' + b'["' + b"x" * 500 + b'"]}',
        b'{"a": {"b": [1, [2, {}]]}}',
    ]
    for separator in (b",", b" ,\n\t", b"," + b" " * 300):
        path = tmp_path / "a.json"
        path.write_bytes(b" \n[" + separator.join(elements) + b"\n]\n")
        found = rows_of(path, 400)
        assert [row.line for row in found] == [1, 2, 3, 4, 5, 6]
        assert [row.value for row in found if row.value] == [
            {"a": '[{,"}\\'},
            {"a": {"b": [1, [2, {}]]}},
        ]
        assert [row.raw for row in found] == elements
        reasons = ["not JSON", "a number", "not UTF-8", "longer than"]
        for row, reason in zip(found[1:5], reasons, strict=True):
            assert reason in row.error


@pytest.mark.parametrize(
    ("text", "num_good", "reason"),
    [
        (b'[{"a": 1}}, {"a": 2}, {"a": 3}]', 2, "not JSON: "),
        (b'[{"a": 1}, {"a": 2}, {"a', 2, "within its list"),
        (b'[{"a": 1}, {"a": 2},', 2, "within its list"),
        (b'[{"a": 1}]\n, {"a": 2}]', 1, "after the end of the list"),
        (b'[{"a": 1}] ' + b"x" * 3_000_000, 1, "after the end of the list"),
        (b'[{"a": 1},,{"a": 2}]', 2, "not JSON: "),
    ],
)
def test_a_list_that_is_damaged_never_loses_rows_unseen(tmp_path, text, num_good, reason):
    (tmp_path / "a.json").write_bytes(text)
    found = rows_of(tmp_path / "a.json")
    assert sum(row.value is not None for row in found) == num_good
    (bad,) = [row for row in found if row.error]
    assert reason in bad.error
    for empty in (b"[]", b" [ ]\n"):
        (tmp_path / "a.json").write_bytes(empty)
        assert rows_of(tmp_path / "a.json") == []


def test_a_list_is_cut_into_its_elements_wherever_the_blocks_end():
    from retort.sources.documents import elements

    rows = [{"t": '\\"' * n + "]},{[" * (n % 3), "l": [{}, [n]]} for n in range(40)]
    data = json.dumps(rows).encode()
    for size in (1, 2, 3, 7, 64, 10_000):
        blocks = [data[start : start + size] for start in range(0, len(data), size)]
        found = list(elements(blocks, MOST))
        assert [json.loads(raw) for raw, _ in found] == rows
        (cut,) = [error for _, error in elements([*blocks[:-1], b""], MOST) if error][-1:] or [None]
        assert size == 10_000 or "within its list" in cut


def test_one_object_is_one_row_and_a_chat_is_no_list_of_rows(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.json").write_text(json.dumps(chat, indent=2))
    (tmp_path / "b.json").write_text(json.dumps(chat))
    assert values(tmp_path / "a.json") == values(tmp_path / "b.json") == [chat]
    (tmp_path / "c.json").write_text("{\n 'no': json\n}")
    (bad,) = rows_of(tmp_path / "c.json")
    assert bad.error.startswith("not JSON")


def test_lines_of_json_are_read_where_a_first_one_is_bad(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"cut": \n{"a": 1}\n{"a": 2}\n')
    first, *others = rows_of(tmp_path / "a.json")
    assert (first.line, first.value) == (1, None)
    assert [(row.line, row.value) for row in others] == [(2, {"a": 1}), (3, {"a": 2})]


def test_a_table_names_the_line_of_each_row_and_keeps_its_bytes(tmp_path):
    text = b'id,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2\r\n3,\xff\r\n4,5" pipe\r\n5,\r\n6,a,b'
    (tmp_path / "a.csv").write_bytes(text)
    found = rows_of(tmp_path / "a.csv")
    assert [row.line for row in found] == [2, 5, 6, 7, 8, 9]
    assert found[0].value == {"id": "1", "text": 'two\r\nlines, "quoted"'}
    assert found[0].raw == b'1,"two\r\nlines, ""quoted"""'
    assert [row.error for row in found] == [
        None,
        "1 cells: the heading has 2",
        "not UTF-8: invalid start byte at byte 3 of the row",
        None,
        None,
        "3 cells: the heading has 2",
    ]
    assert (found[3].value["text"], found[4].value["text"]) == ('5" pipe', "")


@pytest.mark.parametrize("num_rows", [3, 40_000])
def test_a_quote_that_is_never_closed_costs_its_own_line_alone(tmp_path, num_rows):
    rows = [{"id": str(n), "text": "x" * 40} for n in range(num_rows)]
    lines = as_csv(rows).split(b"\r\n")
    lines.insert(2, b'bad,"never closed')
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(lines))
    found = rows_of(tmp_path / "a.csv")
    assert [row.value for row in found if row.value] == rows
    (bad,) = [row for row in found if row.error]
    assert (bad.line, bad.raw) == (3, b'bad,"never closed')
    assert "a quote is" in bad.error


def test_a_heading_that_cannot_be_used_says_why(tmp_path):
    for text, reason in ((b"a,b,a\n1,2,3\n", "has a twice"), (b"a,\xff\n1,2\n", "not UTF-8")):
        (tmp_path / "a.csv").write_bytes(text)
        with pytest.raises(SpecError, match=rf"x: .*a\.csv: the heading in line 1 .*{reason}"):
            rows_of(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b",a\n0,1\n1,2\n")
    assert values(tmp_path / "a.csv") == [{"a": "1"}, {"a": "2"}]


def test_columns_come_as_plain_values_and_images_are_left_out(tmp_path):
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


def tree(root: str) -> list[str]:
    """Writes a folder with data, with what is no data, and with what nobody should see."""
    made = {
        "b.jsonl": jsonl(ROWS[:2]),
        "sub/a.csv": as_csv(ROWS[2:4]),
        "sub/deep/c.json.gz": gzip.compress(json.dumps(ROWS[4:6]).encode()),
        "README.md": b"# no data",
        ".hidden.jsonl": b"no",
        "_SUCCESS": b"",
        "sub/.git/x.jsonl": b"no",
        "_temporary/x.jsonl": b"no",
    }
    for name, data in made.items():
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as stream:
            stream.write(data)
    return ["b.jsonl", "sub/a.csv", "sub/deep/c.json.gz"]


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3_here")
    places = {"local": str(tmp_path / "data"), "s3": "s3://retort/data"}
    return places.get(request.param, "memory://rows")


def test_folders_and_globs_are_the_files_below_them_wherever_they_lie(root):
    names = tree(root)
    prefix = root.replace("memory://", "memory:///")
    for folder in (root, f"{root}/"):
        assert find_urls(folder) == sorted(f"{prefix}/{name}" for name in ["README.md", *names])
        assert values(folder) == ROWS[:6]
    assert find_urls(f"{root}/b.jsonl") == [f"{root}/b.jsonl"]
    assert find_urls(f"{root}/**/*.json*") == [f"{prefix}/{names[0]}", f"{prefix}/{names[2]}"]
    assert find_urls(f"{root}/?.jsonl") == [f"{prefix}/b.jsonl"]
    assert find_urls(f"{root}/[a-s]*/a*") == [f"{prefix}/sub/a.csv"]
    assert find_urls(f"{root}/_S*") == [f"{prefix}/_SUCCESS"]
    assert values((f"{root}/sub/*.csv", f"{root}/b.jsonl")) == ROWS[2:4] + ROWS[:2]
    assert read_url(f"{root}/b.jsonl") == jsonl(ROWS[:2])
    with open_url(f"{root}/b.jsonl") as stream:
        assert stream.read(5) == jsonl(ROWS)[:5]
    for nothing in (f"{root}/none.jsonl", f"{root}/*.none", f"{root}/none/"):
        with pytest.raises(FileNotFoundError):
            find_urls(nothing)
        with pytest.raises(SpecError, match=r"x: no file .*none.*relative to the job file"):
            rows_of(nothing)
    with pytest.raises(FileNotFoundError), open_url(f"{root}/none.jsonl"):
        pass


def test_every_form_is_read_from_s3_over_http(s3_here):
    for name, data in {**FORMS, "a.parquet": as_parquet(ROWS)}.items():
        with fsspec.open(f"s3://retort/forms/{name}.{name}", "wb") as stream:
            stream.write(data)
        assert values(f"s3://retort/forms/{name}.{name}") == ROWS
    with pytest.raises(SpecError, match="no file"):
        rows_of("s3://no-such-bucket/a.jsonl")


def test_what_cannot_be_opened_says_what_is_allowed(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(SpecError, match=r"x: .*a\.xlsx: neither text nor Parquet.*\.jsonl.*\.gz"):
        rows_of(tmp_path / "a.xlsx")
    with pytest.raises(SpecError, match="nosuch"):
        rows_of("nosuch://bucket/a.jsonl")
    (tmp_path / "a.txt").write_bytes(jsonl(ROWS))
    assert values(tmp_path / "a.txt") == ROWS
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert rows_of(tmp_path / "empty.jsonl") == []
    (tmp_path / "a[1].jsonl").write_bytes(jsonl(ROWS))
    assert values(tmp_path / "a[1].jsonl") == ROWS


def test_what_is_there_but_cannot_be_read_is_the_stores_error(tmp_path):
    with pytest.raises(StoreError, match="IsADirectoryError"), open_url(str(tmp_path)):
        pass


def test_a_digest_is_of_the_content_wherever_it_lies(tmp_path):
    for name in ("here", "there/deeper"):
        tree(str(tmp_path / name))
    here, there = tmp_path / "here", tmp_path / "there/deeper"
    one = hashlib.sha256((here / "b.jsonl").read_bytes()).hexdigest()
    assert digest(str(here / "b.jsonl"), "x") == digest((str(there / "b.jsonl"),), "x") == one
    whole = digest(str(here), "x")
    assert whole == digest(f"{there}/", "x") == digest(f"{there}/**/*.[jc]s*", "x")
    both = (str(here / "b.jsonl"), str(here / "sub/a.csv"))
    moved = (str(tmp_path / "b.jsonl"), str(there / "sub/a.csv"))
    shutil.copy(here / "b.jsonl", tmp_path)
    assert digest(both, "x") == digest(moved, "x") != digest(both[::-1], "x")
    (there / "sub/a.csv").write_bytes(b"changed")
    assert digest(str(there), "x") != whole
    with pytest.raises(SpecError, match=r"x: no file .*none\.jsonl"):
        digest(str(tmp_path / "none.jsonl"), "x")


def test_a_source_is_described_in_few_words():
    assert describe("a.jsonl") == describe(("a.jsonl",)) == "a.jsonl"
    assert describe(("a", "b", "c")) == "3 files: a ..."
    assert describe(HubDataset(dataset="openai/gsm8k", config="main")) == (
        "hub:openai/gsm8k/main/train"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved dataset, a saved dict of two splits, and a folder of plain files."""
    import datasets

    home = tmp_path_factory.mktemp("saved")
    rows = [{**row, "score": 0.5} for row in ROWS]
    one = datasets.Dataset.from_list(rows, split="test")
    one.save_to_disk(home / "one")
    datasets.DatasetDict(train=one, test=one.select(range(3))).save_to_disk(home / "dict")
    (home / "plain").mkdir()
    (home / "plain/train.jsonl").write_bytes(jsonl(rows))
    (home / "plain/test.jsonl").write_bytes(jsonl(rows[:2]))
    return home, rows


@pytest.fixture
def cached(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_a_saved_dataset_is_read_by_its_path_or_as_a_dataset(saved, capfd):
    home, rows = saved
    assert values(home / "one") == values(home / "dict") == rows
    assert values(HubDataset(dataset=str(home / "dict"), split="test")) == rows[:3]
    assert values(HubDataset(dataset=str(home / "one"), split="test", streaming=True)) == rows
    first = rows_of(HubDataset(dataset=str(home / "dict"), split="test"))[0]
    assert (first.file, first.line) == (f"hub:{home}/dict/test", 1)
    assert rows_of(home / "one")[0].file == str(home / "one")
    with pytest.raises(
        SpecError, match=r"x: .* no split 'tset' \(did you mean 'test'\?\); .*train"
    ):
        rows_of(HubDataset(dataset=str(home / "dict"), split="tset"))
    assert capfd.readouterr() == ("", "")


def test_a_saved_dataset_is_read_from_s3_too(saved, s3_here):
    home, rows = saved
    fsspec.filesystem("s3").put(f"{home}/dict/", "s3://retort/saved/", recursive=True)
    assert values("s3://retort/saved") == rows
    assert values(HubDataset(dataset="s3://retort/saved/", split="test")) == rows[:3]
    there, here = (HubDataset(dataset=place) for place in ("s3://retort/saved", f"{home}/dict"))
    assert digest(there, "x") == digest(here, "x")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_files_is_a_dataset_too(saved, cached, streaming):
    home, rows = saved
    source = {"dataset": str(home / "plain"), "streaming": streaming}
    assert values(HubDataset(**source)) == rows
    assert values(HubDataset(**source, split="test")) == rows[:2]
    with pytest.raises(SpecError, match=r"cannot be loaded: .*nope.*\['train', 'test'\]"):
        rows_of(HubDataset(**source, split="nope"))
    with pytest.raises(SpecError, match=r"cannot be loaded: .*'nope' not found.*default"):
        rows_of(HubDataset(**source, config="nope"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_whose_files_are_bad_says_how_to_keep_the_good_rows(tmp_path, cached, streaming):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_bytes(jsonl(ROWS) + b"nonsense\n")
    with pytest.raises(SpecError, match=r"x: hub:.*nvalid"):
        rows_of(HubDataset(dataset=str(tmp_path / "data"), streaming=streaming))
    assert [row.error is None for row in rows_of(tmp_path / "data")] == [True] * 600 + [False]


def test_a_dataset_that_is_not_here_says_that_the_hub_cannot_be_reached(cached):
    source = HubDataset(dataset="nobody/nothing-at-all")
    for use in (rows_of, lambda source: digest(source, "x")):
        with pytest.raises(SpecError, match=r"x: hub:nobody/nothing-at-all/train cannot be loaded"):
            use(source)


def test_images_of_a_dataset_are_left_out_without_a_library_for_them(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "grid": datasets.Array2D((1, 2), "int32"),
        }
    )
    row = {"image": {"bytes": b"x", "path": None}, "label": 1, "grid": [[1, 2]]}
    datasets.Dataset.from_list([row], features=features).save_to_disk(tmp_path / "d")
    assert values(tmp_path / "d") == [{"label": 1, "grid": [[1, 2]]}]


def test_the_digest_of_a_dataset_is_of_its_split_and_not_of_its_place(saved, tmp_path):
    home, _ = saved
    shutil.copytree(home, tmp_path / "copy")
    names = [("one", "train"), ("dict", "train"), ("dict", "test"), ("plain", "train")]
    names += [("plain", "test")]
    found = []
    for place in (home, tmp_path / "copy"):
        sources = [HubDataset(dataset=str(place / name), split=split) for name, split in names]
        found.append([digest(source, "x") for source in sources])
    assert found[0] == found[1]
    assert found[0][1] != found[0][2]
    assert found[0][3] != found[0][4]
    assert digest(str(home / "one"), "x") == found[0][0]


@pytest.mark.parametrize("path", sorted(SHARED.rglob("*.jsonl")), ids=lambda path: path.name)
def test_every_real_file_is_read_whole(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert values(path) == [json.loads(line) for line in lines if line.strip()]
    assert digest(str(path), "x") == hashlib.sha256(path.read_bytes()).hexdigest()
