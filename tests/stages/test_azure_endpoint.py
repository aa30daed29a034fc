"""The Azure ML job with an endpoint that breaks off, is busy or slow, or wants a key."""

import asyncio
from pathlib import Path

import orjson
import pytest
import yaml

from retort.errors import StageError
from retort.spec import load
from retort.stages.stage import read_responses
from tests.support.azure_job import without_key
from tests.support.azure_rows import EASY, QUESTIONS, completion, make, row, spec_of, write_job
from tests.support.misbehaving import SECRET, bad, endpoint
from tests.support.stages import segments
from tests.support.tiny import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("job")
    save_model(home / "student", hidden=32, layers=1)
    return home


def test_6_what_was_answered_is_written_at_once_and_never_asked_again(folder, tmp_path):
    path = write_job(tmp_path, [orjson.dumps(row(question)) for question in QUESTIONS])
    (tmp_path / "student").symlink_to(folder / "student")
    store = str(tmp_path / "store")
    broken = True

    async def closes_its_door(seen, request, text):
        return bad(401) if broken and len(seen.seen) > 5 else completion("Answer: neutral")

    with endpoint(closes_its_door) as (seen, url):
        raw = spec_of(path, url)
        with pytest.raises(StageError, match="refused the key"):
            make(raw, store, "prepare", "generate")
        standing = len(segments(store))
        assert standing >= 4
        broken, before = False, len(seen.seen)
        generated = make(raw, store, "generate")
        assert len(seen.seen) - before == len(QUESTIONS) + 1 - standing
    assert len(read_responses(generated)) == len(QUESTIONS) + 1


def test_a_key_in_the_job_file_reaches_its_endpoint_and_no_file(folder, tmp_path, monkeypatch):
    without_key(monkeypatch)
    path = write_job(tmp_path, [orjson.dumps(row(question)) for question in QUESTIONS[:3]])
    headers: list[str] = []

    async def welcomes(seen, request, text):
        headers.append(request.headers.get("Authorization", ""))
        return completion("Answer: neutral")

    store = str(tmp_path / "store")
    with endpoint(welcomes) as (_, url):
        job = yaml.safe_load(path.read_text())
        given = {"endpoint": f"{url}/chat/completions", "api_key": SECRET}
        job["teacher_model_endpoint_connection"] |= given
        path.write_text(yaml.safe_dump(job))
        spec, _ = load(path, EASY, student=str(folder / "student"))
        raw = spec.model_dump(mode="json")
        make(raw, store, "prepare", "generate", "curate")
    assert headers == [f"Bearer {SECRET}"] * 4
    kept = [file.read_bytes() for file in Path(store).rglob("*") if file.is_file()]
    assert kept
    assert not any(SECRET.encode() in data for data in kept)


def test_10_a_busy_endpoint_ends_no_row(folder, tmp_path):
    path = write_job(tmp_path, [orjson.dumps(row(question)) for question in QUESTIONS])
    (tmp_path / "student").symlink_to(folder / "student")

    async def busy_at_first(seen, request, text):
        busy = seen.times(text) <= 2
        return bad(429, Retry_After="0.02") if busy else completion("Answer: neutral")

    with endpoint(busy_at_first) as (_, url):
        raw = spec_of(path, url, "generate.runtime.max_attempts=1")
        generated = make(raw, str(tmp_path / "store"), "prepare", "generate")
    states = [response.state for response in read_responses(generated)]
    assert states == ["accepted"] * (len(QUESTIONS) + 1)


def test_11_a_slow_row_holds_back_no_other(folder, tmp_path):
    slow = row("slow: Premise: Moss grows under the bridge. Hypothesis: It is green.")
    rows = [slow, *map(row, QUESTIONS)]
    path = write_job(tmp_path, list(map(orjson.dumps, rows)))
    (tmp_path / "student").symlink_to(folder / "student")
    answered: list[str] = []

    async def slow_first(seen, request, text):
        # Two are asked at a time, and one of them is answered when all others are.
        while text.startswith("slow") and len(answered) < len(rows):
            await asyncio.sleep(0.01)
        answered.append(text)
        return completion("Answer: neutral")

    with endpoint(slow_first) as (_, url):
        raw = spec_of(path, url, "generate.runtime.request_timeout_seconds=20")
        generated = make(raw, str(tmp_path / "store"), "prepare", "generate")
    assert {response.state for response in read_responses(generated)} == {"accepted"}
    assert answered[-1].startswith("slow")
    assert len(answered) == len(rows) + 1
