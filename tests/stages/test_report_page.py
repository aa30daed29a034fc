"""The report's page in a real browser, and the whole report of a real job.

Of the job all is real but the processes: what a stage's child would do is done in this one, and the
engine `echo` answers, so that every number but the training's is known.
"""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.events import SILENT
from retort.metrics.comparison import read_content
from retort.spec import load
from retort.stages.evaluate import evaluate
from retort.stages.report import report
from retort.stages.report.examples import read_side_by_side, side_by_side
from retort.stages.report.rendering import draw, page, page_of
from retort.stages.stage import Stage
from retort.stages.train.loop import fit
from retort.store import Artifact, Folder
from tests.support import report_content
from tests.support.browser import needs_browser, see, shoot
from tests.support.stages import stage_of
from tests.support.tiny import write_job
from tests.support.training import made


@pytest.fixture(scope="module")
def found():
    return report_content.answered(160)


@pytest.fixture(scope="module")
def opened(found, tmp_path_factory) -> Path:
    """A page of 160 examples, on the disk; one answer is markup."""
    content = report_content.content(found)
    worst = next(e.id for e in found.examples if found.score("student", e) == 0.0)
    found.texts["student"][worst] = "<script>document.title = 'stolen'</script><b>bold</b>"
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(report_content.page_of(content, found))
    return path


def data_of(dom: str) -> dict[str, str]:
    """The numbers that the page's script leaves on its root."""
    return dict(re.findall(r' data-([a-z-]+)="([^"]*)"', dom[: dom.index("<head>")]))


def items_of(dom: str) -> list[str]:
    """The examples that are shown, as their elements."""
    start = dom.index('<ol class="list">')
    return dom[start : dom.index("</ol>", start)].split("<li ")[1:]


@needs_browser
def test_the_script_shows_the_first_examples_the_worst_first_and_says_nothing_wrong(opened, found):
    seen = see(opened)
    assert seen.console == []
    told = data_of(seen.dom)
    assert (told["shown"], told["matching"], told["overflow"]) == ("50", "160", "0")
    assert float(told["ready-milliseconds"]) > 0
    items, rows = items_of(seen.dom), side_by_side(found).rows
    for item, row in zip(items, rows, strict=False):
        assert row.id in item and unescape(item).count(row.question) == 1
    assert len(items) == 50
    assert "&lt;b&gt;bold&lt;/b&gt;" in items[0] and "<b>bold" not in seen.dom
    assert "<title>night-train" in seen.dom


@needs_browser
def test_a_link_chooses_a_kind_a_slice_and_words(opened, found):
    seen = see(opened, "#filter=lost&slice=length%3Dlong&search=ANSWER")
    wanted = [
        row
        for row in side_by_side(found).rows
        if row.kind == "lost" and row.slices["length"] == "long"
    ]
    assert 0 < len(wanted) < 50 and seen.console == []
    assert [row.id for row in wanted] == [
        re.search(r"row-\d+", item)[0] for item in items_of(seen.dom)
    ]
    assert re.search(r'<button type="button" value="lost" aria-pressed="true">', seen.dom)
    nothing = see(opened, "#search=no+such+words")
    assert data_of(nothing.dom)["shown"] == "0" and items_of(nothing.dom) == []


@needs_browser
def test_no_script_runs_but_the_pages_own(opened, tmp_path):
    data = opened.read_text().replace('"use strict";', '"use strict"; document.title = "stolen";')
    changed = tmp_path / "changed.html"
    changed.write_text(data)
    seen = see(changed)
    assert "Content Security Policy" in "".join(seen.console)
    assert "<title>night-train" in seen.dom and "data-shown" not in data_of(seen.dom)


@needs_browser
def test_it_fits_a_phone_and_a_desk_and_follows_the_light(opened, tmp_path):
    assert data_of(see(opened, width=400).dom)["overflow"] == "0"
    shots = {"phone": (400, False), "desk": (1280, False), "dark": (1280, True)}
    for name, (width, dark) in shots.items():
        assert len(shoot(opened, tmp_path / f"{name}.png", width, dark=dark)) > 20_000
    corners = {name: _corner(tmp_path / f"{name}.png") for name in shots}
    assert min(*corners["phone"], *corners["desk"]) > 0.95
    assert max(corners["dark"]) < 0.2


def _corner(picture: Path) -> tuple[float, ...]:
    from matplotlib.image import imread

    return tuple(imread(picture)[2, 2, :3].tolist())


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    """A report stage, its function not yet called, of a real job with a control and two topics."""
    folder = tmp_path_factory.mktemp("job")
    raw = yaml.safe_load(write_job(folder, "echo").read_text())
    rows = [json.loads(line) for line in (folder / "data/test.jsonl").read_text().splitlines()]
    for at, row in enumerate(rows):
        # Echo repeats the question: an answer in it is right.
        row |= {"metadata": {"topic": "odd" if at % 2 else "<even>"}}
        row |= {"question": f"Say {at}", "answer": str(at if at % 4 else 99)}
    (folder / "data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw["evaluate"] |= {"rounds": 1, "likelihood": False}
    raw["generate"]["spending"] = {"price_per_hour": 3.6}
    raw["report"] = {"slices": ["topic"], "prices": {"student": {"price_per_hour": 0.36}}}
    (folder / "job.yaml").write_text(yaml.safe_dump(raw))
    spec = load(folder / "job.yaml")[0].model_dump(mode="json")
    inputs: dict[str, Artifact] = {}
    train = made(spec, folder)
    inputs |= train.inputs
    inputs["train"] = train.out.commit({"facts": fit(train.arguments(), SILENT), "seconds": 7.5})
    own = {name: inputs[name] for name in ("prepare", "train")}
    evaluating = stage_of("evaluate", spec, str(folder / "store"), own)
    inputs["evaluate"] = evaluating.out.commit({"facts": evaluate(evaluating)})
    return stage_of("report", spec, str(folder / "store"), inputs)


@pytest.fixture(scope="module")
def reported(stage) -> tuple[Folder, dict[str, Any]]:
    facts = report(stage)
    content = stage.out.read_json("report.json")
    assert facts == {"comparison": content["comparison"], "gate": content["gate"]}
    return stage.out, content


def test_a_real_jobs_report_is_whole(reported):
    out, content = reported
    assert {"report.json", "report.md", "report.html", "examples.json", "data_card.svg"} <= set(
        out.files()
    )
    assert {"models", "comparison", "all_differences", "slices", "gate", "training", "data"} <= set(
        content
    )
    accuracy = {r: m["metrics"]["accuracy"]["value"] for r, m in content["models"].items()}
    assert accuracy == dict.fromkeys(("teacher", "base", "student"), 12 / 16)
    assert content["comparison"]["retention"] == 1.0
    assert content["comparison"]["required_retention"] == 0.9
    (topics,) = content["slices"]
    assert {v["value"]: (v["n"], v["metrics"]["student"]["value"]) for v in topics["values"]} == {
        "odd": (8, 1.0),
        "<even>": (8, 0.5),
    }
    assert content["ran"]["seconds"]["train"] == 7.5
    assert content["ran"]["money"]["cost"] > 0
    assert content["ran"]["spec"]["name"] == "tiny"
    for model in content["models"].values():
        price = 3.6 if model is content["models"]["teacher"] else 0.36
        by_hand = price / 3600 / model["requests_per_second"] * 1000
        assert model["cost_per_1000_requests"] == pytest.approx(by_hand)
    assert {"loss", "validation_loss"} <= {*content["training"]["curves"]["student"][-1]}


def test_a_report_is_made_again_from_its_own_files(reported):
    out, raw = reported
    content, examples = read_content(raw), read_side_by_side(out.read_json("examples.json"))
    pictures = {**draw(content), "card": [out.read_json("pictures.json")["card"][0]]}
    assert page(content, examples, pictures) == page_of(content, out) == out.read("report.html")
    again = page_of(replace(content, fingerprints={"train": "feed"}), out)
    assert b"feed" in again and len(again) > len(out.read("report.html"))
    assert [row.kind for row in examples.rows] == ["neither"] * 4 + ["both"] * 12


@needs_browser
def test_a_real_jobs_page_opens(reported, tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(reported[0].read("report.html"))
    seen = see(path, "#slice=topic%3D<even>", width=400)
    assert seen.console == []
    assert data_of(seen.dom)["matching"] == "8" and data_of(seen.dom)["overflow"] == "0"


def test_a_champion_measured_apart_stands_beside_the_others(stage, reported, tmp_path):
    """The champion is the student itself, released under another name: nothing is above it."""
    spec, store = stage.spec.model_dump(mode="json"), stage.store
    released = store.artifact("release", "0123456789abcdef")
    with stage.input("train").local_copy("student") as student:
        released.put_tree(student, "model")
    champion = released.commit({"facts": {}})
    asked = {"prepare": stage.inputs["prepare"], "champion": champion}
    out = Folder(str(tmp_path / "evaluate-champion"))
    measuring = replace(stage_of("evaluate", spec, store.uri, asked), out=out)
    measured = out.commit({"facts": evaluate(measuring), "seconds": 1.0})
    inputs = {**stage.inputs, "champion": champion, "evaluate-champion": measured}
    again = replace(stage, inputs=inputs, out=Folder(str(tmp_path / "report")))
    report(again)
    content = again.out.read_json("report.json")
    assert [*content["models"]] == ["teacher", "base", "student", "champion"]
    assert content["models"]["champion"]["metrics"].keys() == {"accuracy", "agreement"}
    found = content["comparison"]["differences"]["champion"]
    assert (found["value"], found["outcome"]) == (0.0, "unclear")
    assert content["champion"] == {"source": f"{champion.uri}/model", "is_readable": True}
    checks = {check["name"]: check["passed"] for check in content["gate"]["checks"]}
    assert checks["beats_champion"] is True
    text = again.out.read("report.md").decode()
    assert "The test cannot tell it from the champion of its name" in text
    assert {"champion"} <= set(again.out.read_json("examples.json")["rows"][0]["answers"])
    assert "champion" not in content["ran"]["seconds"]


def test_answers_paid_for_in_evaluate_count_and_those_without_usage_are_said(
    stage, reported, tmp_path
):
    before, evaluated = reported[1]["ran"]["money"], stage.input("evaluate")
    out = Folder(str(tmp_path / "evaluate"))
    for name in evaluated.files():
        out.write(name, evaluated.read(name))
    paid = {"input_tokens": 100, "output_tokens": 50, "engine_seconds": 1, "cost": 2.5}
    facts = {**stage.facts("evaluate"), "spending": {**paid, "num_without_usage": 7}}
    inputs = {**stage.inputs, "evaluate": out.commit({"facts": facts})}
    again = replace(stage, inputs=inputs, out=Folder(str(tmp_path / "report")))
    report(again)
    content = again.out.read_json("report.json")
    money = content["ran"]["money"]
    assert {name: money[name] - before[name] for name in paid} == pytest.approx(paid)
    assert any("7 answers came without their usage" in text for text in content["warnings"])
    assert "7 answers came without their usage" in again.out.read("report.md").decode()
    assert not any("their usage" in text for text in reported[1]["warnings"])
