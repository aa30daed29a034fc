"""Jobs from Python without a server: started, watched, ended, killed, and gone on with."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from retort import DistillationJob, MLClient, RetortClient
from retort.errors import SpecError, StageError
from retort.spec import load
from tests.support import command
from tests.support.servers import ROOT, environment
from tests.support.tiny import save_model, write_job, write_rows

PATIENCE_SECONDS = 120


@pytest.fixture
def client(tmp_path, monkeypatch, prefect_url):
    """A client whose jobs run here; their flows are seen by the session's server."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(PREFECT_API_URL=prefect_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return RetortClient(store="store", local=True)


def until(client, name, stage):
    """Waits until a job has come to a stage."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := client.jobs.get(name)).stage != stage:
        assert not state.is_over and time.monotonic() < deadline, state
        time.sleep(0.1)
    return state


def long_job(folder):
    """A job whose training takes longer than any test waits."""
    return load(write_job(folder, "echo", num_epochs=100_000))[0]


def test_a_job_is_started_once_killed_gone_on_with_watched_and_its_report_read(client, tmp_path):
    job = long_job(tmp_path)
    first = client.jobs.create_or_update(job)
    assert client.jobs.create_or_update(job).run_id == first.run_id
    short = job.model_copy(update={"train": job.train.model_copy(update={"num_epochs": 1})})
    with pytest.raises(StageError, match="runs with another spec; cancel it first"):
        client.jobs.create_or_update(short)
    os.killpg(int(until(client, "tiny", "train").run_id), signal.SIGKILL)
    while not (crashed := client.jobs.get("tiny")).is_over:
        time.sleep(0.1)
    assert crashed.status == "crashed" and "to continue it" in (crashed.error or "")
    client.jobs.create_or_update(short)
    lines = list(client.jobs.stream("tiny"))
    assert "generate: cached" in lines and any(line.startswith("train: ") for line in lines)
    ended = client.jobs.get("tiny")
    assert (ended.status, ended.error, ended.stage) == ("completed", None, None)
    report = client.jobs.report("tiny")
    assert report.content["name"] == "tiny"
    assert report.content["comparison"]["metric"] in report._repr_html_()
    assert [job.name for job in client.jobs.list()] == ["tiny"]


def test_a_cancelled_job_ends_with_its_processes_and_keeps_what_is_finished(client, tmp_path):
    client.jobs.create_or_update(long_job(tmp_path))
    group = int(until(client, "tiny", "train").run_id)
    assert client.jobs.cancel("tiny").status == "cancelled"
    assert subprocess.run(["pgrep", "-g", str(group)], stdout=-3, check=False).returncode == 1
    assert list(Path("store/artifacts/curate").glob("*/manifest.json"))
    assert client.jobs.cancel("tiny").status == "cancelled"


def test_a_job_in_the_words_of_other_tools(client, tmp_path):
    save_model(tmp_path / "teacher"), save_model(tmp_path / "base")
    rows = [str(write_rows(tmp_path / f"{name}.jsonl", 4, 0).name) for name in ("train", "test")]
    job = DistillationJob(
        teacher_model="./teacher",
        student_model="./base",
        training_data=rows[0],
        test_data=rows[1],
        task_type="math",
        hyperparameters={"learning_rate": 2e-5, "num_epochs": 3, "temperature": 0.7},
    )
    assert job.spec.name == "base-distilled"
    assert job.spec.generate.teacher == str(tmp_path / "teacher")
    assert job.spec.train.losses[1].temperature == job.spec.generate.temperature == 0.7
    with pytest.raises(SpecError, match="learning_rates"):
        DistillationJob("t", "s", "d", hyperparameters={"learning_rates": 1}).spec  # noqa: B018


def test_the_documents_lines_of_python_start_a_job(client, tmp_path, capsys):
    page = (ROOT / "docs/operations.md").read_text()
    (lines,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "RetortClient()" in b)
    for name in ("teacher", "base"):
        save_model(tmp_path / "models" / name)
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.jsonl", 4, 0)
    exec(lines.replace("RetortClient()", "RetortClient(store='store', local=True)"), {})
    assert capsys.readouterr().out.strip() == "running"
    assert client.jobs.cancel("base-distilled").is_over


def test_a_job_that_cannot_run_says_why_and_an_unknown_one_what_there_is(client, tmp_path):
    spec = load(write_job(tmp_path, "echo"))[0]
    Path(spec.prepare.train).unlink()
    client.jobs.create_or_update(spec)
    failed = client.jobs.wait("tiny")
    assert failed.status == "failed" and "train.jsonl" in (failed.error or "")
    with pytest.raises(SpecError, match=r"job tiny failed: .*train\.jsonl.*no model 'tiny'"):
        client.models.evaluate("tiny", "rows.jsonl")
    with pytest.raises(SpecError, match="there are: tiny"):
        client.jobs.get("tinny")
    with pytest.raises(SpecError, match="has no report yet"):
        client.jobs.report("tiny")


def test_the_command_line_says_the_same_where_there_is_no_server(client, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")

    def retort(*words):
        return command.run(*words, "--store", "store", timeout=PATIENCE_SECONDS)

    write_job(tmp_path, "echo")
    assert retort("submit", "job.yaml").stdout.startswith("tiny running process ")
    assert "running" in retort("list").stdout
    assert retort("cancel", "tiny").stdout.strip().startswith("tiny ")
    assert retort("logs", "tiny").returncode == 0
    assert client.jobs.get("tiny").is_over
    unknown = retort("status", "nobody")
    assert unknown.returncode == 2 and "there are: tiny" in unknown.stderr


def test_a_client_takes_its_store_and_servers_from_a_file_and_the_environment(
    tmp_path, monkeypatch
):
    for name in ("RETORT_STORE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert MLClient is RetortClient
    assert MLClient.from_config().jobs.list() == []
    Path("retort.yaml").write_text("store: work/here\nmlflow: http://127.0.0.1:9\n")
    MLClient.from_config().jobs.create_or_update(write_job(tmp_path / "job", "echo"))
    (state,) = MLClient.from_config("retort.yaml").jobs.list()
    assert state.store == str(tmp_path / "work/here")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert RetortClient(store=state.store, local=True).jobs.cancel("tiny").is_over
    monkeypatch.setenv("RETORT_STORE", str(tmp_path / "elsewhere"))
    assert MLClient.from_config().jobs.list() == []
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(StageError, match=r"127\.0\.0\.1:9"):
        MLClient.from_config().jobs.list()


@pytest.mark.parametrize(
    ("text", "said"),
    [("sotre: x", "did you mean 'store'"), ("store: 7", "must be a text"), ("- x", "a mapping")],
)
def test_a_file_of_a_client_that_is_wrong_says_what_is_allowed(text, said, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SpecError, match=rf"mine\.yaml.*{said}"):
        MLClient.from_config(tmp_path / "mine.yaml")
