"""A whole job that is killed or interrupted loses nothing, and leaves nothing running."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
from mlflow import MlflowClient

from retort.store import Folder, Store
from tests.conftest import BIN, environment
from tests.support.tiny import write_job


def kill_when(job: Path, store: Path, prefect_url: str, pattern: str, *arguments: str) -> str:
    """Starts the job, kills its whole process group as soon as a file appears; returns stderr."""
    process = subprocess.Popen(
        [str(BIN / "retort"), "run", str(job), "--store", str(store), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(PREFECT_API_URL=prefect_url),
    )
    for _ in range(6000):
        if list(store.glob(pattern)) or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() is None, f"ended before {pattern}: {process.stderr.read()}"
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[1]


def test_kill_9_in_generate_train_and_evaluate_loses_nothing_that_was_finished(
    tmp_path, retort, prefect_url
):
    job = write_job(tmp_path, engine="transformers")
    knobs = [
        "--set=generate.runtime.max_num_seqs=1",
        "--set=generate.max_tokens=64",
        "--set=train.num_epochs=20",
        "--set=train.runtime.checkpoint_seconds=0",
    ]
    store = tmp_path / "store"
    kill_when(job, store, prefect_url, "ledger/*/segments/*.jsonl", *knobs)
    segment = next(store.glob("ledger/*/segments/*.jsonl"))
    written = segment.read_bytes()
    assert not list(store.glob("artifacts/generate/*/manifest.json"))

    kill_when(job, store, prefect_url, "artifacts/train/*/scratch/step-*.safetensors", *knobs)
    assert segment.read_bytes() == written
    assert all_lines(store) == 56
    assert not list(store.glob("artifacts/train/*/manifest.json"))

    kill_when(job, store, prefect_url, "artifacts/evaluate/*/measures-teacher-1.json", *knobs)
    measured = next(store.glob("artifacts/evaluate/*/measures-teacher-1.json")).stat().st_mtime_ns

    done = retort("run", job, "--store", store, "--json", *knobs)
    assert done.returncode in (0, 3), done.stderr
    assert "continuing" in done.stderr
    teacher = next(store.glob("artifacts/evaluate/*/measures-teacher-1.json"))
    assert teacher.stat().st_mtime_ns == measured

    # The same answers: a signal's last bit may differ from process to process.
    shutil.copytree(store / "ledger", tmp_path / "other/ledger")
    undisturbed = retort("run", job, "--store", tmp_path / "other", "--json", *knobs)
    killed, whole = json.loads(done.stdout), json.loads(undisturbed.stdout)
    assert killed["fingerprints"] == whole["fingerprints"]
    for stage in ("prepare", "generate", "curate"):
        assert digest(tmp_path / "other", killed, stage) == digest(store, killed, stage)
    student = "student/model.safetensors"
    weights = [Folder(report["artifacts"]["train"]).read(student) for report in (killed, whole)]
    assert weights[0] == weights[1]
    for role in ("teacher", "base", "student"):
        scores = [report["models"][role]["metrics"] for report in (killed, whole)]
        assert scores[0] == scores[1]


def all_lines(store: Path) -> int:
    segments = store.glob("ledger/*/segments/*.jsonl")
    return sum(segment.read_bytes().count(b'{"key":') for segment in segments)


def digest(store: Path, report: dict, stage: str) -> str:
    artifact = Store(str(store)).artifact(stage, report["fingerprints"][stage]).finished()
    assert artifact
    return artifact.digest


def test_an_interrupt_ends_the_children_and_says_that_the_work_is_kept(tmp_path, prefect_url):
    job = write_job(tmp_path, engine="echo")
    store = tmp_path / "store"
    process = subprocess.Popen(
        [
            str(BIN / "retort"),
            "run",
            str(job),
            "--store",
            str(store),
            "--set=train.num_epochs=4000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PREFECT_API_URL=prefect_url),
        # A shell that runs the tests in the background has its children ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(3000):
        if list(store.glob("artifacts/train/*/mask_audit.txt")) or process.poll() is not None:
            break
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; finished work is kept" in said
    assert "Traceback" not in said
    assert children
    assert not [child for child in children if alive(child)]
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    status = {
        r.info.run_name: r.info.status for r in client.search_runs([experiment.experiment_id])
    }
    assert (status["train"], status["tiny"]) == ("KILLED", "KILLED")
    assert status["generate"] == "FINISHED"


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
