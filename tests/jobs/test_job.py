"""The whole job in small, on real parts: vLLM, Prefect, MLflow, S3 over HTTP, and kill -9."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from retort.store import Folder
from tests.conftest import ask, environment
from tests.support import command
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import write_job

MEASURES = ("model", "parameters", "weights_bytes", "peak_memory_bytes", "tokens_per_second")
COMPARED = ("retention", "gain", "latency_reduction", "memory_reduction", "throughput_ratio")


@pytest.fixture(scope="module")
def first(tmp_path_factory, prefect_url):
    """A job with vLLM run once to its report, with --json; base and teacher are random."""
    folder = tmp_path_factory.mktemp("job")
    job = write_job(folder, engine="vllm")
    done = command.run(
        "run", str(job), "--store", str(folder / "store"), "--json", PREFECT_API_URL=prefect_url
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
    assert set(report["fingerprints"]) == set(report["artifacts"]) == set(EVERY_STAGE)
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
    assert set(children) == set(EVERY_STAGE)
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
    assert version.source == report["artifacts"]["release"]
    assert version.tags["retort.gate"] in ("passed", "refused")
    assert (Path(version.source) / "model/model.safetensors").is_file()
    said = loaded_by_mlflow(report["mlflow"]["tracking_uri"], f"models:/{report['name']}/1")
    assert said["transformers"] and said["pyfunc"] and said["messages"]


LOADED = """
import json, sys, mlflow
address = sys.argv[1]
pipeline = mlflow.transformers.load_model(address)
model = mlflow.pyfunc.load_model(address)
chat = {"messages": [{"role": "user", "content": "1 + 2 = ?"}], "max_tokens": 4}
print(json.dumps({
    "transformers": type(pipeline.model).__name__,
    "pyfunc": model.predict(chat)[0]["object"],
    "messages": "messages" in str(model.metadata.signature.inputs),
}))
"""


def loaded_by_mlflow(server: str, address: str) -> dict[str, Any]:
    """What MLflow's own users get of a registered student."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, address],
        capture_output=True,
        text=True,
        env=environment(MLFLOW_TRACKING_URI=server),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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
    assert all(f"{stage}: cached" in again.stderr for stage in EVERY_STAGE)
    flow_run = {"flow_runs": {"id": {"any_": [now["prefect"]["flow_run_id"]]}}}
    runs = ask(f"{prefect_url}/task_runs/filter", flow_run)
    assert {run["name"] for run in runs} == set(EVERY_STAGE)
    assert {run["state_name"] for run in runs} == {"Cached"}


def test_why_says_cached_or_which_ingredient_changed(first, retort):
    job, store, _ = first
    same = retort("why", job, "--store", store)
    assert same.stdout.count("cached") == len(EVERY_STAGE)
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


def test_rows_shows_the_answers_by_state_and_why_says_what_would_be_asked(first, retort):
    job, store, _ = first
    every = retort("rows", job, "--store", store, "--json").stdout.splitlines()
    assert len(every) == 56
    assert all(json.loads(row)["messages"][-1]["role"] == "assistant" for row in every)
    cut = retort("rows", job, "--store", store, "--state", "truncated")
    assert f"{len(cut.stdout.splitlines())} truncated" in cut.stderr
    asked = retort("why", job, "--store", store, "--set", "generate.max_tokens=13").stdout
    assert f"requested: {len(cut.stdout.splitlines())} truncated" in asked
    asked = retort("why", job, "--store", store, "--set", "generate.temperature=0.5").stdout
    assert "requested: 56 new (the requests changed: seed: null -> 0; temperature: 0.0 -> 0.5" in (
        asked
    )


def test_prefect_shows_how_far_a_stage_is(first, prefect_url):
    run_id = json.loads(first[2].stdout)["prefect"]["flow_run_id"]
    of_run = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    found = {a["key"]: a for a in ask(f"{prefect_url}/artifacts/filter", of_run)}
    assert found["generate-progress"]["type"] == "progress"
    assert found["generate-progress"]["data"] == 100.0
    assert "56 of 56 responses" in found["generate-progress"]["description"]
