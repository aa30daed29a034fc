"""Replicas: several processes answer one job's examples, each of them once, whoever is lost."""

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from retort.errors import StageError
from retort.events import SILENT, Reporter
from retort.stages.generate import help_generate
from tests.conftest import environment
from tests.support.misbehaving import endpoint, openai_body
from tests.support.stages import job, run, segments
from tests.support.tiny import save_model
from tests.support.workers import kill

NUM_ROWS, AT_ONCE = 200, 2
HELP = """
import json, sys
from pathlib import Path
from retort.events import SILENT
from retort.stages.generate import help_generate
help_generate(json.loads(sys.stdin.read()), Path(sys.argv[1]), SILENT)
"""
RUNTIME = {"max_concurrency": AT_ONCE, "request_timeout_seconds": 300.0, "replicas": 3}


async def patient(seen, request, text):
    """Answers nobody until three processes ask together."""
    while seen.most_active < 3 * AT_ONCE:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    return web.json_response(openai_body(text))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "student", seed=3)


@pytest.fixture
def raw(student, tmp_path):
    """A job without an address of its teacher."""
    rows = tmp_path / "train.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"{n} + 1 = ?"}) + "\n" for n in range(NUM_ROWS))
    )
    asked = job(student, rows, "openai", spending={"pilot_rows": 0}, runtime=RUNTIME)
    asked["generate"]["teacher"] = "tiny"
    return asked


def wanted(raw, url, **spending):
    generate = raw["generate"]
    spending = {**generate["spending"], **spending}
    return {**raw, "generate": {**generate, "endpoint": url, "spending": spending}}


def questions(raw):
    lines = Path(raw["prepare"]["train"]).read_text().splitlines()
    return [json.loads(line)["question"] for line in lines]


class Helpers:
    """Starts helpers, each a process of its own, when the job says that its work is shared."""

    def __init__(self, folder: Path):
        self.folder, self.given, self.started = folder, {}, []

    def hear(self, event):
        if event["kind"] == "shared":
            self.given = event["given"]
            self.started = [self.start(number) for number in range(event["number"])]

    def start(self, number):
        command = [sys.executable, "-c", HELP, str(self.folder / f"{number}.log")]
        with (self.folder / f"{number}.err").open("w") as errors:
            process = psutil.Popen(
                command, stdin=subprocess.PIPE, stderr=errors, text=True, env=environment()
            )
        process.stdin.write(json.dumps(self.given))
        process.stdin.close()
        return process

    def codes(self):
        return [process.wait(120) for process in self.started]


def test_a_lost_replicas_range_is_taken_over_and_all_is_answered_once(raw, tmp_path, s3_here):
    store = f"s3://retort/{tmp_path.name}"
    helpers = Helpers(tmp_path)

    async def patient_then_fatal(seen, request, text):
        answer = await patient(seen, request, text)
        if not lost.is_set():
            lost.set()
            kill(helpers.started[0])
        return answer

    lost = threading.Event()
    with endpoint(patient_then_fatal) as (seen, url):
        facts, responses = run(wanted(raw, url), store, Reporter(helpers.hear))
        assert helpers.codes()[1] == 0
        asked = len(seen.seen)
        _, alone = run(wanted(raw, url), str(tmp_path / "alone"))
    assert [r.text for r in responses] == [f"to {question}" for question in questions(raw)]
    assert responses == alone
    assert Counter(entry["key"] for entry in segments(store)).most_common(1)[0][1] == 1
    # What was under way when a process was lost is asked again, and nothing else.
    assert NUM_ROWS <= asked <= NUM_ROWS + 2 * AT_ONCE
    assert facts["num_asked"] == facts["num_responses"] == NUM_ROWS
    assert facts["spending"]["input_tokens"] == sum(map(len, questions(raw)))


def test_every_process_answers_some_and_progress_counts_them_all(raw, tmp_path):
    helpers, told = Helpers(tmp_path), []

    def hear(event):
        helpers.hear(event)
        if event["kind"] == "progress":
            told.append((event["done"], event["total"]))

    with endpoint(patient) as (seen, url):
        run(wanted(raw, url), str(tmp_path / "store"), Reporter(hear))
        assert helpers.codes() == [0, 0]
    prefixes = {path.name.rsplit("-", 1)[0] for path in tmp_path.rglob("segments/*.jsonl")}
    assert len(prefixes) == 3
    assert len(seen.seen) == NUM_ROWS
    assert told[-1] == (NUM_ROWS, NUM_ROWS)
    late = {**helpers.given, "meeting": str(tmp_path / "gone")}
    with pytest.raises(StageError, match="the job has ended, or this worker does not see"):
        help_generate(late, tmp_path / "log", SILENT)


def test_a_limit_is_kept_by_all_together(raw, tmp_path):
    helpers = Helpers(tmp_path)
    raw["generate"]["max_tokens"] = 1
    with endpoint(patient) as (seen, url):
        limited = wanted(raw, url, max_tokens_total=2_400)
        with pytest.raises(StageError, match="max_tokens_total: 2400"):
            run(limited, str(tmp_path / "store"), Reporter(helpers.hear))
        helpers.codes()
    spent = sum(len(text) + 1 for _, text in seen.seen)
    assert 0 < spent <= 2_400


def test_without_helpers_the_job_answers_all_by_itself(raw, student, tmp_path):
    raw["generate"] |= {"engine": "echo", "teacher": str(student)}
    facts, responses = run(raw, str(tmp_path / "store"))
    assert (facts["num_asked"], len(responses)) == (NUM_ROWS, NUM_ROWS)
