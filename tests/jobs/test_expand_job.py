"""A whole job that expands its prompts: a task, an MLflow run, a slice of the report."""

import json
from collections import Counter

import pytest
import yaml
from mlflow import MlflowClient

from retort.stages.stage import read_decisions, read_examples
from retort.store import Folder
from tests.support import command
from tests.support.misbehaving import SECRET, endpoint
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import write_job
from tests.support.workers import tasks
from tests.support.writing import Model


@pytest.fixture(scope="module")
def place(tmp_path_factory, prefect_url):
    """A folder with the job, its report, and what runs a further command there."""
    folder, model = tmp_path_factory.mktemp("expand"), Model()
    with endpoint(model.behave) as (_, url):
        path = write_job(folder, engine="echo", num_epochs=1)
        raw = yaml.safe_load(path.read_text())
        raw["expand"] = {"to": 80, "by": ["evolve", "persona"]}
        remote = {"teacher": "t", "engine": "openai", "endpoint": url}
        raw["generate"] |= {**remote, "max_tokens": 64}
        path.write_text(yaml.safe_dump(raw, sort_keys=False))

        def run(*words):
            return command.run(
                words[0],
                path,
                "--store",
                folder / "store",
                *words[1:],
                PREFECT_API_URL=prefect_url,
                OPENAI_API_KEY=SECRET,
            )

        done = run("run", "--json")
        assert done.returncode in (0, 3), done.stderr
        yield folder, json.loads(done.stdout), run, model


def test_expand_is_a_task_and_an_mlflow_run_and_its_artifact_is_what_later_stages_read(
    place, prefect_url
):
    _, report, _, _ = place
    names = {*EVERY_STAGE, "expand"}
    assert set(report["fingerprints"]) == names
    states = tasks(prefect_url, report["prefect"]["flow_run_id"])
    assert states == dict.fromkeys(names, "Completed")
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    parent = client.get_run(report["mlflow"]["run_id"])
    runs = {r.info.run_name: r for r in client.search_runs([parent.info.experiment_id])}
    assert runs["expand"].data.metrics["num_examples.train"] == 80
    assert runs["generate"].data.metrics["num_responses"] == 88
    prepared, expanded = (Folder(report["artifacts"][name]) for name in ("prepare", "expand"))
    for split in ("validation", "test"):
        assert read_examples(expanded, split) == read_examples(prepared, split)
    assert read_examples(expanded, "train")[:48] == read_examples(prepared, "train")


def test_the_report_counts_own_and_written_prompts_apart(place):
    folder, report, _, _ = place
    card, curated = report["data"]["card"], Folder(report["artifacts"]["curate"])
    examples = read_examples(Folder(report["artifacts"]["expand"]), "train")
    kept = {name for name, decision in read_decisions(curated).items() if decision.kept}
    ways = [example.metadata.get("way", "own rows") for example in examples]
    learned = Counter(way for way, e in zip(ways, examples, strict=True) if e.id in kept)
    origins = card["origins"]
    assert {way: counts["examples"] for way, counts in origins.items()} == Counter(ways)
    assert {way: counts["learned from"] for way, counts in origins.items()} == learned
    refused = sum(counts["refused"] for counts in origins.values())
    assert origins["own rows"]["refused"] == 0 and refused == sum(
        card["reasons"]["quarantined"].values()
    )
    latest = folder / "store/jobs/tiny"
    assert f"| evolve | {origins['evolve']['examples']} |" in (latest / "report.md").read_text()
    assert "Training prompts by who wrote them" in (latest / "report.html").read_text()
    spent = Folder(report["artifacts"]["expand"]).read_manifest()["facts"]["expanded"]["spending"]
    assert report["ran"]["money"]["output_tokens"] > spent["generate"]["output_tokens"] > 0


def test_a_second_run_is_cached_and_the_commands_know_the_written_prompts(place):
    _, report, run, model = place
    asked = model.asked.total()
    again = run("run", "--json")
    assert json.loads(again.stdout)["fingerprints"] == report["fingerprints"]
    assert "expand: cached" in again.stderr and model.asked.total() == asked
    assert "knobs.to: 80 -> 90" in run("why", "--set", "expand.to=90").stdout
    shown = run("rows", "--quarantined")
    assert "copy of a training row" in shown.stderr + shown.stdout
    rows = run("rows").stdout.splitlines()
    assert sum(row.split()[1].startswith("expanded-") for row in rows) == 32
