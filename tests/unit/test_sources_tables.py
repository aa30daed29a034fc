"""Tables in the ways that programs write them: encodings, line ends, delimiters and quotes."""

import codecs

import pytest

from retort.errors import SpecError
from tests.support.source_rows import rows_of, values

TEXT = "name,size\r\nKöln,größer\r\n東京,“x”\r\n"
WANTED = [{"name": "Köln", "size": "größer"}, {"name": "東京", "size": "“x”"}]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.encode("utf-32-be"),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\r\n", "\r").encode(),
        TEXT.replace("\r\n", "\r").encode("utf-16"),
        TEXT.replace("\r\n", "\n", 1).replace("\r\n", "\r", 1).encode(),
        b"sep=,\r\n" + TEXT.encode(),
        ("sep=;\n" + TEXT.replace(",", ";")).encode("utf-16"),
        b'"sep=|"\n' + TEXT.replace(",", "|").encode(),
        TEXT.replace(",", "^").encode(),
        TEXT.replace(",", "\x01").encode(),
    ],
)
def test_a_table_is_the_same_in_every_encoding_and_with_every_line_end(tmp_path, data):
    (tmp_path / "a.csv").write_bytes(data)
    assert values(tmp_path / "a.csv") == WANTED


def test_json_is_read_in_two_bytes_a_character_too_and_half_a_character_is_a_bad_row(tmp_path):
    text = '{"a": "ü"}\n{"a": "東"}\n'
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-16"))
    (tmp_path / "b.json").write_bytes('[{"a": "ü"}, {"a": "東"}]'.encode("utf-16-le"))
    for name in ("a.jsonl", "b.json"):
        assert values(tmp_path / name) == [{"a": "ü"}, {"a": "東"}]
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-16-le") + b"x")
    *good, bad = rows_of(tmp_path / "a.jsonl")
    assert len(good) == 2 and "UTF-16-LE is broken" in bad.error


def test_a_carriage_return_in_a_quoted_cell_is_part_of_it(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'a,b\r1,"x\ry"\r2,z\r')
    assert values(tmp_path / "a.csv") == [{"a": "1", "b": "x\ry"}, {"a": "2", "b": "z"}]
    lines = [row.line for row in rows_of(tmp_path / "a.csv")]
    assert lines == [2, 4]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        (r'"He said \"hi\", then left",x', ['He said "hi", then left', "x"]),
        (r'"\"hi\" he said",x', ['"hi" he said', "x"]),
        (r'"ends with \"",x', ['ends with "', "x"]),
        (r'"one \",\" two",x', ['one "," two', "x"]),
        (r'"C:\dir\",x', ["C:\\dir\\", "x"]),
        ('"two \\"lines\\"\nhere",x', ['two "lines"\nhere', "x"]),
        (r"5\" pipe,x", ['5\\" pipe', "x"]),
        ('x, "a, b"', ["x", "a, b"]),
        ('x, "a"', ["x", "a"]),
        ("'a, b',x", ["a, b", "x"]),
        ("it's,x", ["it's", "x"]),
        ('"Hello" he said,x', ['"Hello" he said', "x"]),
        ('"a ""b"" c",x', ['a "b" c', "x"]),
        ('"Dear Sir, hello\nyours, me",x', ["Dear Sir, hello\nyours, me", "x"]),
    ],
)
def test_quotes_are_read_as_their_writer_meant_them(tmp_path, line, cells):
    (tmp_path / "a.csv").write_text(f"first,second\n1,one\n{line}\n2,two\n", newline="")
    one, found, two = values(tmp_path / "a.csv")
    assert list(found.values()) == cells
    assert (one, two) == ({"first": "1", "second": "one"}, {"first": "2", "second": "two"})


def table(delimiter: str, **changed: str) -> bytes:
    lines = {f"line{n}": f"{n}{delimiter}sentence {n}{delimiter}0" for n in range(1, 401)}
    lines |= {name: text.replace("|", delimiter) for name, text in changed.items()}
    return "\n".join(
        ["|".join(["id", "text", "label"]).replace("|", delimiter), *lines.values()]
    ).encode()


@pytest.mark.parametrize(
    "second",
    ['300|"she left|0', '300|she left"|0', '300|"she" left|0', '300|she "left"|0', "300|x|0"],
)
def test_a_stray_quote_in_a_table_of_tabs_is_text_and_swallows_no_line(tmp_path, second):
    (tmp_path / "a.tsv").write_bytes(table("\t", line5='5|"He said|1', line300=second))
    found = values(tmp_path / "a.tsv")
    assert [row["id"] for row in found] == [str(n) for n in range(1, 401)]
    assert found[4] == {"id": "5", "text": '"He said', "label": "1"}
    assert found[299]["text"] == second.split("|")[1]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("second", ['300|"she left|0', '300|she left"|0', '300|"she" left|0'])
def test_a_stray_quote_in_any_other_table_costs_a_line_at_most(tmp_path, delimiter, second):
    (tmp_path / "a.csv").write_bytes(table(delimiter, line5='5|"He said|1', line300=second))
    found = rows_of(tmp_path / "a.csv")
    assert len(found) == 400
    bad = {row.line: row.error for row in found if row.error}
    assert set(bad) <= {6, 301} and all("a quote is opened" in error for error in bad.values())


def test_quoted_cells_of_a_table_of_tabs_may_span_lines(tmp_path):
    text = 'a\tb\n"one\ntwo"\t1\nx\t"p\nq"\n"m\nn"\t"o\n\np"\n"""q"""\t4\n"tab\there"\t5\n'
    (tmp_path / "a.tsv").write_text(text)
    rows = [list(row.values()) for row in values(tmp_path / "a.tsv")]
    cells = [["one\ntwo", "1"], ["x", "p\nq"], ["m\nn", "o\n\np"], ['"q"', "4"], ["tab\there", "5"]]
    assert rows == cells


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\x03\x04rest", "Excel workbook; extract it, or save it as CSV"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_a_file_that_holds_no_rows_says_what_it_is(tmp_path, data, reason):
    for name in ("a.csv", "a.jsonl", "a.parquet", "a"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SpecError, match=f"x: .*{name}: .*{reason}.*allowed are"):
            rows_of(tmp_path / name)
