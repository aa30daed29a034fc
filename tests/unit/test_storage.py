"""The manifest rules: what is readable is whole, and what is not finished is not readable."""

import errno
import os
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


def test_files_and_folders_of_a_local_store_are_made_for_their_owner_alone(tmp_path):
    before = os.umask(0o002)
    try:
        folder = open_store(str(tmp_path / "new/store")).artifact("train", "abc")
        folder.write("scratch/deep/a", b"x")
        folder.create("b", b"x")
        (tmp_path / "model").write_bytes(b"x")
        (tmp_path / "model").chmod(0o644)
        folder.put_file(tmp_path / "model", "c")
        folder.commit({})
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "new").rglob("*") if path.name != "deep"]
    modes = {path.stat().st_mode & 0o777 for path in made if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in [tmp_path / "new", *made] if path.is_dir()}
    assert len(made) > 6 and modes == {0o600} and folders == {0o700}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "the file system is read-only; remount it, or use another disk (--store)"),
        (errno.ENOSPC, "no space left on the device; free some, or use another disk (--store)"),
        (errno.EDQUOT, "the quota of this user is used up; free some, or use another disk"),
    ],
)
def test_what_a_disk_refuses_is_said_with_the_path_and_the_remedy(
    tmp_path, monkeypatch, number, said
):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    folder = Folder(str(tmp_path))
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(StoreError) as error:
        folder.write("a.jsonl", b"x")
    assert f"{tmp_path}/a.jsonl: " in str(error.value) and said in str(error.value)
    assert not error.value.transient
