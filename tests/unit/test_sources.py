"""Rows from any file: what is good comes as it stands, what is bad with its reason."""

import gzip
import hashlib
import json
import random
import tracemalloc

import pytest

from retort.data.sources import describe, digest
from retort.errors import SpecError
from tests.support.real_data import every_real_file
from tests.support.source_rows import (
    FORMS,
    MOST,
    PACK,
    ROWS,
    as_csv,
    as_parquet,
    jsonl,
    rows_of,
    values,
)


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
    from retort.data.sources.json_documents import elements

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


@every_real_file
def test_every_real_file_is_read_whole(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert values(path) == [json.loads(line) for line in lines if line.strip()]
    assert digest(str(path), "x") == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3://*"])
def test_an_address_that_would_be_every_bucket_is_refused_before_any_is_asked(url):
    with pytest.raises(SpecError, match="names no bucket; write s3://BUCKET/PATH"):
        digest(url, "prepare.train")


def test_no_source_at_all_can_be_named_in_a_message():
    assert describe(()) == "an empty list"
