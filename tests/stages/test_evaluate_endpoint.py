"""Models behind an endpoint: timed by streaming, asked once, never loaded to their limit."""

from dataclasses import replace

import pytest
from aiohttp import web

from retort.engines import Request, find_engine
from retort.events import SILENT
from retort.stages.evaluate.measure import measure
from tests.stages.test_evaluate import folder, stage
from tests.support.misbehaving import SECRET, asking, bad, endpoint, settings

__all__ = ["folder"]
ENGINES = ["openai", "anthropic"]
both = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    for name in ENGINES:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", SECRET)


def opened(name: str, url: str):
    return find_engine(name).open_engine(settings(url))


@both
def test_a_real_server_shows_its_first_token_before_the_whole_answer(name, vllm_url):
    engine = opened(name, vllm_url)
    for text in ("hello", "what is this?", "again"):
        timing = engine.timed(Request("q", [{"role": "user", "content": text}]))
        assert timing.first_token_seconds is not None
        assert 0 < timing.first_token_seconds <= timing.whole_seconds


def events(*lines: str):
    """An endpoint that streams these lines."""

    async def behave(seen, request, text):
        if not seen.bodies[-1].get("stream"):
            return None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in lines:
            await response.write(line.encode() + b"\n\n")
        await response.write_eof()
        return response

    return behave


def test_an_event_without_text_is_no_token():
    role = 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}'
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 0}}'
    with endpoint(events(": ping", role, usage, "data: [DONE]")) as (seen, url):
        timing = opened("openai", url).timed(asking("a")[0])
    assert timing.first_token_seconds is None and timing.whole_seconds > 0
    assert len(seen.bodies) == 1
    text = 'data: {"choices": [{"delta": {"content": "x"}}]}'
    with endpoint(events(role, text, "data: [DONE]")) as (seen, url):
        assert opened("openai", url).timed(asking("a")[0]).first_token_seconds is not None


@both
@pytest.mark.parametrize("how", ["refuses", "answers whole", "breaks"])
def test_an_endpoint_that_does_not_stream_is_timed_to_the_whole_answer(name, how):
    async def behave(seen, request, text):
        if how == "answers whole" or not seen.bodies[-1].get("stream"):
            return None
        if how == "breaks":
            request.transport.close()
        return bad(400, "stream is not supported")

    with endpoint(behave) as (seen, url):
        engine = opened(name, url)
        timings = [engine.timed(request) for request in asking("a", "b")]
    assert all(t.first_token_seconds is None and t.whole_seconds > 0 for t in timings)
    # It is tried once: the second request is not streamed any more.
    assert [bool(body.get("stream")) for body in seen.bodies] == [True, False, False]


def test_a_field_that_the_endpoint_calls_otherwise_is_named_so():
    streams = events('data: {"choices": [{"delta": {"content": "x"}}]}')

    async def behave(seen, request, text):
        if "max_tokens" in seen.bodies[-1]:
            return bad(400, "use max_completion_tokens instead of max_tokens")
        return await streams(seen, request, text)

    with endpoint(behave) as (seen, url):
        timing = opened("openai", url).timed(asking("a")[0])
    assert timing.first_token_seconds is not None and len(seen.bodies) == 2


def test_an_endpoint_answers_the_examples_once_and_is_not_loaded(folder, tmp_path):
    async def behave(seen, request, text):
        return None

    with endpoint(behave) as (seen, url):
        asked = stage(folder, "transformers", tmp_path)
        spec = asked.spec
        remote = spec.generate.model_copy(update={"engine": "anthropic", "endpoint": url})
        asked = replace(asked, spec=spec.model_copy(update={"generate": remote}))
        first, second = (
            measure(asked.arguments(), "teacher", "its-name", number, SILENT) for number in (1, 2)
        )
    # All examples once; in each round three alone, before which streaming is tried.
    assert len(seen.bodies) == 10 + 2 * (1 + 3)
    assert first["num_tokens"] == 10 and first["endpoint"] == url
    unknown = ("parameters", "weights_bytes", "peak_memory_bytes", "load_seconds")
    assert all(first[name] is None for name in unknown)
    assert "levels" not in first and len(first["latencies"]["whole"]) == 3
    assert "requests_per_second" not in second and len(second["latencies"]["whole"]) == 3
