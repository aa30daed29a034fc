"""The registry on a real MLflow: versions by reference, and aliases that move once, last of all."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.commands import promote as command
from flows.commands.options import on_spec
from retort.errors import SpecError, StoreError
from retort.store import Store, open_store
from retort.tracking import ReleasedStudent, Tracker, Version, open_registry, promote, rollback
from retort.tracking.promotion import ROLLED_BACK
from retort.tracking.registry import CHAMPION, FORMER, by_alias

SCORES = {"accuracy": 0.93, "accuracy_low": 0.9, "latency_seconds_p50": 0.01}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store whose MLflow is a database of its own, which takes seconds to make."""
    return open_store(str(tmp_path_factory.mktemp("registry")))


@pytest.fixture
def tracker(store, monkeypatch) -> Tracker:
    """A job's open run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return opened(store)


def opened(store: Store) -> Tracker:
    warned: list[str] = []
    tracker = Tracker(store, warned.append)
    tracker.open_job("job", {}, "none")
    assert not warned
    return tracker


def student(store: Store, name: str, train: str, **more: Any) -> ReleasedStudent:
    """A released student: a folder with weights, of a name of its own a test."""
    folder = Path(store.uri) / "artifacts/release" / train / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(train.encode())
    known = {"gate_passed": True, "content": train, "scores": SCORES}
    return ReleasedStudent(name=name, source=str(folder), train=train, **{**known, **more})


def champion_of(client: Any, name: str) -> str | None:
    found = by_alias(client, name, CHAMPION)
    return found and found.version


def test_a_passed_student_is_the_challenger_and_a_logged_model_with_its_scores(tracker, store):
    made = student(store, "first", "t1")
    assert tracker.register(made) == "1"
    client = MlflowClient(tracker.uri, registry_uri=tracker.uri)
    version = client.get_model_version_by_alias("first", "challenger")
    assert (str(version.version), version.source) == ("1", str(Path(made.source).parent))
    assert version.tags["retort.gate"] == "passed"
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert (model.status, model.source_run_id) == ("READY", tracker.parent_id)
    assert {metric.key: metric.value for metric in model.metrics} == SCORES
    linked = [{"name": "first", "version": "1"}]
    assert json.loads(model.tags["mlflow.modelVersions"]) == linked
    outputs = client.get_run(tracker.parent_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]
    kept = list(Path(store.uri).rglob("model.safetensors"))
    assert kept == [Path(made.source) / "model.safetensors"]  # the weights lie once


def test_a_refused_student_is_kept_and_tagged_and_no_challenger(tracker, store):
    assert tracker.register(student(store, "refused", "t1", gate_passed=False)) == "1"
    client = open_registry(store)
    assert client.get_model_version("refused", "1").tags["retort.gate"] == "refused"
    assert client.get_registered_model("refused").aliases == {}
    found = promote(client, "refused")
    assert not found.done and "no version has passed its gate" in found.text
    assert champion_of(client, "refused") is None


def test_registering_again_after_a_kill_makes_no_second_version(tracker, store):
    made = student(store, "again", "o'neill")  # a place that no query can hold
    assert [tracker.register(made), tracker.register(replace(made, champion="7"))] == ["1", "1"]
    client = open_registry(store)
    assert client.get_model_version("again", "1").tags["retort.champion"] == "7"
    # The same folder with other weights, made by a forced training, is another student.
    assert tracker.register(replace(made, content="other")) == "2"


def test_weights_are_copied_into_mlflow_where_asked_for(tracker, store):
    tracker.register(student(store, "copied", "t9", log_weights=True))
    (model,) = [
        m
        for m in open_registry(store).search_logged_models([tracker.experiment_id])
        if m.name == "copied"
    ]
    assert (Path(model.artifact_location) / "model/model.safetensors").read_bytes() == b"t9"


def test_promote_and_rollback_move_the_champion_once_however_often_asked(tracker, store):
    client, name = open_registry(store), "moves"
    tracker.register(student(store, name, "t1"))
    for _ in range(2):
        assert promote(client, name).done and champion_of(client, name) == "1"
    tracker.register(student(store, name, "t2", champion="1"))
    for _ in range(2):
        assert promote(client, name).done and champion_of(client, name) == "2"
    for _ in range(3):
        assert rollback(client, name).done and champion_of(client, name) == "1"
    assert "rolled back from version 2 to 1 already" in rollback(client, name).text
    # And forward again: the challenger was compared with this champion.
    assert promote(client, name).done and champion_of(client, name) == "2"
    assert rollback(client, name).done and champion_of(client, name) == "1"


def test_a_kill_between_the_steps_is_mended_by_the_same_command(tracker, store):
    client, name = open_registry(store), "killed"
    tracker.register(student(store, name, "t1"))
    promote(client, name)
    tracker.register(student(store, name, "t2", champion="1"))
    # Killed before the alias moved: what was said first stands, and nobody else is champion.
    client.set_model_version_tag(name, "2", FORMER, "1")
    assert champion_of(client, name) == "1"
    assert promote(client, name).done and champion_of(client, name) == "2"
    client.set_registered_model_tag(name, ROLLED_BACK, "2 to 1")
    assert champion_of(client, name) == "2"
    for _ in range(2):
        assert rollback(client, name).done and champion_of(client, name) == "1"


def test_one_compared_with_another_champion_than_the_present_is_refused(tracker, store):
    client, name = open_registry(store), "others"
    tracker.register(student(store, name, "t1"))
    promote(client, name)
    tracker.register(student(store, name, "t2"))  # while there was no champion yet
    found = promote(client, name)
    assert not found.done and champion_of(client, name) == "1"
    assert "was compared with no champion, but now version 1 is the champion" in found.text
    assert "run its job again" in found.text
    # The champion's own student, released anew, needs no comparison with itself.
    tracker.register(student(store, name, "t1", content="other"))
    assert promote(client, name).done and champion_of(client, name) == "3"


def test_a_refused_gate_is_refused_even_where_someone_moved_the_alias(tracker, store):
    client, name = open_registry(store), "moved"
    tracker.register(student(store, name, "t1", gate_passed=False))
    client.set_registered_model_alias(name, "challenger", "1")
    found = promote(client, name)
    assert not found.done and "refused by its gate" in found.text


def test_rollback_without_a_champion_before_is_an_error_with_the_cause(tracker, store):
    client, name = open_registry(store), "alone"
    tracker.register(student(store, name, "t1"))
    with pytest.raises(SpecError, match="alone has no champion; `retort promote alone` makes one"):
        rollback(client, name)
    promote(client, name)
    with pytest.raises(SpecError, match="version 1 has no champion before it"):
        rollback(client, name)
    tracker.register(student(store, name, "t2", champion="1"))
    promote(client, name)
    client.delete_model_version(name, "1")
    with pytest.raises(SpecError, match=r"no champion before it \(1 was deleted\)"):
        rollback(client, name)


def test_the_champion_is_found_and_for_itself_the_one_it_was_compared_with(tracker, store):
    client, name = open_registry(store), "asked"
    tracker.register(student(store, name, "t1"))
    assert tracker.champion(name, "t2") is None  # a challenger is none
    promote(client, name)
    found = tracker.champion(name, "t2")
    assert isinstance(found, Version) and (found.version, found.train) == ("1", "t1")
    assert tracker.champion(name, "t1") is None
    tracker.register(student(store, name, "t2", champion="1"))
    promote(client, name)
    assert [tracker.champion(name, train).version for train in ("t2", "t1")] == ["1", "2"]


def run(*arguments: str) -> int:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers(required=True), on_spec())
    options = top.parse_args(arguments)
    return options.command(options)


def test_the_commands_say_what_they_did_and_leave_with_its_code(tracker, store, capsys):
    tracker.register(student(store, "spoken", "t1", gate_passed=False))
    assert run("promote", "spoken", "--store", store.uri) == 3
    assert capsys.readouterr().out.startswith("refused: spoken: no version has passed")
    tracker.register(student(store, "spoken", "t2"))
    assert run("promote", "spoken", "--store", store.uri) == 0
    assert capsys.readouterr().out == "spoken version 2 is the champion now\n"
    with pytest.raises(SpecError, match=r"'spokn' \(did you mean 'spoken'\?\); registered: .*sp"):
        run("promote", "spokn", "--store", store.uri)


def test_a_store_without_models_and_a_server_that_is_down_are_said(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError, match=r"no model is registered at .*; run a job first"):
        run("rollback", "x", "--store", str(tmp_path))
    assert not list(tmp_path.iterdir())  # asking makes no database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:a-secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match=r"MLflow at http://127\.0\.0\.1:9") as error:
        run("promote", "x", "--store", str(tmp_path))
    assert "a-secret" not in str(error.value)
    warned: list[str] = []
    tracker = Tracker(open_store(str(tmp_path)), warned.append)
    assert tracker.champion("x", "t1") is None
    tracker.open_job("job", {}, "none")
    assert len(warned) == 1 and "tracking is off for this run" in warned[0]


def test_a_server_takes_a_version_of_a_local_store_without_its_weights(
    mlflow_url, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    store = open_store(str(tmp_path))
    tracker, client = opened(store), open_registry(store)
    made = student(store, "served", "t1")
    assert tracker.register(made) == "1"
    version = client.get_model_version_by_alias("served", "challenger")
    assert version.tags["retort.source"] == made.source
    model_id = version.source.removeprefix("models:/")
    listed = {found.path for found in client.list_logged_model_artifacts(model_id)}
    assert "MLmodel" in listed and "model" not in listed
    copied = student(store, "served", "t2", log_weights=True)
    assert tracker.register(copied) == "2"
    model_id = client.get_model_version("served", "2").source.removeprefix("models:/")
    assert {found.path for found in client.list_logged_model_artifacts(model_id)} > listed
    logged = client.list_logged_model_artifacts(model_id, "model")
    assert [found.path for found in logged] == ["model/model.safetensors"]
    assert promote(client, "served").done and promote(client, "served").done
    assert champion_of(client, "served") == "2"
