"""Finished jobs side by side: two of the same 300 questions, and others that cannot be ranked."""

import argparse
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from flows.commands import compare as command
from flows.commands.options import on_spec
from retort.errors import DataError, SpecError
from retort.jobs.compare import ComparedRuns, compare, find, page
from retort.metrics.comparison import as_json, read_content, table
from retort.records import write_lines
from retort.stages.report.measurements import Answered
from retort.store import Store, open_store
from tests.support import report_content

N = 300


def put(store: Store, name: str, found: Answered, **changed: Any) -> dict[str, Any]:
    """Leaves a finished job in a store, as a run does; returns its report."""
    prepared, evaluated = (store.artifact(stage, name) for stage in ("prepare", "evaluate"))
    prepared.write("test-00000.jsonl", write_lines(found.examples))
    evaluated.write_json("statistics-student.json", {"accuracy": found.vectors["student"]})
    report = {
        **as_json(report_content.content(found)),
        "name": name,
        "fingerprints": dict.fromkeys(("prepare", "evaluate"), name),
        "artifacts": {"prepare": prepared.uri, "evaluate": evaluated.uri},
        **changed,
    }
    for folder in (prepared, evaluated):
        folder.commit({})
    store.job(name).write_json("report.json", report)
    return report


def fine_tuned(found: Answered) -> Answered:
    """The same questions, with the answers of plain fine-tuning as the student's."""
    texts, vectors = (
        {**told, "student": told["fine_tuning"]} for told in (found.texts, found.vectors)
    )
    return replace(found, texts=texts, vectors=vectors)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = open_store(str(tmp_path_factory.mktemp("compare")))
    told = report_content.answered(N)
    put(found, "lucky", told)
    put(found, "plain", fine_tuned(told))
    put(found, "elsewhere", report_content.answered(200, seed=1))
    put(found, "sums", told, task_type="math")
    return found


def compared(store: Store, *names: str) -> ComparedRuns:
    return compare(find(store, [*names]))


def column(rows: list[list[str]], name: str) -> dict[str, str]:
    at = rows[0].index(name)
    return {row[0]: row[at] for row in rows[1:]}


def test_models_in_common_have_one_column(store):
    shown = compared(store, "lucky", "plain").models
    assert shown[0] == ["", "lucky", "plain", "teacher", "base"]
    for name in ("lucky", "plain"):
        report = store.job(name).read_json("report.json")
        content = read_content(report)
        rows = table(content.models, "accuracy")
        assert column(rows, "student").items() <= column(shown, name).items()
        found = report["models"]["student"]["metrics"]["accuracy"]
        sure = f"{found['low']:.1%} to {found['high']:.1%}"
        assert column(shown, name)["accuracy, 95% interval"] == sure


def test_models_measured_on_other_questions_have_columns_of_their_own(store):
    shown = compared(store, "lucky", "plain", "elsewhere").models
    assert shown[0][4:6] == ["teacher of lucky, plain", "teacher of elsewhere"]


def test_what_each_gained_is_what_its_report_says(store):
    gains = compared(store, "lucky", "plain").gains
    for name in ("lucky", "plain"):
        found = store.job(name).read_json("report.json")
        cells = column(gains, name)
        assert cells["kept of the teacher's"] == f"{found['comparison']['retention']:.1%}"
        assert (cells["gate"] == "passed") == found["gate"]["passed"]


def test_students_of_the_same_questions_are_compared_one_by_one(store):
    told = report_content.answered(N).vectors
    pairs = [(told["student"][key][0], told["fine_tuning"][key][0]) for key in told["student"]]
    only = [sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)]
    (pair,) = compared(store, "lucky", "plain").pairs
    found = pair.difference
    assert found.value == pytest.approx(sum(a - b for a, b in pairs) / N)
    assert found.mcnemar_p_value == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found.n == N
    assert found.low < found.value < found.high
    assert found.high < 0  # by the luck of these questions
    assert pair.words.startswith("lucky is worse than plain in accuracy: -3.7 points")
    (turned,) = compared(store, "plain", "lucky").pairs
    assert turned.words.startswith("plain is better than lucky in accuracy: +3.7 points")


def test_equal_ids_of_other_questions_are_not_taken_for_the_same(store):
    (pair,) = compared(store, "lucky", "elsewhere").pairs
    assert pair.difference is None
    assert "lucky 300, elsewhere 200, 0 of them in common" in pair.words


def test_other_tasks_are_not_ranked(store):
    found = compared(store, "lucky", "sums")
    assert found.pairs[0].outcome is None
    assert "not ranked: their tasks are of different types (nli, math)" in found.pairs[0].words


def test_other_metrics_have_rows_of_their_own(store, tmp_path):
    report = store.job("lucky").read_json("report.json")
    report["comparison"]["metric"], report["name"] = "rouge_l", "summaries"
    for model in report["models"].values():
        model["metrics"] = {"rouge_l": {"value": 0.25, "low": 0.2, "high": 0.3, "n": N}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = compared(store, "lucky", str(tmp_path))
    assert column(found.models, "summaries")["rouge_l"] == "25.0%"
    assert column(found.models, "summaries")["accuracy"] == "unknown"
    assert "different metrics (accuracy, rouge_l)" in found.pairs[0].words


def test_agreement_with_different_teachers_is_not_compared(store, tmp_path):
    places = []
    for name in ("org/one", "org/other"):
        report = store.job("lucky").read_json("report.json")
        report["comparison"]["metric"] = "agreement"
        report["models"]["teacher"]["model"] = name
        places.append(tmp_path / name / "report.json")
        places[-1].parent.mkdir(parents=True)
        places[-1].write_text(json.dumps(report))
    found = compared(store, *map(str, places))
    assert "different teachers (org/one, org/other)" in found.pairs[0].words
    assert [run.label for run in found.runs] == ["lucky #1", "lucky #2"]


def test_a_job_named_as_a_role_is_not_taken_for_it(store, tmp_path):
    report = store.job("lucky").read_json("report.json") | {"name": "teacher"}
    (tmp_path / "report.json").write_text(json.dumps(report))
    shown = compared(store, "plain", str(tmp_path)).models
    assert shown[0] == ["", "plain", "teacher #1", "teacher", "base"]


def test_a_moved_store_and_a_report_by_itself(store, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(store.uri, moved)
    place = moved / "jobs/plain/report.json"
    report = json.loads(place.read_text())
    report["artifacts"] = {stage: f"/gone/{stage}" for stage in report["artifacts"]}
    place.write_text(json.dumps(report))
    (pair,) = compared(store, "lucky", str(place.parent)).pairs
    assert pair.difference.n == N
    alone = tmp_path / "mail" / "plain.json"
    alone.parent.mkdir()
    alone.write_text(json.dumps(report))
    (pair,) = compared(store, "lucky", str(alone)).pairs
    assert "the scores of each example of plain cannot be read from here" in pair.words


def test_an_unknown_run_is_answered_with_those_there_are(store):
    with pytest.raises(SpecError, match=r"luky: .*did you mean 'lucky'.*elsewhere, lucky"):
        find(store, ["luky", "plain"])


def test_what_is_no_report_of_today_is_refused(store, tmp_path):
    (tmp_path / "report.json").write_text('{"name": "old", "comparison": {}}')
    with pytest.raises(DataError, match=r"no task_type.*run its job again"):
        find(store, [str(tmp_path)])
    (tmp_path / "report.json").write_text("[")
    with pytest.raises(DataError, match="is no JSON"):
        find(store, [str(tmp_path)])


def test_other_machines_are_noted(store, tmp_path):
    report = store.job("lucky").read_json("report.json")
    report["ran"] = {**report["ran"], "hardware": {"cores": 64}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = compared(store, "plain", str(tmp_path))
    assert any("different machines" in note for note in found.notes)
    assert compared(store, "lucky", "plain").notes == []


class Cells(HTMLParser):
    """Gathers the texts and the elements of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_says_the_same_and_runs_nothing_of_a_reports(store, tmp_path):
    report = store.job("plain").read_json("report.json")
    report["name"] = "<script>alert(1)</script>"
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = compared(store, "lucky", str(tmp_path))
    shown = Cells(page(found).decode())
    for rows in (found.models, found.gains, found.details):
        assert {cell for row in rows for cell in row} - {""} <= {*shown.texts}
    told = " ".join(shown.texts)
    assert found.pairs[0].words in told
    assert "script" not in {tag for tag, _ in shown.elements}
    assert not [a for _, attributes in shown.elements for a in attributes if a in ("src", "href")]


def run(store: Store, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), on_spec())
    options = parser.parse_args(["compare", *flags, "--store", store.uri])
    code: int = options.command(options)
    return code


def test_the_command_prints_json_tables_and_a_page(store, tmp_path, capsys):
    assert run(store, "lucky", "plain", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(compared(store, "lucky", "plain").as_json())
    )
    assert run(store, "lucky", "plain", "--html", str(tmp_path / "new" / "page.html")) == 0
    out = capsys.readouterr().out
    assert compared(store, "lucky", "plain").pairs[0].words in out
    assert Path(tmp_path / "new" / "page.html").read_bytes().startswith(b"<!doctype html>")
    with pytest.raises(SpecError, match="name two or more"):
        run(store, "lucky")
