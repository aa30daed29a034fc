"""Many requests in flight at endpoints that are busy, broken, slow or gone."""

import asyncio
import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from retort.engines import find_engine
from retort.engines._request_pool import AimdLimiter
from retort.errors import StageError
from retort.events import Reporter
from tests.support.misbehaving import answered, asking, bad, endpoint, openai_body, settings, well
from tests.support.stages import job, run
from tests.support.tiny import save_model, write_rows

ENGINES = ["openai", "anthropic"]
both = pytest.mark.parametrize("name", ENGINES)


@both
def test_a_pause_that_the_endpoint_asks_for_is_kept_by_every_request(name):
    refused = []

    async def busy_once(endpoint, request, text):
        if not refused:
            refused.append(time.monotonic())
            return bad(429, Retry_After="1")
        return await well(endpoint, request, text)

    with endpoint(busy_once) as (seen, url):
        found = answered(name, url, asking(*map(str, range(40))))
    assert {r.state for r in found.values()} == {"accepted"}
    after = [when - refused[0] for when, _ in seen.seen]
    assert [t for t in after if 0.2 < t < 0.95] == []
    assert max(after) > 1


def test_a_pause_may_be_a_date_and_uses_up_no_attempts():
    until = datetime.now(UTC) + timedelta(seconds=2)

    async def busy(endpoint, request, text):
        if datetime.now(UTC) < until:
            return bad(503, Retry_After=format_datetime(until, usegmt=True))
        return None

    with endpoint(busy) as (seen, url):
        found = answered("openai", url, asking(*map(str, range(20))), max_attempts=1)
    assert {r.state for r in found.values()} == {"accepted"}
    assert len(seen.seen) < 200


def test_a_storm_of_refusals_fails_no_row():
    async def stormy(endpoint, request, text):
        return bad(429, Retry_After="0.02") if len(endpoint.seen) < 100 else None

    with endpoint(stormy) as (_, url):
        found = answered("openai", url, asking("a", "b", "c"), max_attempts=1)
    assert {r.state for r in found.values()} == {"accepted"}


def test_what_runs_at_once_grows_to_the_limit_and_shrinks_when_pushed_back():
    async def at_most_ten(endpoint, request, text):
        if endpoint.num_active > 10:
            return bad(429, Retry_After="0.05")
        return await well(endpoint, request, text)

    names = [str(n) for n in range(600)]
    with endpoint(well) as (seen, url):
        answered("openai", url, asking(*names), max_concurrency=64)
        assert seen.most_active == 64
    with endpoint(at_most_ten) as (seen, url):
        found = answered("openai", url, asking(*names), max_concurrency=64)
    assert {r.state for r in found.values()} == {"accepted"}
    num_refused = len(seen.seen) - 600
    assert num_refused < 120


def test_the_limit_doubles_then_halves_once_a_round_trip_then_creeps():
    limiter = AimdLimiter(100)
    for _ in range(32):
        limiter.on_success()
    assert limiter.limit == 64
    started = time.monotonic()
    limiter.on_overload(started)
    limiter.on_overload(started)
    assert limiter.limit == 32
    for _ in range(33):
        limiter.on_success()
    assert 32.9 < limiter.limit < 33.1
    for _ in range(10):
        limiter.on_overload(time.monotonic() + 1)
    assert limiter.limit == 1


@both
@pytest.mark.parametrize("status", [500, 503, 529])
def test_a_passing_failure_is_asked_again(name, status):
    async def first_fails(endpoint, request, text):
        return bad(status) if endpoint.times(text) == 1 else None

    with endpoint(first_fails) as (seen, url):
        found = answered(name, url, asking("a", "b", "c"))
    assert {r.text for r in found.values()} == {"to a", "to b", "to c"}
    assert len(seen.seen) == 6


@both
def test_a_cut_connection_and_a_hanging_one_are_asked_again_and_then_given_up(name):
    async def broken(endpoint, request, text):
        if text == "cut" or (text == "cut once" and endpoint.times(text) == 1):
            request.transport.abort()
        if text == "hangs" or (text == "hangs once" and endpoint.times(text) == 1):
            await asyncio.sleep(30)

    requests = asking("cut", "cut once", "hangs", "hangs once", "well")
    with endpoint(broken) as (seen, url):
        started = time.monotonic()
        found = answered(name, url, requests, request_timeout_seconds=0.3, max_attempts=2)
    assert time.monotonic() - started < 5
    assert {key for key, r in found.items() if r.state == "accepted"} == {
        "cut once",
        "hangs once",
        "well",
    }
    assert found["cut"].cause.startswith("connection: ")
    assert found["hangs"].cause.startswith("timeout: ")
    assert seen.times("cut") == seen.times("hangs") == 2


@both
def test_one_slow_request_holds_back_no_other(name):
    async def slow(endpoint, request, text):
        await asyncio.sleep(1 if text == "slow" else 0)

    module = find_engine(name)
    with endpoint(slow) as (_, url):
        engine = module.open_engine(settings(url))
        order = [a.id for a in engine.generate(asking("slow", *map(str, range(100))))]
    assert order[-1] == "slow"


def test_turns_that_follow_an_answer_are_asked_when_it_has_come():
    answers, asked = [], []

    def turns():
        for turn in range(3):
            wanted = asking(f"a{turn}", f"b{turn}")
            asked.extend(wanted)
            yield from wanted
            while len(answers) < len(asked):
                yield None

    module = find_engine("openai")
    with endpoint(well) as (_, url):
        for answer in module.open_engine(settings(url)).generate(turns()):
            answers.append(answer)
    assert sorted(a.id for a in answers) == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_requests_are_taken_only_as_room_allows():
    num_taken = 0

    def endless():
        nonlocal num_taken
        for request in asking(*map(str, range(10_000))):
            num_taken += 1
            yield request

    with endpoint(well) as (_, url):
        answers = find_engine("openai").open_engine(settings(url)).generate(endless())
        for _ in range(10):
            next(answers)
        time.sleep(0.3)
        assert num_taken <= 10 + 2 * 8
        answers.close()


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_an_end_on_the_callers_side_ends_the_thread_and_the_connections(how):
    async def hangs(endpoint, request, text):
        await asyncio.sleep(0 if text == "0" else 30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with endpoint(hangs) as (seen, url):
        engine = find_engine("openai").open_engine(settings(url))
        answers = engine.generate(asking(*map(str, range(50))))
        assert next(answers).id == "0"
        if how == "close":
            answers.close()
        else:
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
            with pytest.raises(KeyboardInterrupt):
                next(answers)
        signal.signal(signal.SIGINT, before)
        assert not [t for t in threading.enumerate() if t.name == "retort-http"]
        for _ in range(100):
            if not seen.num_active:
                break
            time.sleep(0.02)
        assert not seen.num_active


def test_without_usage_the_budget_holds_over_runs_and_is_said_once(tmp_path):
    rows = write_rows(tmp_path / "train.jsonl", 30, seed=1)
    model = save_model(tmp_path / "student")
    asked = [json.loads(line)["question"] for line in rows.open()]

    async def untold(seen, request, text):
        return web.json_response({**openai_body(text), "usage": None})

    with endpoint(untold) as (seen, url):

        def run_with(most: int, said: list) -> dict:
            spending = {"pilot_rows": 0, "max_tokens_total": most}
            more = {"endpoint": url, "max_tokens": 40, "spending": spending}
            report = Reporter(lambda event: said.append(event.get("text", "")))
            return run(job(model, rows, "openai", **more), str(tmp_path / "store"), report)[0]

        with pytest.raises(StageError, match="answers came without their usage") as error:
            run_with(3_000, [])
        num = len(seen.bodies)
        assert f"{40 * num} answer tokens" in str(error.value)
        assert 0 < num <= 3_000 // 40 and num < 30
        with pytest.raises(StageError):
            run_with(3_000, [])
        assert len(seen.bodies) == num
        facts = run_with(30_000, said := [])
    assert len(seen.bodies) == 30 == facts["spending"]["num_without_usage"]
    assert facts["spending"]["output_tokens"] == 30 * 40
    assert facts["spending"]["input_tokens"] > sum(map(len, asked))
    assert sum("30 answers came without their usage" in text for text in said) == 1
