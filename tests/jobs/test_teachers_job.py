"""A whole job with two teachers: a task and an MLflow run for each, and what each was worth."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from retort.store import Folder
from tests.support import command
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import save_model, write_job
from tests.support.workers import tasks

PRICES = {"price_per_million_input_tokens": 1000.0, "price_per_million_output_tokens": 3000.0}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """Even rows are sums, which `even` answers; `odd`, which costs something, has the others."""
    folder = tmp_path_factory.mktemp("teachers")
    path = write_job(folder, engine="echo", controls=["without_odd"])
    save_model(folder / "models/other", seed=5)
    for file in (folder / "data").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["metadata"] = {"kind": "odd" if number % 4 == 1 else "sums"}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = yaml.safe_load(path.read_text())
    generate = raw["generate"]
    generate["teachers"] = {
        "even": {"teacher": generate.pop("teacher")},
        "odd": {"teacher": "models/other", "spending": PRICES},
    }
    generate["route"] = {"by": "metadata.kind", "to": {"sums": "even"}}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def report(job, prefect_url) -> dict[str, Any]:
    """The job's report, of one run."""
    done = command.run(
        "run", str(job), "--store", str(job.parent / "store"), "--json", PREFECT_API_URL=prefect_url
    )
    assert done.returncode in (0, 3), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_teachers_capture_is_a_task_and_an_mlflow_run_of_its_own(report, prefect_url):
    names = {*EVERY_STAGE, "generate-even", "generate-odd", "train-without_odd"}
    assert set(report["fingerprints"]) == names
    states = tasks(prefect_url, report["prefect"]["flow_run_id"])
    assert states == dict.fromkeys(names, "Completed")
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    parent = client.get_run(report["mlflow"]["run_id"])
    runs = client.search_runs([parent.info.experiment_id])
    metrics = {r.info.run_name: r.data.metrics for r in runs}
    assert metrics["generate-odd"]["num_responses"] == 14
    assert metrics["generate"]["teachers.even.num_responses"] == 42
    assert metrics["generate"]["teachers.odd.spending.cost"] > 0
    assert "of_teachers.odd.validation_loss" in metrics["train"]


def test_the_report_shows_what_each_teacher_was_worth(report, job):
    even, odd = report["teachers"]["even"], report["teachers"]["odd"]
    assert (even["num_responses"], odd["num_responses"]) == (42, 14)
    assert (even["num_kept"], odd["num_kept"]) == (42, 14)
    assert odd["share"] == pytest.approx(0.25)
    generated = Folder(report["artifacts"]["generate-odd"])
    lines = generated.read("responses-00000.jsonl").splitlines()
    answers = [json.loads(line) for line in lines]
    paid = [1000 * r["num_prompt_tokens"] + 3000 * r["num_tokens"] for r in answers]
    assert odd["cost"] == pytest.approx(sum(paid) / 1e6)
    assert even["cost"] is None
    # The whole validation loss is the mean of the teachers', by their tokens.
    history = Folder(report["artifacts"]["train"]).read_json("history.json")
    whole = [record["validation_loss"] for record in history if "validation_loss" in record]
    losses = sorted(each["student_loss"] for each in (even, odd))
    assert losses[0] <= min(whole) <= losses[1] and losses[0] < losses[1]
    assert [even["num_validation"], odd["num_validation"]] == [6, 2]
    assert even["gain"] is None
    assert odd["gain"] == report["comparison"]["differences"]["without_odd"]
    first = "the teacher of the comparison is even alone"
    assert [text for text in report["warnings"] if text.startswith(first)]
    page = (job.parent / "store/jobs/tiny/report.md").read_text()
    assert "## Teachers" in page and "| even |" in page
    assert "itself without the rows of odd" in page
    html = (job.parent / "store/jobs/tiny/report.html").read_text()
    assert 'id="teachers"' in html


def test_the_control_has_learned_nothing_of_the_teacher_that_it_leaves_out(report):
    learned = Folder(report["artifacts"]["train-without_odd"])
    facts = learned.read_manifest()["facts"]
    assert facts["of_teachers"].keys() == {"even"}
    assert facts["num_train"] == 36
    assert learned.read_manifest()["ingredients"]["knobs"]["without_teacher"] == "odd"
    whole = Folder(report["artifacts"]["train"]).read_manifest()["facts"]
    assert whole["num_train"] == 48
