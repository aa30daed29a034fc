"""What only one of several writers may make, in stores that can tell and in stores that cannot."""

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from retort.errors import StoreError
from retort.store import Folder, files, local
from tests.support.slow_s3 import BLIND, LOST, Fault
from tests.support.slow_s3 import slow_s3 as serving


@pytest.fixture(scope="module")
def slow_s3(request):
    with serving(request.getfixturevalue("s3")) as found:
        yield found


@pytest.fixture
def proxy(slow_s3):
    slow_s3.well()
    return slow_s3


@pytest.fixture(params=["local", "no links", "memory", "s3", "s3 without conditions"])
def folder(request, tmp_path, monkeypatch):
    """A folder in a store of each kind."""
    monkeypatch.setattr(files, "SETTLE_SECONDS", 1.0)
    name = uuid.uuid4().hex
    if request.param == "memory":
        yield Folder(f"memory://{name}/train/abc")
    elif request.param == "s3":
        request.getfixturevalue("proxy")
        yield Folder(f"s3://retort/{name}/train/abc")
    elif request.param == "s3 without conditions":
        with serving(request.getfixturevalue("s3")) as proxy:
            proxy.behave = lambda asked: BLIND
            yield Folder(f"s3://retort/{name}/train/abc")
    else:
        if request.param == "no links":
            monkeypatch.setattr(os, "link", _no_links)
        yield Folder(str(tmp_path / "train/abc"))


def _no_links(*_):
    raise PermissionError(1, "Operation not permitted")


def test_of_many_writers_one_makes_a_file(folder):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: folder.create("a", b"by %d" % n), range(4)))
    assert sum(made) == 1
    assert folder.read("a") == b"by %d" % made.index(True)
    assert not folder.create("a", folder.read("a"))
    assert folder.files() == ["a"]


def test_threads_that_meet_in_memory_do_not_both_make_a_file():
    folder = Folder(f"memory://{uuid.uuid4().hex}")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for number in range(40):
                made = pool.map(
                    lambda n, name=str(number): folder.create(name, b"%d" % n), range(8)
                )
                assert sum(made) == 1
    finally:
        sys.setswitchinterval(before)


def test_of_two_runs_that_commit_one_artifact_one_manifest_stands(folder):
    folder.write("model.bin", b"weights")
    folder.write("scratch/step", b"state")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda n: folder.commit({"facts": n}), range(2))
    assert first == second == folder.finished()
    assert folder.files() == ["manifest.json", "model.bin"]
    assert folder.manifest()["files"]["model.bin"]["bytes"] == 7


def test_the_later_run_leaves_the_artifact_of_the_earlier_alone(proxy):
    folder = Folder(f"s3://retort/{uuid.uuid4().hex}/train/abc")
    folder.write("model.bin", b"weights")

    def committed_first(asked):
        if asked.what == "put" and asked.key.endswith("manifest.json"):
            proxy.behave = lambda asked: None
            theirs.append(folder.commit({"facts": "theirs"}))

    theirs, proxy.behave = [], committed_first
    assert [folder.commit({"facts": "ours"})] == theirs
    assert folder.manifest()["facts"] == "theirs"
    assert folder.read("model.bin") == b"weights"


def test_files_of_two_runs_are_never_taken_for_those_of_one(proxy):
    folder = Folder(f"s3://retort/{uuid.uuid4().hex}/train/abc")
    folder.write("model.bin", b"weights")

    def overtaken(asked):
        if asked.what == "put" and asked.key.endswith("manifest.json"):
            proxy.behave = lambda asked: None
            folder.commit({"facts": "theirs"})
            folder.write("model.bin", b"OTHERS!")

    proxy.behave = overtaken
    with pytest.raises(StoreError, match=r"another run .* must run again") as found:
        folder.commit({"facts": "ours"})
    assert found.value.transient
    assert folder.finished() is None
    assert folder.commit({}) == folder.finished()


def test_a_file_that_was_made_is_ours_although_the_answer_got_lost(proxy):
    folder = Folder(f"s3://retort/{uuid.uuid4().hex}")
    assert folder.create("first", b"")  # from here on the store is known to heed conditions
    proxy.behave = lambda asked: LOST if asked.what == "put" and asked.times == 1 else None
    assert folder.create("a", b"same")
    assert not folder.create("a", b"same")


def test_writers_that_meet_at_the_store_are_told_to_come_again(proxy):
    folder = Folder(f"s3://retort/{uuid.uuid4().hex}")
    meet = Fault(409, "ConditionalRequestConflict")
    proxy.behave = lambda asked: meet if asked.what == "put" and asked.times < 3 else None
    assert folder.create("a", b"x")
    assert not folder.create("a", b"y")


@pytest.mark.parametrize("fault", [None, Fault(501, "NotImplemented"), Fault(400, "Invalid")])
def test_whether_a_store_can_tell_is_asked_once(s3, monkeypatch, fault):
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.0)
    folder = Folder(f"s3://retort/{uuid.uuid4().hex}")
    with serving(s3) as proxy:
        proxy.behave = lambda asked: fault if "if-none-match" in asked.headers else None
        for number in range(3):
            assert folder.create(str(number), b"")
            assert not folder.create(str(number), b"")
        conditional = sum("if-none-match" in asked.headers for asked in proxy.seen)
        assert conditional == (1 if fault else 2 + 6)
        assert folder.files() == ["0", "1", "2"]


def test_a_disk_without_links_is_said_so_that_another_way_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _no_links)
    with pytest.raises(local.NoLinksError):
        local.create(str(tmp_path / "a"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_network_disk_that_says_twice_what_it_did_once_is_understood(tmp_path, monkeypatch):
    link = os.link

    def told_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", told_twice)
    folder = Folder(str(tmp_path))
    assert folder.create("a", b"x")
    assert not folder.create("a", b"x")
    assert folder.files() == ["a"]
