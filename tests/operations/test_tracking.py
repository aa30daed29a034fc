"""Tracking on a real MLflow: odd names, secrets, a fresh database that several processes want."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name

from retort.store import Store, open_store
from retort.tracking import ReleasedStudent, Tracker
from retort.tracking.names import MAX_CHARACTERS, safe_names
from retort.tracking.server import connect, tracking_uri
from tests.support.servers import ROOT, environment

ODD = [
    "https://example.com/arithmetic",
    "x" * 300,
    "x" * 299 + "y",
    "a//b",
    "/a",
    "a/",
    "../a",
    "..a",
    ".",
    "",
    "a:b;c",
    "a;b:c",
    "née ②",
    "new\nline",
    "a/./b",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("tracking")))


@pytest.fixture
def tracker(store, monkeypatch):
    """A job's open run, and what it warned of."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    warned: list[str] = []
    tracker = Tracker(store, warned.append)
    tracker.open_job("job", {}, "none")
    return tracker, warned


def test_every_name_is_made_one_that_mlflow_takes_and_none_is_lost():
    named = safe_names({name: float(number) for number, name in enumerate(ODD)})
    assert list(named.values()) == [float(number) for number in range(len(ODD))]
    for name in named:
        _validate_metric_name(name)
        assert len(name) <= MAX_CHARACTERS
    plain = {"models.student/accuracy": 1, "a b-c_d.e": 2}
    assert safe_names(plain) == plain


def test_odd_names_and_values_cost_neither_curves_nor_the_registration(tracker, store):
    tracker, warned = tracker
    run_id = tracker.open_stage("prepare", {}, {"weights": dict.fromkeys(ODD, 2)})
    tracker.metrics(run_id, {name: 1.0 for name in ODD}, step=1)
    tracker.close_stage(run_id, {"slices": {name: {"n": 3} for name in ODD}}, {})
    assert warned == [] and tracker.failures == 0
    client = MlflowClient(tracker.uri)
    run = client.get_run(run_id)
    assert len(run.data.metrics) == 2 * len(ODD) and len(run.data.params) == len(ODD)
    assert run.info.status == "FINISHED"
    scores = {name: 0.5 for name in ODD}
    student = ReleasedStudent("odd", f"{store.uri}/model", True, "t", "c", scores=scores)
    assert tracker.register(student) == "1" and warned == []


def test_a_metric_that_mlflow_refuses_costs_that_metric_alone(tracker, monkeypatch):
    from mlflow.entities import Metric

    tracker, warned = tracker
    run_id = tracker.open_stage("train", {}, {})
    for step in range(5):  # a name that comes past the check, at every step
        tracker._buffers[run_id].append(Metric("lo//ss", 1.0, 1, step))
        tracker.metrics(run_id, {"loss": 1.0 / (step + 1)}, step)
        tracker._flush(run_id)
    tracker.close_stage(run_id, {"num": 3}, {"a.txt": "text"})
    assert len(warned) == 1 and "metric lo//ss" in warned[0] and tracker.failures == 0
    client = MlflowClient(tracker.uri)
    assert len(client.get_metric_history(run_id, "loss")) == 5
    assert client.get_run(run_id).data.metrics["num"] == 3.0


def test_stages_side_by_side_have_their_own_curves_and_facts(tracker):
    tracker, _ = tracker
    one, other = (tracker.open_stage(name, {}, {}) for name in ("train", "train-gold"))
    tracker._flushed = float("inf")  # nothing is sent before a stage is closed
    for step in range(3):
        tracker.metrics(one, {"loss": 1.0 + step}, step)
        tracker.metrics(other, {"loss": 5.0 + step, "num_train": step}, step)
    tracker.close_stage(one, {"loss": 9.0, "num_train": 7}, {})
    tracker.close_stage(other, {}, {})
    client = MlflowClient(tracker.uri)
    losses = {
        run: [m.value for m in client.get_metric_history(run, "loss")] for run in (one, other)
    }
    assert losses == {one: [1.0, 2.0, 3.0], other: [5.0, 6.0, 7.0]}
    assert client.get_run(one).data.metrics["num_train"] == 7.0


def test_addresses_reach_mlflow_without_their_secrets(tracker):
    tracker, warned = tracker
    address = "https://me:PASS@host/rows.jsonl?sig=SIGNED"
    run_id = tracker.open_stage("prepare", {}, {"train": address, "files": [address, "b"]})
    tracker.dataset(run_id, "train", address, "d" * 64)
    tracker.fail(run_id, RuntimeError(f"cannot read {address}"))
    run = MlflowClient(tracker.uri).get_run(run_id)
    shown = json.dumps(run.to_dictionary()) + run.inputs.dataset_inputs[0].dataset.source
    assert warned == [] and shown.count("https://host/rows.jsonl") >= 4
    assert "PASS" not in shown and "SIGNED" not in shown


STARTS = """
import sys
from retort.store import open_store
from retort.tracking import ReleasedStudent, Tracker
name, store = sys.argv[1], open_store(sys.argv[2])
said = []
tracker = Tracker(store, said.append)
sys.stdin.readline()
tracker.open_job(name, {}, "none")
version = tracker.register(ReleasedStudent(name, store.uri + "/" + name, True, "t", "c"))
print(version, tracker.failures, said)
"""


def test_first_runs_that_start_at_once_make_one_database_and_all_register(tmp_path):
    store = tmp_path / "store"
    (store).mkdir()
    (store / "mlflow.db.12345678.part").write_bytes(b"left by a process that was killed")
    names = ["one", "two"]
    command = [sys.executable, "-c", STARTS]
    running = [
        subprocess.Popen(
            [*command, name, str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for name in names
    ]
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=200)[0] for process in running]
    assert [output.split()[:2] for output in outputs] == [["1", "0"]] * 2, outputs
    waits = [output for output in outputs if "another run makes MLflow's database" in output]
    assert all("warning: MLflow" not in output for output in outputs) and len(waits) <= 1
    client = connect(f"sqlite:///{store}/mlflow.db")
    assert {model.name for model in client.search_registered_models()} == set(names)
    assert (store / "mlflow.db").stat().st_mode & 0o777 == 0o600
    assert not list(store.glob("*.part"))


def test_an_empty_database_that_a_killed_process_left_is_made_again(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"")
    warned: list[str] = []
    tracker = Tracker(open_store(str(tmp_path)), warned.append)
    tracker.open_job("job", {}, "none")
    assert warned == [] and tracker.parent_id


def test_a_store_on_s3_has_its_database_in_a_local_folder_that_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    warned: list[str] = []
    store = open_store("s3://bucket/prefix")
    tracker = Tracker(store, warned.append)
    tracker.open_job("job", {}, "none")
    path = Path(tracking_uri(store).removeprefix("sqlite:///"))
    assert warned == [] and path.is_file() and path.is_relative_to(tmp_path / ".retort")


EMBEDDED = """
import asyncio, sys
from flows import embedded
from retort.store import open_store
embedded.use_settings(embedded.SETTINGS)
async def ask():
    from prefect import get_client
    async with get_client() as client:
        print((await client.api_healthcheck()) or "answers")
with embedded.server(open_store(sys.argv[1]).local_state()) as wait:
    wait()
    asyncio.run(ask())
"""


def test_the_embedded_prefect_of_a_store_on_s3_starts_from_an_empty_home(tmp_path):
    (tmp_path / "home").mkdir()
    env = environment(HOME=str(tmp_path / "home"))
    env = {key: value for key, value in env.items() if not key.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED, "s3://bucket/prefix"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.stdout.split() == ["answers"], done.stderr
    assert "Failed to create" not in done.stderr
    (state,) = (tmp_path / ".retort").iterdir()
    assert state.stat().st_mode & 0o777 == 0o700 and not list((tmp_path / "home").iterdir())


class EndedError(BaseException):
    """SIGTERM came."""


def test_a_signal_waits_until_a_write_to_the_database_is_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    warned, amid = [], []
    tracker = Tracker(open_store(str(tmp_path)), warned.append)
    tracker.open_job("job", {}, "none")
    run = tracker.open_stage("train", {}, {})

    def end(number, frame):
        while frame:
            amid.extend(name for name in [frame.f_code.co_filename] if "sqlalchemy" in name)
            frame = frame.f_back
        raise EndedError

    def write_until_ended(number):
        timer = threading.Timer(0.01 * number, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        for step in range(10_000):
            tracker.dataset(run, f"rows-{number}-{step}", "file:///rows", "digest")

    before = signal.signal(signal.SIGTERM, end)
    try:
        for number in range(8):
            with pytest.raises(EndedError):
                write_until_ended(number)
    finally:
        signal.signal(signal.SIGTERM, before)
    tracker.fail(run, EndedError())
    assert (amid, warned) == ([], [])
    client = MlflowClient(tracker.uri)
    assert client.get_run(run).data.tags["retort.error"] == ""
