"""Chats as each provider or dataset writes them, with the form that each is of."""

import json

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


CALL_OF_2 = {**CALL, "function": {"name": "f", "arguments": {"a": 2}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CHAT = [turn("system", "Be brief."), turn("user", "2 + 3?"), turn("assistant", "5")]
ASKED = CHAT[1:2]

# A sample, the form that it must be recognised as, and its chat.
CHATS = {
    "openai": ({"messages": CHAT}, "messages", CHAT),
    "developer": ({"messages": [turn("developer", "Be brief."), *CHAT[1:]]}, "messages", CHAT),
    "parts": (
        {
            "messages": [
                turn("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
            ]
        },
        "messages",
        [turn("user", "a\nb")],
    ),
    "anthropic": ({"system": "Be brief.", "messages": CHAT[1:]}, "messages", CHAT),
    "tools": (
        {
            "messages": [
                *ASKED,
                turn("assistant", None, tool_calls=[CALL], weight=0),
                turn("tool", "5", tool_call_id="c1"),
                turn("tool", "6", tool_call_id="c2", name=None),
                turn("assistant", "5"),
            ]
        },
        "messages",
        [
            *ASKED,
            turn("assistant", "", tool_calls=[CALL]),
            turn("tool", "5", tool_call_id="c1"),
            turn("tool", "6", tool_call_id="c2"),
            turn("assistant", "5"),
        ],
    ),
    "functions before tools": (
        {
            "messages": [
                *ASKED,
                turn("assistant", None, function_call={"name": "f", "arguments": "{}"}),
                turn("function", "5", name="f"),
            ]
        },
        "messages",
        [
            *ASKED,
            turn("assistant", "", tool_calls=[{**CALL, "id": "call_2"}]),
            turn("tool", "5", name="f", tool_call_id="call_2"),
        ],
    ),
    "greeting": (
        {"messages": [turn("assistant", "Hello!"), *ASKED]},
        "messages",
        [turn("assistant", "Hello!"), *ASKED],
    ),
    "parquet": (
        {"messages": [turn("user", "2 + 3?", tool_calls=None, name=None)], "prompt": None},
        "messages",
        ASKED,
    ),
    "csv": ({"messages": json.dumps(CHAT), "tools": "", "metadata": ""}, "messages", CHAT),
    "bedrock": (
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "Be brief."}],
            "messages": [
                turn("user", [{"text": "2 + 3?"}]),
                turn("assistant", [{"text": "5"}]),
            ],
        },
        "bedrock",
        CHAT,
    ),
    "batch": (
        {
            "custom_id": "r-1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": CHAT[:2], "max_tokens": 5},
        },
        "openai_batch",
        CHAT[:2],
    ),
    "batch of responses": (
        {"custom_id": "r", "body": {"instructions": "Be brief.", "input": "2 + 3?"}},
        "openai_batch",
        CHAT[:2],
    ),
    "stored": (
        {"messages": CHAT[:2], "choices": [{"index": 0, "message": CHAT[2]}]},
        "stored_completion",
        CHAT,
    ),
    "stored with request": (
        {"request": {"messages": CHAT[:2]}, "response": {"choices": [{"message": CHAT[2]}]}},
        "stored_completion",
        CHAT,
    ),
    "stored response": (
        {
            "input": [
                turn("developer", [{"type": "input_text", "text": "Be brief."}], type="message"),
                turn("user", [{"type": "input_text", "text": "2 + 3?"}], type="message"),
            ],
            "output": [
                {"type": "reasoning", "summary": []},
                turn("assistant", [{"type": "output_text", "text": "5"}], type="message"),
            ],
        },
        "stored_completion",
        CHAT,
    ),
    "stored call": (
        {
            "input": [
                turn("user", "2 + 3?"),
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "5"},
            ],
            "output": "5",
        },
        "stored_completion",
        [
            *ASKED,
            turn("assistant", "", tool_calls=[CALL]),
            turn("tool", "5", tool_call_id="c1"),
            turn("assistant", "5"),
        ],
    ),
    "preference": (
        {"input": {"messages": CHAT[:2]}, "preferred_output": [CHAT[2]]},
        "stored_completion",
        CHAT,
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "2 + 3?"},
                {"from": "gpt", "value": "5", "weight": 1},
            ]
        },
        "sharegpt",
        CHAT,
    ),
    "sharegpt with roles": (
        {"conversation": [turn("user", "2 + 3?"), turn("assistant", "5")], "system": "Be brief."},
        "sharegpt",
        CHAT,
    ),
    "sharegpt with calls": (
        {
            "conversations": [
                {"from": "human", "value": "2 + 3?"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "5"},
                {"from": "ChatGPT", "value": "5"},
            ]
        },
        "sharegpt",
        [
            *ASKED,
            turn(
                "assistant",
                "",
                tool_calls=[
                    {
                        "id": "call_2",
                        "type": "function",
                        "function": {"name": "f", "arguments": {}},
                    }
                ],
            ),
            turn("tool", "5"),
            turn("assistant", "5"),
        ],
    ),
    "trl": ({"prompt": CHAT[:2], "completion": CHAT[2:]}, "prompt_completion", CHAT),
    "trl with a text": ({"prompt": CHAT[:2], "completion": "5"}, "prompt_completion", CHAT),
    "ultrafeedback": (
        {"prompt": "2 + 3?", "chosen": CHAT[1:], "rejected": []},
        "prompt_completion",
        CHAT[1:],
    ),
    "trl without a prompt": (
        {"chosen": CHAT[1:], "rejected": [CHAT[1], turn("assistant", "6")]},
        "preference",
        CHAT[1:],
    ),
    "transcripts": (
        {
            "chosen": "\n\nHuman: 2 + 3?\n\nAssistant: 5\n\nHuman: Sure?\n\nAssistant: Yes:\nfive",
            "rejected": "\n\nHuman: 2 + 3?\n\nAssistant: 6",
        },
        "preference",
        [*CHAT[1:], turn("user", "Sure?"), turn("assistant", "Yes:\nfive")],
    ),
    "chosen beside turns": (
        {
            "conversations": [{"from": "human", "value": "2 + 3?"}],
            "chosen": {"from": "gpt", "value": "5"},
            "rejected": {"from": "gpt", "value": "6"},
        },
        "sharegpt",
        CHAT[1:],
    ),
    "an answer labelled as bad": (
        {"messages": CHAT[1:], "label": False},
        "messages",
        ASKED,
    ),
    "turns labelled as bad": (
        {"prompt": ASKED, "completion": CHAT[2:], "label": "false"},
        "prompt_completion",
        ASKED,
    ),
    "an answer not to learn": (
        {"messages": [*ASKED, turn("assistant", "6", weight=0)]},
        "messages",
        ASKED,
    ),
    "history of pairs": (
        {
            "instruction": "And 3 + 3?",
            "input": "",
            "output": "6",
            "system": "Be brief.",
            "history": [["2 + 3?", "5"]],
        },
        "alpaca",
        [*CHAT, turn("user", "And 3 + 3?"), turn("assistant", "6")],
    ),
    "history of turns": (
        {"query": "And 3 + 3?", "response": "6", "history": json.dumps(CHAT[1:])},
        "question_answer",
        [*CHAT[1:], turn("user", "And 3 + 3?"), turn("assistant", "6")],
    ),
    "history of texts": (
        {"prompt": "And 3 + 3?", "history": ["Hello!", "2 + 3?", "5"]},
        "prompt_completion",
        [turn("assistant", "Hello!"), *CHAT[1:], turn("user", "And 3 + 3?")],
    ),
    "as pandas writes it": ({"messages": str(CHAT)}, "messages", CHAT),
    "as numpy prints it": (
        {"messages": "[" + "\n ".join(map(str, CHAT)) + "]"},
        "messages",
        CHAT,
    ),
    "thoughts": (
        {
            "messages": [
                *ASKED,
                turn(
                    "assistant",
                    [
                        {"type": "thinking", "thinking": "so 5", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "5"},
                    ],
                    reasoning_content="so 5",
                ),
            ]
        },
        "messages",
        CHAT[1:],
    ),
    "thoughts of bedrock": (
        {
            "schemaVersion": "bedrock-conversation-2024",
            "messages": [
                turn("user", [{"text": "2 + 3?"}, {"cachePoint": {"type": "default"}}]),
                turn("assistant", [{"reasoningContent": {"reasoningText": {}}}, {"text": "5"}]),
            ],
        },
        "bedrock",
        CHAT[1:],
    ),
    "parts with a value": (
        {"messages": [turn("user", [{"type": "text", "value": "2 + 3?"}])]},
        "messages",
        ASKED,
    ),
    "gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "2 + 3?"}]},
                {"role": "model", "parts": [{"text": "2 + 3 ...", "thought": True}, {"text": "5"}]},
            ],
        },
        "sharegpt",
        CHAT,
    ),
    "pairs": (
        {"conversation": [{"system": "Be brief.", "input": "2 + 3?", "output": "5"}]},
        "sharegpt",
        CHAT,
    ),
    "anthropic's tools": (
        {
            "messages": [
                *ASKED,
                turn(
                    "assistant",
                    [
                        {"type": "text", "text": "I add."},
                        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 2}},
                    ],
                ),
                turn(
                    "user",
                    [
                        {"type": "tool_result", "tool_use_id": "c1", "content": "5"},
                    ],
                ),
                turn("assistant", "5"),
            ]
        },
        "messages",
        [
            *ASKED,
            turn("assistant", "I add.", tool_calls=[CALL_OF_2]),
            turn("tool", "5", tool_call_id="c1"),
            turn("assistant", "5"),
        ],
    ),
    "bedrock's tools": (
        {
            "schemaVersion": "bedrock-conversation-2024",
            "messages": [
                turn("user", [{"text": "2 + 3?"}]),
                turn(
                    "assistant",
                    [{"toolUse": {"toolUseId": "c1", "name": "f", "input": {"a": 2}}}],
                ),
                turn(
                    "user",
                    [
                        {"toolResult": {"toolUseId": "c1", "content": [{"json": {"sum": 5}}]}},
                        {"text": "So?"},
                    ],
                ),
            ],
        },
        "bedrock",
        [
            *ASKED,
            turn("assistant", "", tool_calls=[CALL_OF_2]),
            turn("tool", '[{"json":{"sum":5}}]', tool_call_id="c1"),
            turn("user", "So?"),
        ],
    ),
}
