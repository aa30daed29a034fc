"""A whole job whose student is cut from its teacher: its task, facts, control and cache."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from retort.jobs.placed import placed
from retort.jobs.preflight import check
from retort.spec import load
from retort.store import Folder, open_store
from tests.support import command
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import save_model, write_job
from tests.support.workers import tasks


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A teacher of three layers, of which two stay."""
    folder = tmp_path_factory.mktemp("cut")
    path = write_job(folder, engine="transformers", controls=["random_start"])
    save_model(folder / "models/teacher", hidden=64, layers=3, seed=1)
    raw = yaml.safe_load(path.read_text())
    raw["train"]["student"] = {"from_teacher": {"layers": 2, "num_rows": 20}}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def retort(job, prefect_url):
    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        given = [words[0], job, *words[1:], "--store", job.parent / "store"]
        done = command.run(*given, PREFECT_API_URL=prefect_url)
        assert done.returncode in (0, 3), done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def report(retort):
    """The job's report, of one run."""
    return json.loads(retort("run", "--json").stdout)


def weights(report, name):
    return load_file(Path(report["artifacts"][name]) / "student/model.safetensors")


def test_the_cut_is_a_task_and_an_mlflow_run_with_its_facts(report, prefect_url):
    names = {*EVERY_STAGE, "cut", "train-random_start"}
    assert set(report["fingerprints"]) == names
    states = tasks(prefect_url, report["prefect"]["flow_run_id"])
    assert states == dict.fromkeys(names, "Completed")
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    parent = client.get_run(report["mlflow"]["run_id"])
    runs = {r.info.run_name: r for r in client.search_runs([parent.info.experiment_id])}
    metrics, facts = runs["cut"].data.metrics, facts_of(report)
    assert metrics["parameters_before"] > metrics["parameters_after"] > 0
    assert metrics["num_rows"] == 20
    for way in ("teacher", "kl", "block_influence", "first_and_last"):
        assert metrics[f"kl.{way}"] == facts["kl"][way] >= 0
    assert metrics["kl"] == facts["removals"][0]["kl"]
    assert runs["cut"].data.params["layers"] == "2"


def facts_of(report):
    return Folder(report["artifacts"]["cut"]).read_manifest()["facts"]


def test_the_base_is_the_cut_teacher_and_the_training_began_there(report, job):
    facts, models = facts_of(report), report["models"]
    assert models["base"]["model"] == f"{job.parent}/models/teacher, cut"
    assert models["base"]["parameters"] == facts["parameters_after"] == facts_parameters(report)
    assert models["student"]["parameters"] == models["random_start"]["parameters"]
    teacher = load_file(job.parent / "models/teacher/model.safetensors")
    cut = weights(report, "cut")
    for number, layer in enumerate(facts["layers"]):
        ours = {k.removeprefix(f"model.layers.{number}."): v for k, v in cut.items()}
        for name, weight in teacher.items():
            if name.startswith(prefix := f"model.layers.{layer}."):
                assert torch.equal(ours[name.removeprefix(prefix)], weight)
    moved = {
        name: sum(float((weights(report, name)[k] - v).abs().mean()) for k, v in cut.items())
        for name in ("train", "train-random_start")
    }
    assert 0 < moved["train"] < 0.1 * moved["train-random_start"]


def facts_parameters(report):
    return sum(weight.numel() for weight in weights(report, "cut").values())


def test_the_report_says_what_was_cut_and_what_others_found(report, job):
    (text,) = [t for t in report["warnings"] if t.startswith("the student began as layers")]
    assert "of the teacher's 3 (" in text and "arXiv:2602.01997" in text
    assert "random_start" in report["comparison"]["differences"]
    page = (job.parent / "store/jobs/tiny/report.md").read_text()
    assert "itself from random weights" in page
    card = Folder(report["artifacts"]["release"]).read("model/README.md").decode()
    assert "into `teacher, cut` (the base)" in card


def test_a_second_run_makes_nothing_and_why_names_what_would_change(report, retort):
    again = retort("run")
    assert all(f"{name}: cached" in again.stderr for name in ("cut", "train", "train-random_start"))
    same = retort("why").stdout.splitlines()
    assert {line.split(maxsplit=1)[1] for line in same} == {"cached"} and len(same) == 9
    quick = "train.student.from_teacher.metric=block_influence"
    changed = retort("why", "--set", quick).stdout.splitlines()
    lines = dict(line.split(maxsplit=1) for line in changed)
    assert lines["curate"] == "cached"
    assert 'knobs.metric: "kl" -> "block_influence"' in lines["cut"]
    assert "runs" in lines["train"] and "runs" in lines["train-random_start"]


def test_validate_says_what_will_be_cut_and_counts_it(job):
    spec, _ = load(job)
    lines = check(spec, open_store(str(job.parent / "store")))
    (line,) = [line for line in lines if line.startswith("train.student.from_teacher: llama")]
    assert "layers 3 -> 2" in line and not any(line.startswith("train.student ") for line in lines)


def test_a_cut_student_in_a_store_elsewhere_is_brought_here_for_the_training_alone(job, tmp_path):
    spec = load(job)[0]
    folder = open_store("memory://placed").artifact("cut", "x")
    (tmp_path / "config.json").write_text("{}")
    folder.put_tree(tmp_path, "student")
    cut = folder.commit({"facts": {}})
    with placed("train", spec, {"cut": cut}) as own:
        assert own.cut is None and (Path(own.base) / "config.json").read_text() == "{}"
        assert own.train.model_copy(update={"student": spec.train.student}) == spec.train
    assert not Path(own.base).exists()
    for inputs in ({}, {"cut": cut, "train": cut}):
        with placed("train", spec, inputs) as own:
            assert own == spec
