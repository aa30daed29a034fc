"""The rescue of a fine-tune: every command of the example runs, against an endpoint on loopback.

The endpoint answers as the fine-tune did: what the example's own rows say. It takes batches, and
judges for the graders.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retort.data.formats import read_row
from tests.support import command
from tests.support.misbehaving import SECRET, openai_body, running
from tests.support.providers import OpenAIProvider
from tests.support.servers import ROOT, environment
from tests.support.tiny import save_model

EXAMPLE = ROOT / "examples/rescue"
FINE_TUNE = "ft:gpt-4o-mini-2024-07-18:org::id"
JUDGED = {"Rate from 1 to 7": '{"steps": [], "result": 6}', "Which tone": '{"result": "friendly"}'}
SMALL = [
    "generate.top_k=0",
    "generate.runtime.batch_poll_seconds=0.1",
    "train.num_epochs=1",
    "train.max_length=200",
    "evaluate.engine=echo",
    "evaluate.rounds=1",
    "evaluate.latency_samples=2",
    "evaluate.likelihood=false",
]


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / f"data/{name}.jsonl").open()]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (EXAMPLE / "README.md").read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split() for line in lines if not line.startswith("export ")]


def known() -> dict[str, str]:
    """What the fine-tune answers, by the question."""
    found = {}
    for name in ("fine_tune", "stored"):
        for row in rows(name):
            *_, question, answer = read_row(row, "auto", {})[1].messages
            found[question["content"]] = answer["content"]
    items = [row["item"] for row in rows("evals")]
    return found | {item["messages"][-1]["content"]: item["ideal"] for item in items}


class FineTune(OpenAIProvider):
    """OpenAI, as far as the example asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers, self.asked = known(), Counter[str]()

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/chat/completions", self.completions)
        app.router.add_get("/v1/chat/completions/{id}/messages", self.messages)
        app.router.add_get("/v1/fine_tuning/jobs/{id}", self.job)
        app.router.add_get("/v1/evals/{id}", self.eval)
        return app

    def shape(self, custom_id: str, text: str, fate: str) -> dict[str, Any]:
        shaped = super().shape(custom_id, text, fate)
        shaped["response"]["body"] |= self.body(self.answers[text])
        return shaped

    def body(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {**openai_body(text), "choices": [{"message": message, "finish_reason": "stop"}]}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert request.headers["Authorization"] == f"Bearer {SECRET}"
        self.asked[body["model"]] += not body.get("stream")
        text = body["messages"][-1]["content"]
        if body["model"] != FINE_TUNE:
            rule = body["messages"][0]["content"]
            return web.json_response(
                self.body(next(reply for start, reply in JUDGED.items() if start in rule))
            )
        if not body.get("stream"):
            return web.json_response(self.body(self.answers[text]))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunk = {"choices": [{"index": 0, "delta": {"content": self.answers[text]}}]}
        await response.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())
        await response.write_eof()
        return response

    async def completions(self, request: web.Request) -> web.Response:
        assert request.query["model"] == FINE_TUNE
        kept = [{k: v for k, v in row.items() if k != "input"} for row in rows("stored")]
        after = [row["id"] for row in kept].index(request.query.get("after", kept[-1]["id"]))
        page = kept[:5] if "after" not in request.query else kept[after + 1 :]
        more = "after" not in request.query
        return web.json_response({"object": "list", "data": page, "has_more": more})

    async def messages(self, request: web.Request) -> web.Response:
        (row,) = (row for row in rows("stored") if row["id"] == request.match_info["id"])
        kept = [{**turn, "id": f"m-{n}", "name": None} for n, turn in enumerate(row["input"])]
        return web.json_response({"object": "list", "data": kept, "has_more": False})

    async def job(self, request: web.Request) -> web.Response:
        self.files["file-rows"] = (EXAMPLE / "data/fine_tune.jsonl").read_bytes()
        found = {"id": request.match_info["id"], "object": "fine_tuning.job"}
        return web.json_response(
            found | {"training_file": "file-rows", "fine_tuned_model": FINE_TUNE}
        )

    async def eval(self, request: web.Request) -> web.Response:
        return web.json_response(json.loads((EXAMPLE / "graders.json").read_text()))


def test_what_openai_exports_is_read_as_the_chats_that_it_holds():
    for name, form in (("fine_tune", "messages"), ("stored", "stored_completion")):
        for row in rows(name):
            found, read = read_row(row, "auto", {})
            assert found == form
            assert [turn["role"] for turn in read.messages] == ["system", "user", "assistant"]
    for row in rows("evals"):
        found, read = read_row(row, "auto", {})
        assert (found, read.metadata) == ("messages", row["item"])
        assert read.messages == row["item"]["messages"]


def test_the_example_names_the_days_and_the_terms():
    text = (EXAMPLE / "README.md").read_text()
    for day in ("2026-11-30", "2027-01-06", "2027-01-14", "one year"):
        assert f"| {day}" in text
    assert "terms may forbid" in text and "licences" in text


@pytest.fixture(scope="module")
def rescued(tmp_path_factory, prefect_url):
    """What each command of the README did, in a folder of its own; the endpoint, and the folder."""
    place, provider = tmp_path_factory.mktemp("rescue"), FineTune()
    student = save_model(place / "student", hidden=32, layers=1)
    small = [f"--set={knob}" for knob in [*SMALL, f"train.student={student}"]]
    (place / "examples/rescue").mkdir(parents=True)
    for path in EXAMPLE.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".yaml", ".jsonl"):
            kept = place / path.relative_to(ROOT)
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(path.read_bytes())
    for name in ("fine_tune", "stored"):  # the script writes them, and the graders
        (place / f"examples/rescue/data/{name}.jsonl").unlink()
    done: dict[str, subprocess.CompletedProcess[str]] = {}
    with running(provider.app()) as url:
        keys = {"OPENAI_API_KEY": SECRET, "OPENAI_BASE_URL": url, "PREFECT_API_URL": prefect_url}

        def call(words: list[str]) -> None:
            if words[0] == "retort":
                more = [] if words[1] == "compare" else small
                done[" ".join(words)] = command.run(
                    *words[1:3], *more, *words[3:], cwd=place, **keys
                )
                return
            done[" ".join(words)] = subprocess.run(
                [sys.executable, *words[1:]],
                capture_output=True,
                text=True,
                timeout=300,
                env=environment(**keys),
                cwd=place,
                check=False,
            )

        for words in commands():
            call(words)
        call([*commands()[2], "--set=name=again"])
        call(["retort", "compare", "rescue", "again"])
    return done, provider, place


def test_every_command_of_the_readme_runs(rescued):
    done, _, _ = rescued
    assert [words[:2] for words in commands()] == [
        ["python", "examples/rescue/fetch.py"],
        *(["retort", name] for name in ("validate", "run", "rows", "why")),
    ]
    for line, result in done.items():
        # So little training passes no gate; base and student repeat the question.
        wanted = 3 if line.startswith("retort run") else 0
        assert result.returncode == wanted, (line, result.stdout, result.stderr)
        assert SECRET not in result.stdout + result.stderr
    (why,) = (result.stdout for line, result in done.items() if line.startswith("retort why"))
    assert re.search(r"^generate +cached$", why, re.M)
    assert re.search(r"^train +runs: knobs.num_epochs: 1 -> 4$", why, re.M)


def test_the_script_saves_rows_stored_completions_and_graders(rescued):
    _, _, place = rescued
    folder = place / "examples/rescue"
    assert (folder / "data/fine_tune.jsonl").read_bytes() == (
        EXAMPLE / "data/fine_tune.jsonl"
    ).read_bytes()
    saved = [json.loads(line) for line in (folder / "data/stored.jsonl").open()]
    chats = [[read_row(row, "auto", {})[1] for row in each] for each in (saved, rows("stored"))]
    assert [row.messages for row in chats[0]] == [row.messages for row in chats[1]]
    assert json.loads((folder / "graders.json").read_text())["testing_criteria"]


def test_the_report_compares_the_student_with_the_fine_tune_by_the_graders(rescued):
    done, _, place = rescued
    (validated,) = (result.stdout for line, result in done.items() if "validate" in line)
    assert "grader.States_the_fact decides" in validated
    assert "'Helpful' names o3-mini-2025-01-31; gpt-6-luna is asked" in validated
    (path,) = reports(place)
    report = json.loads(path.read_text())
    comparison, teacher = report["comparison"], report["models"]["teacher"]["metrics"]
    assert comparison["metric"] == "grader.States_the_fact"
    assert teacher["grader.States_the_fact"]["value"] == 1.0
    assert teacher["score.Helpful"]["value"] == 6.0 and teacher["grader.Tone"]["value"] == 1.0
    assert teacher["grader.Close_to_the_ideal.passed"]["n"] == len(rows("evals"))
    gap = comparison["differences"]["teacher"]
    assert gap["low"] <= gap["value"] < 0 and gap["outcome"] == "below"
    assert not report["gate"]["passed"]
    (by_topic,) = report["slices"]
    assert {each["value"] for each in by_topic["values"]} == {"returns", "delivery", "care", "shop"}
    assert any("the licence of the teacher" in text for text in report["warnings"])
    assert report["ran"]["licences"]["teacher"]["distillation"] == "forbidden"
    page = path.with_name("report.md").read_text()
    assert "grader.States_the_fact" in page and "forbids distillation" in page


def test_the_fine_tune_is_asked_in_batches_and_each_thing_once(rescued):
    _, provider, _ = rescued
    asked = [json.loads(line) for data in provider.files.values() for line in data.splitlines()]
    batched = [row["body"]["messages"][-1]["content"] for row in asked if "body" in row]
    learned = len(rows("fine_tune")) + len(rows("stored"))
    assert len(batched) == len(set(batched)) >= learned
    assert provider.asked[FINE_TUNE] <= len(rows("evals"))
    assert provider.asked["gpt-6-luna"] > 0


def test_finished_jobs_are_compared_by_the_grader(rescued):
    done, _, _ = rescued
    assert "grader.States_the_fact" in done["retort compare rescue again"].stdout


def reports(place: Path) -> list[Path]:
    """The reports of the job's first run, in its store."""
    found = sorted((place / ".retort").rglob("report.json"), key=os.path.getmtime)
    return found[:1]
