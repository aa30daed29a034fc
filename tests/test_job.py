"""The whole job in small, on real parts: vLLM, Prefect, MLflow, S3 over HTTP, and kill -9."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from retort.spec import STAGES
from retort.storage import Folder, Store
from tests.conftest import BIN, ask, environment
from tests.tiny import write_job

MEASURES = ("model", "parameters", "weights_bytes", "peak_memory_bytes", "tokens_per_second")
COMPARED = ("retention", "gain", "latency_reduction", "memory_reduction", "throughput_ratio")


@pytest.fixture(scope="module")
def first(tmp_path_factory, prefect_url):
    """A job with vLLM run once to its report, with --json; base and teacher are random."""
    folder = tmp_path_factory.mktemp("job")
    job = write_job(folder, engine="vllm")
    done = subprocess.run(
        [str(BIN / "retort"), "run", str(job), "--store", str(folder / "store"), "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(PREFECT_API_URL=prefect_url),
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr
    return job, folder / "store", done


def test_json_is_the_only_thing_on_stdout_and_has_every_key(first):
    report = json.loads(first[2].stdout)
    assert {"name", "task_type", "comparison", "gate"} <= set(report)
    for role in ("teacher", "base", "student"):
        model = report["models"][role]
        assert all(model[name] for name in MEASURES)
        assert 0 < model["latency_seconds"]["p50"] <= model["latency_seconds"]["p95"]
        assert set(model["metrics"]["accuracy"]) == {"value", "low", "high", "n"}
    assert set(COMPARED) <= set(report["comparison"])
    assert all({"required", "measured", "passed"} <= set(c) for c in report["gate"]["checks"])
    assert set(report["fingerprints"]) == set(report["artifacts"]) == set(STAGES)
    assert report["prefect"]["flow_run_id"]
    assert report["mlflow"]["run_id"]


def test_exit_code_3_says_that_the_gate_refused(first):
    report = json.loads(first[2].stdout)
    assert first[2].returncode == (0 if report["gate"]["passed"] else 3)


def test_mlflow_has_a_parent_and_a_child_a_stage_with_curves_and_lineage(first):
    report = json.loads(first[2].stdout)
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    parent = client.get_run(report["mlflow"]["run_id"])
    assert parent.data.tags["prefect.flow_run_id"] == report["prefect"]["flow_run_id"]
    runs = client.search_runs([parent.info.experiment_id])
    children = {
        r.info.run_name: r
        for r in runs
        if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert set(children) == set(STAGES)
    assert all(r.info.status == "FINISHED" for r in [parent, *children.values()])
    assert "learning_rate" in children["train"].data.params
    assert len(client.get_metric_history(children["train"].info.run_id, "forward_kl")) >= 1
    told = client.get_run(children["generate"].info.run_id).data.metrics
    assert told["responses.truncated"] + told.get("responses.accepted", 0) == 56
    assert told["parity.kl_nats"] < 5e-3
    assert told["output_tokens"] > 56
    inputs = {i.dataset.name for i in children["train"].inputs.dataset_inputs}
    assert inputs == {"prepare", "generate", "curate"}
    files = {i.dataset.name for i in children["prepare"].inputs.dataset_inputs}
    assert files == {"train", "validation", "test"}
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"report.json", "report.md"} <= artifacts


def test_the_model_version_points_to_the_released_folder_with_the_gate_on_it(first):
    report = json.loads(first[2].stdout)
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    (version,) = client.search_model_versions(f"name='{report['name']}'")
    assert version.source == f"{report['artifacts']['release']}/model"
    assert version.tags["retort.gate"] in ("passed", "refused")
    assert (Path(version.source) / "model.safetensors").is_file()


def test_the_released_student_loads_and_answers_as_in_the_evaluation(first):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = json.loads(first[2].stdout)
    folder = f"{report['artifacts']['release']}/model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = Folder(report["artifacts"]["evaluate"]).read("answers-student.jsonl").splitlines()
    asked = Folder(report["artifacts"]["prepare"]).read("test-00000.jsonl").splitlines()
    by_id = {row["id"]: row["messages"] for row in map(json.loads, asked)}
    same = 0
    for answer in map(json.loads, answers[:8]):
        text = tokenizer.apply_chat_template(
            by_id[answer["id"]], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=len(answer["token_ids"]))
        same += out[0, ids.shape[1] :].tolist() == answer["token_ids"]
    assert same >= 7  # a tie between two tokens may fall either way in another engine


def test_the_same_job_again_is_cached_and_prefect_shows_it(first, retort, prefect_url):
    job, store, before = first
    again = retort("run", job, "--store", store, "--json")
    assert again.returncode == before.returncode, again.stderr
    was, now = json.loads(before.stdout), json.loads(again.stdout)
    assert now["fingerprints"] == was["fingerprints"]
    assert all(f"{stage}: cached" in again.stderr for stage in STAGES)
    flow_run = {"flow_runs": {"id": {"any_": [now["prefect"]["flow_run_id"]]}}}
    runs = ask(f"{prefect_url}/task_runs/filter", flow_run)
    assert {run["name"] for run in runs} == set(STAGES)
    assert {run["state_name"] for run in runs} == {"Cached"}


def test_why_says_cached_or_which_ingredient_changed(first, retort):
    job, store, _ = first
    same = retort("why", job, "--store", store)
    assert same.stdout.count("cached") == len(STAGES)
    changed = retort("why", job, "--store", store, "--set", "train.seed=7").stdout.splitlines()
    lines = dict(line.split(maxsplit=1) for line in changed)
    assert lines["curate"] == "cached"
    assert "knobs.seed: 0 -> 7" in lines["train"]
    assert "runs" in lines["evaluate"]


def test_force_runs_a_stage_again_and_those_after_it_only_if_it_came_out_different(first, retort):
    job, store, _ = first
    forced = retort("run", job, "--store", store, "--force", "curate")
    assert "curate: done" in forced.stderr
    assert "train: cached" in forced.stderr


def test_the_same_job_passes_on_s3_over_http(tmp_path, retort, s3):
    job = write_job(tmp_path, engine="transformers")
    arguments = ("run", job, "--store", "s3://retort/jobs/one", "--json")
    done = retort(*arguments, **s3)
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    assert report["artifacts"]["release"].startswith("s3://retort/jobs/one/artifacts/release/")
    again = retort(*arguments, **s3)
    assert all(f"{stage}: cached" in again.stderr for stage in STAGES)
    assert s3["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    assert not list(tmp_path.glob("s3:*"))


@pytest.mark.parametrize("engine", ["openai", "anthropic"])
def test_a_teacher_behind_an_endpoint_is_learned_from_and_compared(
    tmp_path, retort, vllm_url, engine
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
    assert report["models"]["student"]["engine"] == "transformers"
    assert "unknown" in (tmp_path / "store/jobs/tiny/report.md").read_text()
    manifest = Folder(report["artifacts"]["generate"]).manifest()["facts"]
    assert manifest["num_responses"] == 56
    assert manifest["spending"]["cost"] == pytest.approx(
        manifest["spending"]["output_tokens"] * 5e-6
    )
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"a-secret" in data for data in kept)
    assert "a-secret" not in done.stdout + done.stderr


def test_rows_shows_the_answers_by_state_and_why_says_what_would_be_asked(first, retort):
    job, store, _ = first
    every = retort("rows", job, "--store", store, "--json").stdout.splitlines()
    assert len(every) == 56
    assert all(json.loads(row)["messages"][-1]["role"] == "assistant" for row in every)
    cut = retort("rows", job, "--store", store, "--state", "truncated")
    assert f"{len(cut.stdout.splitlines())} truncated" in cut.stderr
    asked = retort("why", job, "--store", store, "--set", "generate.max_tokens=13").stdout
    assert f"asked: {len(cut.stdout.splitlines())} truncated" in asked
    asked = retort("why", job, "--store", store, "--set", "generate.temperature=0.5").stdout
    assert "asked: 56 new (asked in another manner: seed: null -> 0; temperature: 0.0 -> 0.5" in (
        asked
    )


def test_prefect_shows_how_far_a_stage_is(first, prefect_url):
    run_id = json.loads(first[2].stdout)["prefect"]["flow_run_id"]
    of_run = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    found = {a["key"]: a for a in ask(f"{prefect_url}/artifacts/filter", of_run)}
    assert found["generate-progress"]["type"] == "progress"
    assert found["generate-progress"]["data"] == 100.0
    assert "56 of 56 responses" in found["generate-progress"]["description"]


def test_a_mlflow_server_gets_runs_and_a_model_it_can_serve(tmp_path, retort, mlflow_url):
    job = write_job(tmp_path, engine="transformers")
    done = retort(
        "run", job, "--store", tmp_path / "store", "--json", MLFLOW_TRACKING_URI=mlflow_url
    )
    assert done.returncode in (0, 3), done.stderr
    assert "warning: MLflow" not in done.stderr
    report = json.loads(done.stdout)
    client = MlflowClient(mlflow_url)
    assert client.get_run(report["mlflow"]["run_id"]).info.status == "FINISHED"
    (version,) = client.search_model_versions(f"name='{report['name']}'")
    assert version.tags["retort.source"] == f"{report['artifacts']['release']}/model"


def test_a_tracking_server_that_is_down_does_not_stop_the_job(tmp_path, retort):
    job = write_job(tmp_path, engine="transformers")
    down = "http://someone:a-secret-that-must-not-leak@127.0.0.1:9"
    done = retort("run", job, "--store", tmp_path / "store", "--json", MLFLOW_TRACKING_URI=down)
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr.count("warning: MLflow") == 1
    assert "a-secret" not in done.stdout + done.stderr
    kept = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"a-secret" in data for data in kept)


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
        "--set=generate.max_tokens=96",
        "--set=train.num_epochs=40",
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

    kill_when(job, store, prefect_url, "artifacts/evaluate/*/measures-teacher.json", *knobs)
    measured = next(store.glob("artifacts/evaluate/*/measures-teacher.json")).stat().st_mtime_ns

    done = retort("run", job, "--store", store, "--json", *knobs)
    assert done.returncode in (0, 3), done.stderr
    assert "continuing" in done.stderr
    teacher = next(store.glob("artifacts/evaluate/*/measures-teacher.json"))
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
    return sum(len(segment.read_bytes().splitlines()) for segment in segments)


def digest(store: Path, report: dict, stage: str) -> str:
    artifact = Store(str(store)).artifact(stage, report["fingerprints"][stage]).finished()
    assert artifact
    return artifact.digest


def test_an_interrupt_ends_the_children_and_says_that_the_work_is_kept(tmp_path, prefect_url):
    job = write_job(tmp_path, engine="transformers")
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
