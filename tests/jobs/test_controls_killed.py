"""A job that is killed while it trains a control: the student stands, and the control goes on.

The engine is `echo`: the student learns to repeat the question, its control gold learns the sums.
"""

import json
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.cli import main
from retort.events import SILENT
from retort.jobs import inspection
from retort.jobs.source_digests import source_digests
from retort.spec import load, recipes
from retort.stages.train.loop import fit
from retort.store import Folder, open_store
from tests.conftest import ask
from tests.jobs.test_job_killed import kill_when
from tests.support.tiny import write_job
from tests.support.training import made

RUNTIME = {"num_threads": 1, "checkpoint_seconds": 0}


def test_a_control_killed_with_9_goes_on_and_is_seen_in_prefect_mlflow_and_why(
    tmp_path, retort, prefect_url, capsys
):
    path = write_job(tmp_path, engine="echo", num_epochs=40, controls=["gold"], runtime=RUNTIME)
    store, (spec, _) = tmp_path / "store", load(path)
    name = recipes(spec, source_digests(spec))["train-gold"].name
    kill_when(path, store, prefect_url, f"artifacts/train/{name}/scratch/step-*.safetensors")
    assert not (store / f"artifacts/train/{name}/manifest.json").exists()
    why = inspection.why(spec, open_store(str(store)))
    assert why["train-gold"] == ["never finished in this store"]

    done = retort("run", path, "--store", store, "--json")
    assert done.returncode == 3, done.stderr
    assert "train-gold: continuing after step" in done.stderr
    content = json.loads(done.stdout)
    assert content["fingerprints"]["train-gold"] == name
    whole = made(spec.control("gold").model_dump(mode="json"), tmp_path / "other")
    fit(whole.arguments(), SILENT)
    resumed = Folder(content["artifacts"]["train-gold"])
    student = "student/model.safetensors"
    assert resumed.read(student) == whole.out.read(student)

    with pytest.raises(SystemExit):
        main(["why", str(path), "--store", str(store)])
    assert "train-gold cached" in capsys.readouterr().out
    shown_in_prefect(prefect_url, content["prefect"]["flow_run_id"])
    shown_in_mlflow(content["mlflow"])


def shown_in_prefect(url: str, flow_run_id: str) -> None:
    tasks = ask(f"{url}/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    student, control = ({t["name"]: t for t in tasks}[n] for n in ("train", "train-gold"))
    # The two are trained side by side: the student may have been ready when the run was killed.
    assert student["state_name"] in ("Cached", "Completed")
    assert control["state_name"] == "Completed"
    if student["state_name"] == "Completed":
        assert control["start_time"] < student["end_time"]
    artifacts = ask(f"{url}/artifacts/filter", {})
    assert "train-gold-progress" in {artifact["key"] for artifact in artifacts}


def shown_in_mlflow(told: dict[str, Any]) -> None:
    client = MlflowClient(told["tracking_uri"])
    parent = client.get_run(told["run_id"])
    gaps = {"difference.gold", "difference.gold_low", "difference.gold_high"}
    assert gaps <= set(parent.data.metrics)
    children = {
        run.info.run_name: run
        for run in client.search_runs([parent.info.experiment_id])
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    control = children["train-gold"]
    assert (control.info.status, control.data.params["text"]) == ("FINISHED", "expected")
    assert client.get_metric_history(control.info.run_id, "cross_entropy")
    assert {"gold.accuracy", *gaps} <= set(children["evaluate"].data.metrics)
