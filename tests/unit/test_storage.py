"""The manifest rules: what is readable is whole, and what is not finished is not readable."""

import uuid

import pytest

from retort.errors import SpecError, StoreError
from retort.store import Folder, open_store


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    root = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return open_store(root).artifact("curate", "abc")


def test_nothing_is_finished_before_its_manifest(folder):
    folder.write("a.jsonl", b"rows")
    assert folder.finished() is None
    artifact = folder.commit({"facts": {}})
    assert folder.finished() == artifact
    assert (artifact.stage, artifact.name) == ("curate", "abc")


def test_a_listed_file_that_is_missing_or_cut_short_makes_the_artifact_unfinished(folder):
    folder.write("a.jsonl", b"rows")
    folder.commit({})
    folder.write("a.jsonl", b"row")
    assert folder.finished() is None
    folder.remove("a.jsonl")
    assert folder.finished() is None


def test_scratch_is_never_part_of_an_artifact_and_goes_at_commit(folder):
    folder.write("a.jsonl", b"rows")
    folder.write("scratch/step-1", b"state")
    folder.commit({})
    assert set(folder.manifest()["files"]) == {"a.jsonl"}
    assert folder.files() == ["a.jsonl", "manifest.json"]


def test_the_first_commit_stands(folder):
    folder.write("a.jsonl", b"rows")
    first = folder.commit({"facts": 1})
    assert folder.commit({"facts": 2}) == first
    assert folder.manifest()["facts"] == 1


def test_the_digest_follows_the_content(folder):
    folder.write("a.jsonl", b"rows")
    first = folder.commit({})
    folder.clear()
    assert folder.files() == []
    folder.write("a.jsonl", b"others")
    assert folder.commit({}).digest != first.digest


def test_a_write_that_was_cut_off_is_invisible(tmp_path):
    folder = Folder(str(tmp_path))
    (tmp_path / "a.jsonl.1234.part").write_bytes(b"half")
    assert folder.files() == []
    assert not folder.has("a.jsonl")


def test_trees_go_in_and_out_whole(folder, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/x").write_bytes(b"x")
    (tmp_path / "in/y").write_bytes(b"y")
    folder.put_tree(tmp_path / "in", "model")
    with folder.local_copy("model") as local:
        assert (local / "deep/x").read_bytes() == b"x"
        assert (local / "y").read_bytes() == b"y"


def test_reading_what_is_not_there_says_where(folder):
    with pytest.raises(StoreError, match=r"none\.json"):
        folder.read("none.json")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(SpecError, match="s3://bucket/prefix"):
        open_store("nonsense://x")
