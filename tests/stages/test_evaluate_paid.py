"""A teacher that is paid for: evaluate asks it through a ledger, and within its budget."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retort.errors import StageError
from retort.stages.evaluate import evaluate
from retort.stages.evaluate.compared_models import read_answers
from retort.stages.generate import generate
from retort.stages.prepare import prepare
from retort.stages.stage import Stage
from retort.store import Folder
from tests.conftest import environment
from tests.stages.test_evaluate import job, made
from tests.stages.test_evaluate_endpoint import events
from tests.support.misbehaving import Endpoint, endpoint, openai_body
from tests.support.stages import stage_of

NUM_ROWS, AT_ONCE = 40, 2
SAME = ("metrics", "latencies", "requests_per_second", "tokens_per_second", "num_tokens")
streamed = events('data: {"choices": [{"delta": {"content": "x"}}]}', "data: [DONE]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("paid")
    rows = [{"id": f"r{n}", "question": f"{n} - 3 = ?"} for n in range(10, NUM_ROWS)]
    (place / "more.json").write_text(json.dumps(rows))
    return made(place)


def spec(folder: Path, url: str, spending: Any = (), **evaluated: Any) -> dict[str, Any]:
    """A job whose teacher answers at the address, and whose other models repeat."""
    raw = job(folder, "echo", **{"runtime": {"max_concurrency": AT_ONCE}, **evaluated})
    knobs = {"teacher": "t", "engine": "openai", "endpoint": url, "top_k": 0}
    raw["generate"] |= knobs | {"spending": {"pilot_rows": 0, **dict(spending)}}
    return raw


def staged(folder: Path, raw: dict[str, Any]) -> Stage:
    store = str(folder / "store")
    inputs = {
        "prepare": stage_of("prepare", raw, store, {}).out.finished(),
        "train": Folder(f"{store}/artifacts/train/made").finished(),
    }
    return stage_of("evaluate", raw, store, inputs)


def texts(seen: Endpoint, stream: bool = False) -> Counter[str]:
    """How often each text was asked, for an answer or, streamed, for its latency."""
    bodies = [body for body in seen.bodies if bool(body.get("stream")) == stream]
    return Counter(body["messages"][-1]["content"] for body in bodies)


class Teacher:
    """Answers so many requests for answers, and so many for latencies; what comes then hangs."""

    def __init__(self, answers: int = 10_000, timed: int = 10_000):
        self.answers, self.timed = answers, timed

    async def __call__(self, seen: Endpoint, request: web.Request, text: str) -> Any:
        is_timed = bool(seen.bodies[-1].get("stream"))
        left = self.timed if is_timed else self.answers
        if left <= 0:
            await asyncio.sleep(600)
        if is_timed:
            self.timed -= 1
            return await streamed(seen, request, text)
        self.answers -= 1
        return web.json_response(openai_body(text))


def num_committed(folder: Path, url: str) -> int:
    """How many answers and timed requests of an endpoint lie in ledgers on the disk."""
    contexts = (folder / "store/ledger").glob("*/manner.json")
    here = [path.parent for path in contexts if url in path.read_text()]
    segments = [path for place in here for path in place.glob("segments/*.jsonl")]
    return sum(len(path.read_text().splitlines()) - 1 for path in segments)  # without its checksums


def kill_at(folder: Path, raw: dict[str, Any], url: str, num: int) -> None:
    """Evaluates in a process of its own until so much is committed, and kills it with 9."""
    code = f"from tests.stages.test_evaluate_paid import main; main({str(folder)!r}, {raw!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), start_new_session=True
    )
    deadline = time.monotonic() + 60
    while num_committed(folder, url) < num and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(folder: str, raw: dict[str, Any]) -> None:
    evaluate(staged(Path(folder), raw))


def test_kill_9_asks_again_what_was_in_flight_and_another_knob_asks_nobody(folder):
    teacher = Teacher(answers=30)
    with endpoint(teacher) as (seen, url):
        raw = spec(folder, url, latency_samples=8)
        kill_at(folder, raw, url, 30)
        assert texts(seen).total() == 30 + AT_ONCE
        teacher.answers, teacher.timed = 10_000, 5
        kill_at(folder, raw, url, NUM_ROWS + 5)
        assert texts(seen).total() == NUM_ROWS + AT_ONCE
        # The kill may come before the next one is asked.
        timed = texts(seen, stream=True).total()
        assert timed in (5, 5 + 1)
        teacher.timed = 10_000
        facts = evaluate(staged(folder, raw))
        assert texts(seen).total() == NUM_ROWS + AT_ONCE and len(texts(seen)) == NUM_ROWS
        # Two rounds of eight, and the one that was under way, if any.
        assert texts(seen, stream=True).total() == 2 * 8 + timed - 5
        num = len(seen.bodies)
        again = evaluate(staged(folder, spec(folder, url, latency_samples=8, num_bootstrap=200)))
        assert len(seen.bodies) == num
    own, other = facts["models"]["teacher"], again["models"]["teacher"]
    assert own["num_unanswered"] == 0 and own["latency_seconds"]["n"] == 8
    assert {key: own[key] for key in SAME} == {key: other[key] for key in SAME}
    assert own["requests_per_second"] > 0 and not own["cut_short"]
    # Who asked pays: forty answers and sixteen timed requests of one token each, and no other run.
    assert facts["spending"]["output_tokens"] == NUM_ROWS + 16
    assert again["spending"]["output_tokens"] == 0


PROMPTS = sum(len(f"{n} + 7 = ?") for n in range(9)) + len("What is 9 + 7? Score: 4")
PROMPTS += sum(len(f"{n} - 3 = ?") for n in range(10, NUM_ROWS))


def test_the_budget_ends_evaluate_cleanly_and_a_higher_one_goes_on(folder):
    prices = {"price_per_million_input_tokens": 1e6}  # a token of a prompt costs 1
    with endpoint(Teacher()) as (seen, url):

        def asked(most: float) -> dict[str, Any]:
            raw = spec(folder, url, {**prices, "max_cost": most}, latency_samples=2, rounds=1)
            return evaluate(staged(folder, raw))

        with pytest.raises(StageError, match=r"generate\.spending\.max_cost: 600: ") as error:
            asked(600)
        num = len(seen.bodies)
        assert 0 < num < NUM_ROWS and not texts(seen, stream=True)
        assert f"{num} answers and timed requests of the comparison are in the" in str(error.value)
        assert "raise the limit and run the same command" in str(error.value)
        with pytest.raises(StageError, match="max_cost: 601"):
            asked(601)
        assert len(seen.bodies) < NUM_ROWS and max(texts(seen).values()) == 1
        # No request is sent that could exceed the limit, of those that are timed neither.
        with pytest.raises(StageError, match=f"max_cost: {PROMPTS + 1}"):
            asked(PROMPTS + 1)
        assert not texts(seen, stream=True)
        facts = asked(10_000)
        assert len(texts(seen)) == NUM_ROWS == texts(seen).total()
    timed = len("0 + 7 = ?") + len("1 + 7 = ?")
    assert facts["spending"]["cost"] == facts["spending"]["input_tokens"] == PROMPTS + timed
    assert facts["models"]["teacher"]["num_prompt_tokens"] == PROMPTS


def test_what_generate_has_spent_is_part_of_the_budget_of_evaluate(folder):
    with endpoint(Teacher()) as (seen, url):
        asked = staged(folder, spec(folder, url, {"max_tokens_total": 9_999}, rounds=1))
        store = asked.store
        made_of = {"prepare": "p", "generate": "of-the-teacher", "curate": "c"}
        store.artifact("generate", "of-the-teacher").commit(
            {"facts": {"spending": {"input_tokens": 9_000, "output_tokens": 900}}}
        )
        student = store.artifact("train", "paid")
        for name in (trained := asked.input("train")).files():
            student.write(name, trained.read(name))
        student.commit({"ingredients": {"inputs": made_of}, "facts": asked.facts("train")})
        inputs = {**asked.inputs, "train": student.finished()}
        with pytest.raises(StageError, match="9,000 prompt and 900 answer"):
            evaluate(replace(asked, inputs=inputs))
    assert not seen.bodies


def test_what_generate_paid_for_is_used_where_the_same_would_be_asked(tmp_path):
    rows = [{"id": f"v{n}", "question": f"{n} - 3 = ?"} for n in range(10, 14)]
    place = made(tmp_path)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def at_length(seen: Endpoint, request: web.Request, text: str) -> Any:
        body = {**openai_body(text), "usage": {"prompt_tokens": 5, "completion_tokens": len(text)}}
        return await streamed(seen, request, text) or web.json_response(body)

    with endpoint(at_length) as (seen, url):

        def asked(limit: int, **knobs: Any) -> Counter[str]:
            raw = spec(place, url, limit=4, rounds=1, latency_samples=2, max_tokens=limit)
            raw["prepare"] |= {name: str(place / "rows.jsonl") for name in ("train", "test")}
            raw["prepare"]["decontaminate"] = {"enabled": False}
            raw["generate"] |= {"max_tokens": 40, **knobs}
            prepared = stage_of("prepare", raw, str(place / "store"), {})
            if not prepared.out.finished():
                prepared.out.commit({"facts": prepare(prepared)})
            before = texts(seen)
            if not knobs:
                inputs = {"prepare": prepared.out.finished()}
                generate(stage_of("generate", raw, str(place / "store"), inputs))
            stage = staged(place, raw)
            evaluate(stage)
            assert {r.text for r in read_answers(stage, "teacher").values()} == {
                f"to {row['question']}" for row in rows
            }
            return texts(seen) - before

        assert asked(40) == {row["question"]: 1 for row in rows}  # by generate, and by nobody else
        assert texts(seen, stream=True).total() == 2  # how long they took there is no latency
        assert not asked(10, temperature=0.5)  # ten tokens are not cut off
        assert asked(9, temperature=0.5) == {row["question"]: 1 for row in rows}  # they would be


def test_a_judge_at_an_endpoint_has_a_budget_of_its_own(folder):
    with endpoint(Teacher()) as (seen, url):

        def judged(**spending: Any) -> dict[str, Any]:
            judge = {"model": "j", "engine": "openai", "endpoint": url, "max_tokens": 20}
            judge |= {"rubric": "Is it right?", "spending": spending}
            raw = spec(folder, url, rounds=1, latency_samples=2, limit=12, judge=judge)
            return evaluate(staged(folder, raw))

        with pytest.raises(StageError, match="max_tokens_total: 5000") as e:
            judged(max_tokens_total=5_000)
        asked = [body for body in seen.bodies if body["model"] == "j"]
        assert "stopped by evaluate.judge.spending." in str(e.value)
        assert 0 < len(asked) < 24 and f"{len(asked)} of 24 answers are in the" in str(e.value)
        judged(max_tokens_total=50_000)
        asked = [body["messages"][0]["content"] for body in seen.bodies if body["model"] == "j"]
        assert len(asked) == 24 == len(set(asked))
