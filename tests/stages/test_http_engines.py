"""Engines behind a network: what they answer, a real vLLM server, keys, and what is refused."""

from dataclasses import replace

import pytest
from aiohttp import web

from retort.engines import Request, anthropic, find_engine, openai
from retort.engines._endpoint import open_connection
from retort.errors import SpecError, StageError
from tests.support.misbehaving import SECRET, answered, asking, bad, endpoint, settings

ENGINES = ["openai", "anthropic"]
both = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    for name in ENGINES:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", SECRET)


@both
def test_a_real_server_answers_every_request_and_fails_only_the_one_too_long(name, vllm_url):
    requests = [Request(f"q{n}", [{"role": "user", "content": "a" * n}]) for n in range(1, 61)]
    requests += [Request("long", [{"role": "user", "content": "1" * 300}])]
    found = answered(name, vllm_url, requests)
    long = found.pop("long")
    assert (long.state, long.finish_reason) == ("too_long", "prompt_too_long")
    assert "maximum context length" in long.cause
    # A token a character, and three around them: the lengths tell the requests apart.
    assert {key: r.num_prompt_tokens for key, r in found.items()} == {
        f"q{n}": n + 3 for n in range(1, 61)
    }
    assert {r.state for r in found.values()} <= {"accepted", "truncated"}
    for response in found.values():
        assert 1 <= response.num_tokens <= 8
        assert (response.state == "truncated") == (
            response.finish_reason in ("length", "max_tokens")
        )
        assert response.state == "accepted" or response.num_tokens == 8


@both
def test_equal_prompts_under_different_system_prompts_stay_apart(name, vllm_url):
    def chat(system):
        return [{"role": "system", "content": system}, {"role": "user", "content": "hello"}]

    found = answered(name, vllm_url, [Request(str(n), chat("s" * n)) for n in range(1, 20)])
    assert {key: r.num_prompt_tokens for key, r in found.items()} == {
        str(n): 5 + n + 4 for n in range(1, 20)
    }


@both
def test_what_the_endpoint_refuses_fails_its_row_alone_and_at_once(name):
    async def refusing(endpoint, request, text):
        refusals = {
            "field": bad(400, f"temperature is unsupported, dear {request.headers}"),
            "filter": bad(400, "blocked", "content_filter"),
            "length": bad(400, "too much", "context_length_exceeded"),
            "gone": bad(404, "no such model"),
        }
        return refusals.get(text)

    with endpoint(refusing) as (seen, url):
        found = answered(name, url, asking("field", "filter", "length", "gone", "well"))
    assert len(seen.seen) == 5
    assert {key: r.state for key, r in found.items()} == {
        "field": "failed",
        "filter": "filtered",
        "length": "too_long",
        "gone": "failed",
        "well": "accepted",
    }
    assert found["field"].cause.startswith("http_400: temperature is unsupported")
    assert "***" in found["field"].cause


@both
@pytest.mark.parametrize("body", ["<html>", "[]", '{"choices": []}', '{"content": [{}]}', "null"])
def test_an_answer_that_cannot_be_read_is_a_failed_row(name, body):
    async def garbled(endpoint, request, text):
        return web.Response(text=body)

    with endpoint(garbled) as (_, url):
        (found,) = answered(name, url, asking("a"), max_attempts=1).values()
    assert found.state == "failed"
    assert found.cause


@both
def test_an_error_inside_a_reply_of_status_200_is_tried_again_or_told_with_its_reason(name):
    async def routed(endpoint, request, text):
        errors = {
            "busy": {"message": "Upstream is overloaded", "code": 502},
            "odd": {"message": "Model is not loaded", "code": "model_not_loaded"},
            "limited": {"message": "The provider's limit of this model", "code": 429},
        }
        if text in errors and (text != "busy" or endpoint.times(text) == 1):
            return web.json_response({"id": "x", "choices": None, "error": errors[text]})
        return None

    with endpoint(routed) as (seen, url):
        found = answered(name, url, asking("busy", "odd", "limited", "well"), max_attempts=2)
        assert [seen.times(text) for text in ("busy", "odd", "limited")] == [2, 1, 2]
    assert (found["busy"].state, found["well"].state) == ("accepted", "accepted")
    assert found["odd"].state == "failed" and "Model is not loaded" in found["odd"].cause
    # Whoever the endpoint asked refuses one model: that holds nothing else back for an hour.
    assert found["limited"].state == "failed" and "provider's limit" in found["limited"].cause


@both
@pytest.mark.parametrize("raw", [{}, {"body": None}, {"error": None}, {"error": {}}, []])
def test_a_raw_answer_of_no_known_shape_is_a_failed_row(name, raw):
    found = find_engine(name).parse("a", raw)
    assert (found.id, found.state) == ("a", "failed")


@both
def test_a_message_that_cannot_be_sent_fails_its_row_alone(name):
    async def fine(endpoint, request, text):
        return None

    requests = [*asking("a"), Request("b", [{"role": "user", "content": "\ud800"}])]
    with endpoint(fine) as (_, url):
        found = answered(name, url, requests)
    assert found["b"].cause.startswith("unsendable: ")
    assert found["a"].state == "accepted"


@both
def test_a_key_that_is_not_let_in_stops_the_run_and_names_its_variable(name):
    async def locked(endpoint, request, text):
        return bad(401, f"not with {request.headers}") if len(endpoint.seen) > 20 else None

    module = find_engine(name)
    taken = []
    with endpoint(locked) as (seen, url):
        engine = module.open_engine(settings(url))
        with pytest.raises(StageError, match=f"{name.upper()}_API_KEY") as raised:
            taken.extend(engine.generate(asking(*map(str, range(500)))))
    assert SECRET not in str(raised.value)
    assert 12 <= len(taken) <= 20  # those that came back before
    assert len(seen.seen) < 60


@both
def test_the_key_goes_to_the_endpoint_and_nowhere_else(name, monkeypatch):
    given = []

    async def listening(endpoint, request, text):
        given.append(request.headers.get("Authorization") or request.headers.get("x-api-key"))

    module = find_engine(name)
    with endpoint(listening) as (_, url):
        answered(name, url, asking("a"))
        monkeypatch.setenv("OTHER", f"{SECRET}-2\n")
        other = replace(settings(url), api_key_env="OTHER")
        engine = module.open_engine(other)
        list(engine.generate(asking("a")))
        monkeypatch.delenv(f"{name.upper()}_API_KEY")
        answered(name, url, asking("a"))
    assert [key and key.removeprefix("Bearer ") for key in given] == [SECRET, f"{SECRET}-2", None]
    assert SECRET not in str([engine.facts, vars(engine), module.check(other)])


@both
def test_what_is_wrong_with_an_endpoint_or_a_key_is_said_before_anything_is_asked(
    name, monkeypatch
):
    module = find_engine(name)
    for url in ("ftp://host/v1", "host/v1", f"https://user:{SECRET}@host/v1", "http://h:x/v1"):
        with pytest.raises(SpecError, match="must be a URL") as raised:
            module.check(settings(url))
        assert SECRET not in str(raised.value)
    pasted = replace(settings("http://host/v1"), api_key_env=SECRET)
    with pytest.raises(SpecError, match="never the key") as raised:
        module.check(pasted)
    assert SECRET not in str(raised.value)
    assert module.check(settings(None)).endswith(f"key in {name.upper()}_API_KEY")
    monkeypatch.delenv(f"{name.upper()}_API_KEY")
    with pytest.raises(SpecError, match=f"{name.upper()}_API_KEY"):
        module.check(settings(None))
    assert module.check(settings("http://host:8000/v1")).endswith("no key")


def test_a_redirect_is_not_followed():
    async def elsewhere(endpoint, request, text):
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/v1"})

    with endpoint(elsewhere) as (seen, url):
        (found,) = answered("openai", url, asking("a")).values()
    assert found.cause.startswith("http_307")
    assert len(seen.seen) == 1


def test_a_model_that_wants_max_completion_tokens_gets_it_for_the_rest_of_the_run():
    async def renamed(endpoint, request, text):
        if "max_tokens" in endpoint.bodies[-1]:
            return bad(400, "'max_tokens' is not supported, use 'max_completion_tokens' instead")
        return None

    with endpoint(renamed) as (seen, url):
        found = answered("openai", url, asking(*map(str, range(100))), max_attempts=1)
    assert {r.state for r in found.values()} == {"accepted"}
    assert len(seen.seen) <= 100 + 8
    assert seen.bodies[-1]["max_completion_tokens"] == 8


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "c2"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "tool", "tool_call_id": "c2", "content": "3"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "sure?"},
]


def body_of(name, request, **knobs):
    """What an engine sends for a request."""
    plain = settings("http://host/v1")
    return find_engine(name).API.body(replace(plain, **knobs), request)


def test_openai_gets_chats_and_tools_as_they_are_and_a_seed_where_it_matters():
    assert body_of("openai", Request("a", CHAT, tools=[TOOL])) == {
        "model": "tiny",
        "messages": CHAT,
        "tools": [TOOL],
        "temperature": 0.0,
        "max_tokens": 8,
    }
    sampled = body_of("openai", Request("a", CHAT, max_tokens=3), temperature=0.5, top_p=0.9)
    assert (sampled["seed"], sampled["top_p"], sampled["max_tokens"]) == (0, 0.9, 3)
    assert body_of("openai", Request("a", CHAT, seed=7), temperature=0.5)["seed"] == 7


def test_anthropic_gets_system_turns_tools_and_calls_in_its_own_form():
    body = body_of("anthropic", Request("a", CHAT, tools=[TOOL, {"name": "own"}]), top_p=0.9)
    use = {"type": "tool_use", "name": "add", "input": {"a": 1}}
    given = {"type": "tool_result", "content": "3"}
    assert body == {
        "model": "tiny",
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": [{**use, "id": "c1"}, {**use, "id": "c2"}]},
            {
                "role": "user",
                "content": [{**given, "tool_use_id": "c1"}, {**given, "tool_use_id": "c2"}],
            },
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "sure?"},
        ],
        "tools": [{"name": "add", "input_schema": {"type": "object"}}, {"name": "own"}],
        "temperature": 0.0,
        "top_p": 0.9,
        "max_tokens": 8,
    }


def test_tool_calls_refusals_and_token_ids_are_read():
    message = {"content": None, "tool_calls": [CALL]}
    choice = {"message": message, "finish_reason": "tool_calls", "token_ids": [5, 2]}
    called = openai.parse("a", {"body": {"choices": [choice]}})
    assert (called.state, called.tool_calls, called.token_ids) == ("accepted", [CALL], [5, 2])
    choice = {"message": {"content": None, "refusal": "never"}, "finish_reason": "stop"}
    refused = openai.parse("a", {"body": {"choices": [choice]}})
    assert (refused.state, refused.cause) == ("refused", "refusal: never")
    block = {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}
    used = anthropic.parse("a", {"body": {"content": [block], "stop_reason": "tool_use"}})
    assert (used.state, used.tool_calls) == ("accepted", [CALL])
    refused = anthropic.parse("a", {"body": {"content": [], "stop_reason": "refusal"}})
    assert (refused.state, refused.cause) == ("refused", "stop_reason: refusal")


def test_the_address_and_the_header_follow_the_endpoint():
    azure = "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024"
    connection = open_connection(settings(azure), openai.API)
    assert connection.url(openai.API.path) == azure
    assert connection.headers == {"api-key": SECRET, "Authorization": f"Bearer {SECRET}"}
    assert connection.shown == azure.partition("?")[0]
    connection = open_connection(settings(None), openai.API)
    assert connection.url(openai.API.path) == "https://api.openai.com/v1/chat/completions"
    assert connection.headers == {"Authorization": f"Bearer {SECRET}"}
    for address in ("http://host:80/v1/messages", "http://host:80/v1/", "http://host:80"):
        connection = open_connection(settings(address), anthropic.API)
        assert connection.url(anthropic.API.path) == "http://host:80/v1/messages"
        assert connection.shown == address
    assert connection.headers == {"x-api-key": SECRET, "anthropic-version": "2023-06-01"}
    assert SECRET not in repr(connection)
