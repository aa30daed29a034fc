"""The whole job with parts of it elsewhere: its store, its teacher, its tracking server."""

import json
import os
import signal
import subprocess
import time
from typing import Any

import pytest
from mlflow import MlflowClient

from retort.store import Folder
from tests.conftest import BIN, ask, environment, free_port
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import write_job


def test_the_same_job_passes_on_s3_over_http(tmp_path, retort, s3):
    job = write_job(tmp_path, engine="transformers")
    # The models come from the store and are counted; test_job.py has them answer too.
    arguments = ("run", job, "--store", "s3://retort/jobs/one", "--set=evaluate.engine=echo")
    arguments += ("--json",)
    done = retort(*arguments, **s3)
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    assert report["artifacts"]["release"].startswith("s3://retort/jobs/one/artifacts/release/")
    assert report["models"]["student"]["parameters"] == report["models"]["base"]["parameters"] > 0
    again = retort(*arguments, **s3)
    assert all(f"{stage}: cached" in again.stderr for stage in EVERY_STAGE)
    assert s3["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    assert not list(tmp_path.glob("s3:*"))


@pytest.mark.parametrize(
    ("engine", "students"), [("openai", "transformers"), ("anthropic", "echo")]
)
def test_a_teacher_behind_an_endpoint_is_learned_from_and_compared(
    tmp_path, retort, vllm_url, engine, students
):
    job = write_job(tmp_path, engine="transformers")
    knobs = {
        "teacher": "tiny",
        "engine": engine,
        "endpoint": vllm_url,
        "api_key_env": "TEACHER_KEY",
        "top_k": "0",
        "max_tokens": "20",
        "max_tokens_retry": "40",
        "spending.price_per_million_output_tokens": "5",
    }
    sets = [f"--set=generate.{name}={value}" for name, value in knobs.items()]
    sets.append(f"--set=evaluate.engine={students}")
    arguments = ("run", job, "--store", tmp_path / "store", *sets)
    secret = {"TEACHER_KEY": "a-secret-that-must-not-leak"}
    refused = retort(*arguments)
    assert refused.returncode == 2
    assert "TEACHER_KEY" in refused.stderr
    done = retort(*arguments, "--json", **secret)
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    assert report["models"]["teacher"]["engine"] == engine
    assert report["models"]["teacher"]["parameters"] is None
    assert report["models"]["student"]["engine"] == students
    assert "unknown" in (tmp_path / "store/jobs/tiny/report.md").read_text()
    manifest = Folder(report["artifacts"]["generate"]).manifest()["facts"]
    assert manifest["num_responses"] == 56
    assert manifest["spending"]["cost"] == pytest.approx(
        manifest["spending"]["output_tokens"] * 5e-6
    )
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"a-secret" in data for data in kept)
    assert "a-secret" not in done.stdout + done.stderr


def test_a_mlflow_server_gets_runs_and_a_model_it_can_serve(tmp_path, retort, mlflow_url):
    job = write_job(tmp_path, engine="echo")
    # Other tests register models at this server, too.
    arguments = ("run", job, "--store", tmp_path / "store", "--json", "--set=name=served-by-mlflow")
    done = retort(*arguments, MLFLOW_TRACKING_URI=mlflow_url)
    assert done.returncode in (0, 3), done.stderr
    assert "warning: MLflow" not in done.stderr
    report = json.loads(done.stdout)
    client = MlflowClient(mlflow_url)
    assert client.get_run(report["mlflow"]["run_id"]).info.status == "FINISHED"
    (version,) = client.search_model_versions(f"name='{report['name']}'")
    assert version.tags["retort.source"] == f"{report['artifacts']['release']}/model"
    # The server holds no weights; those of the store are served.
    assert not list(client.list_artifacts(report["mlflow"]["run_id"], "model"))
    port = free_port()
    command = f"models serve --env-manager local --host 127.0.0.1 --port {port}"
    command += f" --model-uri models:/{version.name}/{version.version}"
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    server = subprocess.Popen(
        [BIN / "mlflow", *command.split()],
        env=environment(MLFLOW_TRACKING_URI=mlflow_url, PATH=path),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        reply = replied(server, f"http://127.0.0.1:{port}/invocations")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    (answer,) = reply if isinstance(reply, list) else [reply]
    assert answer["choices"][0]["message"]["role"] == "assistant"


def replied(server: subprocess.Popen, url: str) -> Any:
    """The reply of a served model to a chat, once it listens."""
    chat = {"messages": [{"role": "user", "content": "1 + 2 = ?"}], "max_tokens": 4}
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(url, chat)
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)


def test_a_tracking_server_that_is_down_does_not_stop_the_job(tmp_path, retort):
    job = write_job(tmp_path, engine="echo")
    down = "http://someone:a-secret-that-must-not-leak@127.0.0.1:9"
    done = retort("run", job, "--store", tmp_path / "store", "--json", MLFLOW_TRACKING_URI=down)
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr.count("tracking is off for this run") == 1
    assert "a-secret" not in done.stdout + done.stderr
    kept = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"a-secret" in data for data in kept)
