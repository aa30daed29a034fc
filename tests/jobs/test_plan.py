"""`retort plan` on a tiny job: subsets, money, what an earlier plan said, and the command."""

import html
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from mlflow import MlflowClient

from retort.errors import DataError
from retort.jobs import reporting, trials
from retort.jobs.plan import plan, words
from retort.jobs.plan.page import page
from retort.jobs.run import JobRun
from retort.metrics.comparison import as_json
from retort.spec import load
from retort.stages.report.examples import side_by_side
from retort.stages.report.rendering import draw
from retort.stages.stage import read_examples
from retort.store import Folder, open_store
from retort.tracking import tracking_uri
from tests.support import command, report_content
from tests.support.tiny import write_job, write_rows

PRICES = {"price_per_million_input_tokens": 2.0, "price_per_million_output_tokens": 8.0}


def job_of(folder: Path, heard: list[str], *knobs: str) -> JobRun:
    def listen(name: str, event) -> None:
        if event["kind"] == "done":
            heard.append(name)

    spec = load(folder / "job.yaml", knobs)[0]
    return JobRun(spec, open_store(str(folder / "store")), [], listen, "plan")


def store_answers(job: JobRun) -> None:
    made = {}
    for name in ("prepare", "generate", "curate"):
        made[name] = trials.cached_or_made(job, name, dict(made))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A priced job of which 32 of 64 rows are stored and planned with, then all."""
    folder = tmp_path_factory.mktemp("plan")
    path = write_job(folder, engine="echo", num_epochs=1)
    write_rows(folder / "data/train.jsonl", 64, seed=5)
    write_rows(folder / "data/validation.jsonl", 20, seed=6)
    raw = yaml.safe_load(path.read_text())
    raw["generate"]["spending"] = PRICES
    path.write_text(yaml.safe_dump(raw))
    return folder


@pytest.fixture(scope="module")
def first(folder):
    heard: list[str] = []
    job = job_of(folder, heard, "prepare.limit=32")
    store_answers(job)
    heard.clear()
    return plan(job), heard


def test_a_plan_trains_on_nested_subsets_and_says_the_money_of_the_stored_tokens(folder, first):
    found, heard = first
    assert [point.num_examples for point in found.points] == [8, 16, 32]
    assert [name for name in heard if name.startswith("train-")] == [
        *("train-1_of_4", "train-1_of_2", "train-all")
    ]
    # The engine repeats at most 12 bytes of "a + b = ?", and its tokens are bytes.
    prepared = trials.stored(job_of(folder, [], "prepare.limit=32"))["prepare"]
    examples = read_examples(Folder(prepared.uri), "train", "validation")
    sizes = [len(example.messages[-1]["content"]) for example in examples]
    each = sum(2.0 * n + 8.0 * min(n, 12) for n in sizes) / len(sizes) / 1e6
    for forecast, number in zip(found.forecasts, (1000, 2000, 10_000), strict=True):
        assert (forecast.num_prompts, forecast.num_examples) == (number, 32 + number)
        assert forecast.money == pytest.approx(each * number)
        assert forecast.gain.low <= forecast.gain.value <= forecast.gain.high
    # The untrained students answer nothing rightly, and no band promises less than nothing.
    assert all(0 <= band.low <= band.value <= band.high <= 1 for _, band in found.curve)
    assert any("3 numbers of examples are few" in note for note in found.notes)
    assert any("20 validation examples are few" in note for note in found.notes)
    assert {limit.name for limit in found.limits} == {"data", "loss", "epochs", "student size"}
    assert not found.facts


def test_more_data_costs_only_new_points_and_shows_the_forecast_beside_the_fact(folder, first):
    said = dict((n, band) for n, band in first[0].curve)
    heard: list[str] = []
    job = job_of(folder, heard)
    store_answers(job)
    heard.clear()
    found = plan(job)
    assert [point.num_examples for point in found.points] == [8, 16, 32, 64]
    assert [name for name in heard if name.startswith("train-")] == ["train-all"]
    (fact,) = found.facts
    assert (fact.num_examples, fact.score) == (64, found.points[-1].score.value)
    nearest = min(said, key=lambda n: abs(n - 64))
    assert fact.forecast.value == pytest.approx(said[nearest].value, abs=0.02)
    # Again: nothing is trained, and nothing is said anew.
    heard.clear()
    again = plan(job_of(folder, heard))
    assert heard == []
    assert again.points == found.points
    assert again.facts == found.facts
    text = page(again).decode()
    ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.S).group())
    assert words.headline(again) in text
    assert "earlier forecast" in text

    # Another recipe shares no point, and was never forecast.
    other = plan(job_of(folder, heard, "train.learning_rate=1e-4"))
    assert [point.num_examples for point in other.points] == [8, 16, 32, 64]
    assert len([name for name in heard if name.startswith("train-")]) == 4
    assert not other.facts


def test_the_report_of_the_same_student_shows_the_plan(folder, first):
    found, _ = first
    latest = open_store(str(folder / "store")).job("tiny")
    answered = report_content.answered(20)
    whole = replace(report_content.content(answered), name="tiny")
    store = open_store(str(folder / "store"))
    reported = store.artifact("report", "some")
    reported.write_json("examples.json", asdict(side_by_side(answered)))
    reported.write_json("pictures.json", draw(whole))
    latest.write_json("plan.json", found.as_json())
    for student, is_own in ((found.points[-1].train, True), ("another", False)):
        own = replace(whole, fingerprints={"train": student, "report": "some"})
        latest.write_json("report.json", as_json(own))
        assert reporting.refresh(store, "tiny", student)
        page = latest.read("report.html").decode()
        assert (html.escape(words.headline(found)) in page) is is_own
        assert ('id="plan"' in page) is is_own
        told = latest.read_json("report.json")
        assert told.get("plan") == (json.loads(json.dumps(found.as_json())) if is_own else None)
    for damaged in (b"{", b"[]", b'{"points": [{}]}'):  # it keeps no job from its report
        latest.write("plan.json", damaged)
        assert reporting.refresh(store, "tiny", "another")
    latest.write_json("plan.json", found.as_json())
    latest.remove("report.json")
    assert not reporting.refresh(store, "tiny", "another")


def test_too_little_is_refused(folder, first):
    job = job_of(folder, [], "prepare.limit=32", "train.max_examples=10")
    with pytest.raises(DataError, match="10 examples are stored"):
        plan(job)


def test_the_command_prints_the_plan_and_leaves_page_and_child_runs(folder, first, prefect_url):
    words = ["plan", folder / "job.yaml", "--json", "--store", folder / "store"]
    done = command.run(*words, "--set", "prepare.limit=32", PREFECT_API_URL=prefect_url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [p["num_examples"] for p in told["points"]] == [8, 16, 32]
    store = open_store(str(folder / "store"))
    assert Folder(store.job("tiny").uri).has("plan.html")
    client = MlflowClient(tracking_uri(store))
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["retort.stage"] == "plan"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["more_1000.money"] == pytest.approx(told["forecasts"][0]["money"])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    names = {r.info.run_name: r for r in children}
    assert {"trial-1_of_4", "trial-1_of_2", "trial-all"} <= set(names)
    assert names["trial-1_of_4"].data.metrics["num_train"] == 8
