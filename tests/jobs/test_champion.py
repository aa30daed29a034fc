"""The champion: asked once on the same examples, compared with each new student, and judged by.

The engine is `echo`, which is right here whoever it stands for, so every student equals the
champion.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_LEVEL,
    temporary_settings,
)

from flows.distill import distill
from retort.jobs import inspection
from retort.metrics.comparison import as_json
from retort.spec import JobSpec, load
from retort.spec.fingerprint import EVALUATE_CHAMPION
from retort.store import Folder, open_store
from retort.tracking import open_registry, promote
from tasks import listeners
from tests.conftest import ask
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import write_job

Run = Callable[..., tuple[dict[str, Any], dict[str, str]]]


@pytest.fixture
def job(tmp_path) -> Path:
    """A job whose rows' answers are the last number of what is asked, which echo repeats."""
    path = write_job(tmp_path, engine="echo", num_epochs=1)
    for file in (tmp_path / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["answer"] = row["question"].split()[2]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(job, tmp_path, prefect_url, monkeypatch) -> Iterator[Run]:
    """Runs the job in this process, with other knobs; returns its report, and what each stage did:
    done, cached, or the text of a note."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said: dict[str, str] = {}

    def listen(stage: str, event: dict[str, Any]) -> None:
        if event["kind"] in ("done", "cached"):
            said[stage] = event["kind"]
        elif event["kind"] == "note" and stage == "mlflow":
            said[stage] = event["text"]

    def once(**train: Any) -> tuple[dict[str, Any], dict[str, str]]:
        said.clear()
        content = distill(spec_of(job, **train), str(tmp_path / "store"))
        return as_json(content), dict(said)

    listeners.terminals.append(listen)
    settings = {
        PREFECT_API_URL: prefect_url,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_LOGGING_LEVEL: "ERROR",
    }
    with temporary_settings(settings):
        yield once
    listeners.terminals.remove(listen)


def spec_of(job: Path, **train: Any) -> JobSpec:
    sets = [f"train.{name}={value}" for name, value in train.items()]
    knobs = ["evaluate.rounds=1", "report.gate.beat_base=false"]
    return load(job, [*sets, *knobs])[0]


def test_a_new_student_is_compared_with_the_champion_and_follows_it(
    run, job, tmp_path, prefect_url
):
    first, _ = run()
    assert first["gate"]["passed"] and first["registered"]["version"] == "1"
    client = open_registry(store := open_store(str(tmp_path / "store")))
    assert promote(client, "tiny").done
    again, did = run()  # the champion itself is compared with nobody
    assert set(did) == set(EVERY_STAGE) and set(did.values()) == {"cached"}
    assert again["fingerprints"] == first["fingerprints"]

    second, did = run(seed=7)
    made = {stage for stage, how in did.items() if how == "done"}
    assert made == {"train", "evaluate", EVALUATE_CHAMPION, "report", "release"}
    compared_with_the_champion(second, first)
    version = client.get_model_version("tiny", "2")
    assert (version.tags["retort.champion"], second["registered"]["compared_with"]) == (
        "1",
        "1",
    )
    shown_in_prefect(prefect_url, second)
    shown_in_mlflow(second)

    assert promote(client, "tiny").done
    third, did = run(seed=7)  # it is told again as whom it was compared with
    assert set(did.values()) == {"cached"} and third["fingerprints"] == second["fingerprints"]
    assert len(client.search_model_versions("name = 'tiny'")) == 2

    # The new champion measures nobody else anew, and another student does not measure it anew.
    why = inspection.why(spec_of(job), store)
    assert [name for name, lines in why.items() if lines] == [
        EVALUATE_CHAMPION,
        "report",
        "release",
    ]
    client.set_registered_model_alias("tiny", "champion", "1")
    why = inspection.why(spec_of(job, seed=8), store)
    assert why[EVALUATE_CHAMPION] == [] and why["evaluate"]

    shutil.rmtree(Path(first["artifacts"]["release"]))
    refused_beside_a_lost_champion(*run(seed=7))
    found = promote(client, "tiny")  # the challenger is version 2 still
    assert found.done and found.text.startswith("tiny version 2 is the champion now")


def refused_beside_a_lost_champion(report: dict[str, Any], did: dict[str, str]) -> None:
    assert "the champion of tiny, version 1, cannot be read" in did["mlflow"]
    assert report["registered"]["version"] == "3" and not report["gate"]["passed"]
    (check,) = [c for c in report["gate"]["checks"] if c["name"] == "beats_champion"]
    assert check["reason"] == "the champion cannot be read"
    assert "champion" not in report["models"] and EVALUATE_CHAMPION not in report["artifacts"]


def compared_with_the_champion(report: dict[str, Any], first: dict[str, Any]) -> None:
    """The champion is the first student: its weights, its answers, and equal scores."""
    models, evaluated = report["models"], Folder(report["artifacts"][EVALUATE_CHAMPION])
    assert list(models) == ["teacher", "base", "student", "champion"]
    assert models["champion"]["metrics"] == first["models"]["student"]["metrics"]
    gap = report["comparison"]["differences"]["champion"]
    assert gap["value"] == 0 and gap["n"] == 16
    (check,) = [c for c in report["gate"]["checks"] if c["name"] == "beats_champion"]
    assert (check["measured"], check["passed"]) == (0, True)
    manifest = evaluated.read_json("manifest.json")
    assert set(manifest["ingredients"]["inputs"]) == {"prepare", "champion"}
    assert [n for n in evaluated.files() if n.startswith("answers-")] == ["answers-champion.jsonl"]
    assert report["champion"]["source"] == f"{first['artifacts']['release']}/model"


def shown_in_prefect(url: str, report: dict[str, Any]) -> None:
    of_run = {"flow_runs": {"id": {"any_": [report["prefect"]["flow_run_id"]]}}}
    assert EVALUATE_CHAMPION in {run["name"] for run in ask(f"{url}/task_runs/filter", of_run)}
    found = {a["key"]: a for a in ask(f"{url}/artifacts/filter", of_run)}
    rows = json.loads(found["comparison"]["data"])
    assert {"accuracy"} <= {row["measure"] for row in rows}
    assert list(rows[0]) == ["measure", "teacher", "base", "student", "champion"]
    text = found["report"]["data"]
    assert "report.html" in text and f"{report['artifacts']['release']}/model" in text


def shown_in_mlflow(report: dict[str, Any]) -> None:
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    parent = report["mlflow"]["run_id"]
    files = {found.path for found in client.list_artifacts(parent)}
    assert files == {"report.html", "report.json", "report.md", "data_card.svg"}
    experiment = client.get_run(parent).info.experiment_id
    models = client.search_logged_models([experiment])
    (mine,) = [model for model in models if model.source_run_id == parent]
    scores = {metric.key: metric.value for metric in mine.metrics}
    assert scores["accuracy"] == report["models"]["student"]["metrics"]["accuracy"]["value"] == 1
