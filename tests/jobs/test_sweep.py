"""A sweep of a tiny job: the same after kill -9, no teacher asked, and its winner a plain job."""

import math
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from retort.errors import DataError
from retort.jobs import trials
from retort.jobs.run import JobRun
from retort.jobs.sweep import Found, search
from retort.spec import load
from retort.store import Folder, InputFolder, open_store
from tests.support.tiny import write_job

# Of 60 steps a trial has made 15 at the first rung, in the third pass of six.
SWEEP = {
    "over": {
        "train.learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
        "train.batch_size": [4, 8],
        "curate.filters": [["non_empty"], ["non_empty", {"name": "length", "max_tokens": 11}]],
    },
    "trials": 5,
    "rungs": 2,
    "reduction_factor": 4,
    "drawn_together": 2,
    "seed": 3,
}


def write(folder: Path, **knobs) -> Path:
    path = write_job(folder, engine="echo", num_epochs=6)
    raw = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(raw | {"sweep": SWEEP | knobs}))
    return path


def job_of(path: Path, store: Path, listen=lambda name, event: None) -> JobRun:
    return JobRun(load(path)[0], open_store(str(store)), [], listen, "sweep")


def ask(path: Path, store: Path) -> None:
    job, made = job_of(path, store), {}
    for name in ("prepare", "generate", "curate"):
        made[name] = trials.cached_or_made(job, name, dict(made))


def swept(path: Path, store: Path, listen=lambda name, event: None) -> Found:
    job = job_of(path, store, listen)
    job.open({})
    return search(job, trials.stored(job))


def swept_and_killed(path: Path, store: Path, name: str) -> None:
    """For a child: kills itself once the training of that name reports its losses."""
    os.setsid()

    def listen(stage, event) -> None:
        if stage == name and event["kind"] == "metrics":
            os.killpg(0, signal.SIGKILL)

    swept(path, store, listen)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    path = write(folder)
    ask(path, folder / "store")
    seen = []
    found = swept(path, folder / "store", lambda name, event: seen.append((name, event)))
    return path, folder / "store", found, seen


def test_losers_end_early_and_the_winner_goes_on_to_the_end(undisturbed):
    _, _, found, seen = undisturbed
    assert [len(each.rungs) for each in found.candidates].count(1) == 3
    assert found.candidates[0].values == {}
    # 5 trials make a quarter of their steps and a quarter of these to cool down, and 2 the others.
    assert found.cost == pytest.approx((5 * 0.25 * 0.25 + 3 * 0.25 + 2 * 1) / 5)
    for each in found.candidates:
        made = InputFolder(each.rungs[0].train.uri).read_manifest()["facts"]["num_steps"]
        assert 7 <= made <= 18
        assert each.rungs[0].curve[-1]["step"] == made + math.ceil(made / 4)
    goes_on = [e["text"] for name, e in seen if e["kind"] == "note" and "rung-2" in name]
    assert sum(text.startswith("continuing after step") for text in goes_on) == 2
    assert not any(name == "generate" and e["kind"] == "started" for name, e in seen)


def test_the_winner_is_a_job_file_whose_student_is_in_the_cache(undisturbed, tmp_path):
    _, store, found, _ = undisturbed
    path = tmp_path / "winner.yaml"
    path.write_bytes(Folder(f"{store}/jobs/tiny").read("winner.yaml"))
    spec = load(path)[0]
    assert spec == found.spec and spec.sweep is None
    job = job_of(path, store)
    inputs = trials.stored(job)
    cached = job.cached("train", inputs)
    assert cached == found.winner.rungs[-1].train
    # A plain training of the file, in a store that knows nothing of the sweep.
    ask(path, tmp_path / "store")
    plain = job_of(path, tmp_path / "store")
    alone = trials.cached_or_made(plain, "train", trials.stored(plain))
    weights = [InputFolder(each.uri).read("student/model.safetensors") for each in (cached, alone)]
    assert alone.name == cached.name and weights[0] == weights[1]


def test_the_same_command_after_kill_9_finds_the_same(undisturbed, tmp_path):
    path, done, found, _ = undisturbed
    store = tmp_path / "store"
    # What a sweep has stored that is killed as its winner makes its last steps.
    shutil.copytree(done, store)
    last = f"train-{found.winner.name}-rung-2"
    shutil.rmtree(store / f"artifacts/train/{found.winner.rungs[-1].train.name}")
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=swept_and_killed, args=(path, store, last))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    seen = []
    again = swept(path, store, lambda name, event: seen.append((name, event["kind"])))
    trained = [name for name, kind in seen if kind == "done" and name.startswith("train-")]
    assert trained == [last]
    without_time = [
        {**found_.as_json(), "trials": [(c.values, c.scores) for c in found_.candidates]}
        for found_ in (found, again)
    ]
    assert without_time[0] == without_time[1]
    students = [
        InputFolder(each.winner.rungs[-1].train.uri).read("student/model.safetensors")
        for each in (found, again)
    ]
    assert students[0] == students[1]


def test_a_trial_that_cannot_be_trained_is_out_and_the_others_go_on(undisturbed, tmp_path):
    _, done, _, _ = undisturbed
    over = {"train.learning_rate": [1e30], "train.num_epochs": [1]}
    path = write(tmp_path, over=over, trials=2, rungs=1)
    shutil.copytree(done, tmp_path / "store")
    found = swept(path, tmp_path / "store")
    assert found.winner.values == {} and found.candidates[1].rungs == []
    assert "lower train.learning_rate (now 1e+30)" in (found.candidates[1].failed or "")
    client = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    name = "attributes.run_name = 'train-trial-01-rung-1'"
    newest = client.search_runs([experiment], name, order_by=["attributes.start_time DESC"])[0]
    assert newest.info.status == "FAILED"


def test_trials_are_runs_below_one_parent_with_the_knobs_that_were_tried(undisturbed):
    _, store, found, _ = undisturbed
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`retort.stage` = 'sweep'")
    assert parent.info.status == "FINISHED"
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`retort.trial` LIKE '%'"
    children = {run.info.run_name: run.data for run in client.search_runs([experiment], below)}
    assert children.keys() == {each.name for each in found.candidates}
    for each in found.candidates:
        data = children[each.name]
        assert data.params.keys() == SWEEP["over"].keys()
        assert data.metrics["rungs"] == len(each.rungs)
        assert data.metrics["validation_accuracy"] == each.scores[-1]


def test_the_command_prints_the_trials_and_writes_the_winner(undisturbed, retort, tmp_path):
    path, whole, found, _ = undisturbed
    out, store = tmp_path / "best.yaml", tmp_path / "store"
    # The last rung is made again, as tasks of a flow: two trainings side by side.
    shutil.copytree(whole, store)
    last = [each.rungs[-1].train.name for each in found.candidates if len(each.rungs) == 2]
    for name in last:
        shutil.rmtree(store / f"artifacts/train/{name}")
    done = retort("sweep", path, "--store", store, "--out", out)
    assert done.returncode == 0, done.stderr
    assert load(out)[0] == found.spec
    assert f"{found.winner.name} is best on validation" in done.stdout
    assert f"{found.cost:.1%} of the steps of 5 whole trainings, and no teacher" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "trial-0" in line and "│" in line]
    assert len(lines) == 5 and found.winner.name in "".join(lines[:2])
    # At 80 columns: no name is broken within a word, and values are those of a job's file.
    assert "the job as it is" in done.stdout and "train.learning_rate:" in done.stdout
    assert "[non_empty," in done.stdout and max(map(len, lines)) <= 80
    assert "train-trial-04-rung-1: cached" in done.stderr
    assert len(re.findall(r"^train-\S+-rung-2: continuing", done.stderr, re.M)) == 2
    assert len(re.findall(r"^train-\S+: started", done.stderr, re.M)) == 2
    # A job without the section is told what to write.
    plain = retort("sweep", out, "--store", store)
    assert plain.returncode == 2 and "no section sweep" in plain.stderr


def test_a_sweep_without_stored_answers_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="retort run SPEC"):
        swept(write(tmp_path), tmp_path / "store")
