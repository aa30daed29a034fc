"""`retort gc` beside what else goes on: jobs at work, a disk that fails, MLflow out of reach."""

import os
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from retort.errors import StoreError
from retort.jobs import cleanup
from retort.jobs.cleanup import roots
from retort.store import Store, open_store
from retort.tracking import ReleasedStudent, Tracker, open_registry
from tests.support.aged import age, delete, going, hexed, make, path_of, refer, run


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty store whose MLflow is a database that is not made unless something is registered."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return open_store(str(tmp_path / "store"))


def test_what_a_job_takes_up_after_the_plan_stays(store):
    keys = [make(store, "prepare", n) for n in (1, 2, 3)]
    unfinished = store.artifact("curate", hexed(4))
    unfinished.write("data.bin", b"x")
    age(store, 90)
    made = cleanup.plan(store)
    assert going(made) == {*keys, ("curate", hexed(4))}
    refer(store, "late", prepare=1)
    store.artifact("prepare", hexed(2)).write_json("scratch/inputs.json", {})  # begun anew
    unfinished.commit({})  # a manifest that appeared
    assert delete(made) == {keys[2]}
    assert unfinished.finished() and store.artifact(*keys[0]).finished()


def test_a_job_that_takes_up_an_artifact_while_others_are_removed_keeps_it(store, monkeypatch):
    monkeypatch.setattr(cleanup, "REREAD_SECONDS", 0.0)
    keys = [make(store, "prepare", n) for n in (1, 2, 3)]
    age(store, 90)
    steps = cleanup.remove(cleanup.plan(store))
    assert next(steps)[1]
    refer(store, "late", prepare=2)
    assert {item.key: is_gone for item, is_gone in steps} == {keys[1]: False, keys[0]: True}


def test_a_removal_that_is_cut_off_leaves_nothing_readable_and_is_ended_by_the_next(
    store, monkeypatch
):
    small, large = make(store, "train", 1), make(store, "train", 2)
    age(store, 90)
    removed: list[str] = []
    remove = LocalFileSystem.rm_file

    def failing(files: LocalFileSystem, path: str) -> None:
        if len(removed) == 3:  # of the larger artifact all, of the smaller the manifest
            raise OSError(5, "the disk fails")
        if os.path.exists(path):
            removed.append(path)
        remove(files, path)

    with monkeypatch.context() as failure:
        failure.setattr(LocalFileSystem, "rm_file", failing)
        with pytest.raises(StoreError, match=r"the disk fails; removed before that: 1 folder,"):
            run("--store", store.uri, "--delete")
    assert not path_of(store, large).exists()
    assert store.artifact(*small).finished() is None
    assert [path.name for path in path_of(store, small).iterdir()] == ["data.bin"]
    age(store, 90)
    assert delete(cleanup.plan(store)) == {small}
    assert not path_of(store, small).exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_that_begins_in_a_folder_while_it_is_removed_keeps_its_own_files(
    store, monkeypatch, is_finished
):
    folder = store.artifact("prepare", hexed(1))
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        folder.write(name, b"old")
    if is_finished:
        folder.commit({})
    else:
        folder.write_json("scratch/inputs.json", {})
    age(store, 90)
    remove = LocalFileSystem.rm_file

    def removing(files: LocalFileSystem, path: str) -> None:
        remove(files, path)
        if path.endswith("a.jsonl"):  # now the run begins, as `retort.jobs.run` does
            folder.write_json("scratch/inputs.json", {})
            folder.write("b.jsonl", b"new")

    with monkeypatch.context() as beside:
        beside.setattr(LocalFileSystem, "rm_file", removing)
        assert delete(cleanup.plan(store)) == set()
    assert folder.read("b.jsonl") == b"new" and folder.finished() is None


def register(store: Store, number: int, **more: Any) -> None:
    """Registers a release as a job does, in the store's own MLflow."""
    warned: list[str] = []
    tracker = Tracker(store, warned.append)
    tracker.open_job("job", {}, "none")
    source = f"{store.uri}/artifacts/release/{hexed(number)}/model"
    tracker.register(ReleasedStudent("name", source, True, hexed(number + 100), "content", **more))
    assert not warned


def test_registered_models_stay_with_all_that_made_them_wherever_the_store_was(
    store, tmp_path, monkeypatch
):
    make(store, "train", 1), make(store, "train", 101)
    release = make(store, "release", 1, inputs={"train": 1})
    other = make(store, "release", 2)
    register(store, 1)
    age(store, 90)
    made = cleanup.plan(store)
    assert going(made) == {other}
    moved = tmp_path / "moved"
    os.rename(store.uri, moved)
    there = open_store(str(moved))
    assert going(cleanup.plan(there)) == {other}
    assert release in going(cleanup.plan(there, registry=False))
    client = open_registry(there)
    client.delete_model_version("name", "1")
    assert {item.stage for item in cleanup.plan(there).to_remove} == {"train", "release"}
    # And of as many versions as no page holds, each is read.
    monkeypatch.setattr(roots, "PAGE", 2)
    for number in range(2, 7):
        client.create_model_version("name", f"/elsewhere/artifacts/release/{hexed(number)}/model")
    keys = {("release", hexed(number)) for number in range(2, 7)}
    assert roots.registered_in(there, []) == (keys, None)


def test_where_mlflow_does_not_answer_nothing_is_removed(store, monkeypatch):
    release, old = make(store, "release", 1), make(store, "prepare", 2)
    age(store, 90)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:a-secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = cleanup.plan(store)
    assert going(made) == {old} and "perhaps of a registered model" in made.to_keep
    with pytest.raises(StoreError, match=r"MLflow at http://127\.0\.0\.1:9.*--no-registry") as said:
        delete(made)
    assert "a-secret" not in str(said.value) and store.artifact(*old).finished()
    assert delete(cleanup.plan(store, registry=False)) == {release, old}


@pytest.mark.parametrize("place", ["http://mlflow.example:5000", "sqlite:////gone/mlflow.db"])
def test_a_model_that_this_mlflow_does_not_know_makes_the_registry_unknown(store, place):
    make(store, "prepare", 1)
    told = {"registered": {"name": "tiny", "version": "3"}, "mlflow": {"tracking_uri": place}}
    store.job("job").write_json("report.json", told)
    age(store, 90)
    made = cleanup.plan(store)
    assert f"tiny version 3 of job job was registered at {place}" in (made.unknown or "")
    with pytest.raises(StoreError, match="nothing was removed"):
        delete(made)
