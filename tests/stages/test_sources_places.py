"""Files in any place: found by folder or glob, opened, and named by their content."""

import gzip
import hashlib
import json
import shutil

import fsspec
import pytest

from retort.data.sources import describe, digest
from retort.errors import SpecError, StoreError
from retort.spec.prepare import HubDataset
from retort.store import find_urls, open_url, read_url
from tests.support.source_rows import FORMS, ROWS, as_csv, as_parquet, jsonl, rows_of, values


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
