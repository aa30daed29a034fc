"""Replies as the servers of OpenAI's protocol write them, a shape of each."""

import pytest

from retort.data.reasoning import think
from retort.engines import anthropic, openai
from retort.engines._shapes import count

FUNCTION = {"name": "weather", "arguments": '{"city": "Oslo"}'}


def reply(message, reason="stop", **more):
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}], **more}


def read(body):
    return openai.parse("row", {"body": body})


# By server: the reply, its text, its reasoning, its state, and the tokens of prompt and answer.
SHAPES = {
    "vLLM": (
        reply(
            {"role": "assistant", "content": "Paris", "reasoning": "\nFrance.\n", "tool_calls": []},
            usage={"prompt_tokens": 11, "completion_tokens": 4, "prompt_tokens_details": None},
        ),
        ("Paris", "France.", "accepted", 11, 4),
    ),
    "llama.cpp": (
        reply({"content": "Paris", "reasoning_content": ""}, timings={"predicted_n": 2}),
        ("Paris", None, "accepted", 0, 0),
    ),
    "Azure": (
        reply(
            {"content": None, "annotations": []},
            "content_filter",
            usage={"prompt_tokens": 9, "completion_tokens": 0},
        ),
        ("", None, "filtered", 9, 0),
    ),
    "DeepSeek": (
        reply(
            {"content": "Paris", "reasoning_content": "A capital."},
            usage={"prompt_tokens": 7, "completion_tokens": 20, "prompt_cache_hit_tokens": 0},
        ),
        ("Paris", "A capital.", "accepted", 7, 20),
    ),
    "Mistral": (
        reply(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Seine"}]},
                    {"type": "text", "text": "Pa"},
                    {"type": "text", "text": "ris"},
                ]
            },
            "model_length",
        ),
        ("Paris", "Seine", "truncated", 0, 0),
    ),
    "Gemini": (
        reply({"content": "Paris"}, "MAX_TOKENS", usage=None),
        ("Paris", None, "truncated", 0, 0),
    ),
    "Gemini's safety": (reply({"role": "model"}, "SAFETY"), ("", None, "filtered", 0, 0)),
    "OpenRouter": (
        reply({"content": "Paris", "reasoning": None, "refusal": None}, None),
        ("Paris", None, "accepted", 0, 0),
    ),
    "LiteLLM": (
        reply(
            {"content": "Paris"},
            "end_turn",
            usage={"prompt_tokens": "12", "completion_tokens": 3.0},
        ),
        ("Paris", None, "accepted", 12, 3),
    ),
    "TGI": (
        reply({"content": "Paris"}, "eos_token", usage={"prompt_tokens": None}),
        ("Paris", None, "accepted", 0, 0),
    ),
    "Together": (reply({"content": "Paris"}, "eos"), ("Paris", None, "accepted", 0, 0)),
    "no reason at all": (
        {"choices": [{"message": {"content": [{"type": "text", "text": "Paris"}]}}]},
        ("Paris", None, "accepted", 0, 0),
    ),
    "reasoning that the text holds": (
        reply({"content": "<think>A.</think>Paris", "reasoning_content": "A."}),
        ("Paris", "A.", "accepted", 0, 0),
    ),
}


@pytest.mark.parametrize("server", SHAPES)
def test_each_servers_reply_is_read(server):
    body, (text, reasoning, state, num_prompt, num_answer) = SHAPES[server]
    found = read(body)
    assert (think(found.text)[1], think(found.text)[0]) == (text, reasoning)
    assert (found.state, found.num_prompt_tokens, found.num_tokens) == (
        state,
        num_prompt,
        num_answer,
    )


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": FUNCTION}]},
        {
            "tool_calls": [
                {"id": "c", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
            ]
        },
        {"content": None, "function_call": FUNCTION},
    ],
)
def test_tool_calls_have_their_arguments_as_text(message):
    found = read(reply(message, "function_call" if "function_call" in message else "tool_calls"))
    (call,) = found.tool_calls
    assert found.state == "accepted" and call["function"]["name"] == "weather"
    assert call["function"]["arguments"].replace(" ", "") == '{"city":"Oslo"}'


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (reply({"content": 42}), "content is int"),
        (reply({"content": {"answer": 42}}), "content is dict"),
        (reply({"content": [42]}), "part of the content is int"),
        (reply({"content": "x", "tool_calls": "f()"}), "tool calls are no list"),
        (reply("Paris"), "no message"),
        ({"choices": "Paris"}, "no choices"),
        ({"choices": [], "error": {"error": {"message": "upstream died"}}}, "upstream died"),
        ({}, "no choices"),
    ],
)
def test_what_is_no_answer_fails_alone_with_its_reason(body, cause):
    found = read(body)
    assert found.state == "failed" and cause in found.cause


def test_an_unknown_reason_is_told_as_it_was_written():
    found = read(reply({"content": "x"}, "Aborted"))
    assert (found.state, found.cause) == ("failed", "finish_reason: Aborted")


@pytest.mark.parametrize(
    ("value", "number"),
    [(None, 0), ("7", 7), (7.9, 7), ("many", 0), (-3, 0), (float("nan"), 0), ([], 0), ("1e400", 0)],
)
def test_a_count_is_a_number_whatever_it_is_written_as(value, number):
    assert count(value) == number


def test_anthropics_thinking_stands_before_the_text():
    blocks = [{"type": "thinking", "thinking": "Seine"}, {"type": "text", "text": "Paris"}]
    body = {"content": [*blocks, {"type": "redacted_thinking", "data": "x"}], "stop_reason": None}
    found = anthropic.parse("row", {"body": {**body, "usage": {"output_tokens": "5"}}})
    assert think(found.text) == ("Seine", "Paris")
    assert (found.state, found.num_tokens) == ("accepted", 5)
