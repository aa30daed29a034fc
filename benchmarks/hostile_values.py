"""What `benchmarks.fuzz` spoils good input with, and the good rows that it spoils."""

from typing import Any

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "What is 2 + 2?"}
REPLY = {"role": "assistant", "content": "4"}

# A row of each format, as providers and data sets write them.
ROWS: tuple[dict[str, Any], ...] = (
    {"id": "1", "question": "2 + 2 = ?", "answer": "4"},
    {
        "question": "Who?",
        "context": "Ada wrote.",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    },
    {"question": "q", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "A"},
    {"question": "q", "choices": ["x", "y", "z"], "answer": 1, "subject": "law"},
    {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "B"},
    {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1},
    {"sentence1": "a", "sentence2": "b", "gold_label": "entailment"},
    {"text": "What a film!", "label": 0},
    {"article": "A long article. " * 5, "highlights": "An article."},
    {"dialogue": "Ann: hi\nBob: hi", "summary": "They greet."},
    {"messages": [{"role": "system", "content": "s"}, USER, REPLY, USER]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}], "tools": [TOOL]},
    {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "r"},
        ]
    },
    {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
    {"contents": [{"role": "user", "parts": [{"text": "h"}]}]},
    {"instruction": "i", "input": "x", "output": "o", "history": [["a", "b"]]},
    {"prompt": "p", "completion": "c", "label": True},
    {"prompt": [USER], "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "5"}]},
    {"chosen": "\n\nHuman: h\n\nAssistant: a", "rejected": "\n\nHuman: h\n\nAssistant: b"},
    {"custom_id": "x", "method": "POST", "url": "/v1", "body": {"model": "m", "messages": [USER]}},
    {"request": {"messages": [USER]}, "response": {"choices": [{"message": REPLY}]}},
    {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "s"}],
        "messages": [
            {"role": "user", "content": [{"text": "u"}]},
            {"role": "assistant", "content": [{"text": "a"}]},
        ],
    },
    {"input": [USER], "output": [{"type": "message", "content": [{"type": "output_text"}]}]},
    {"word": "x", "metadata": {"topic": "a"}, "id": 5},
)
# fmt: off
# Texts that markup, templates, numbers and other languages make something else of.
TEXTS = (
    "", " ", "\n", "\0", "a\0b", "\x1b[31mred", "\u202e", "\ufeff", "\U0001f600" * 3, "\ud800",
    "<|im_end|>", "</s>", "[/INST]", "<think>", "{question}", "{0}", "{", "}", "%s", "[/bold]",
    "<script>alert(1)</script>", "'; drop table", "../../etc/passwd", "x" * 5000, "é" * 100,
    "[1,2]", '{"a":1}', '[{"role":"user","content":"x"}]', "[[[[", "NaN", "Infinity", "1e999",
    "\uff11\uff12\uff13", "½", "1/0", "0/0", "1,2,3", "--5", "0x1f", "1_000", "9" * 5000,
    "2^9999999", "10**1000000000", "\\frac{1}{0}", "\\boxed{", "####", "A", "(A)", "a)", "yes",
)
# Values of the wrong type, size or shape.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**63, 2**64, -(2**70), 10**400, float("nan"), *TEXTS,
    [], {}, [[]], [{}], [None], {"": 1}, {"a": None}, {"text": None}, {"text": [1]},
    {"role": "user"}, {"content": "x"}, [USER], [{**USER, "content": {"a": 1}}],
    [{"type": "image_url"}], [{"type": "text", "text": 5}], {"text": ["a"], "label": ["A", "B"]},
)
BYTES = (
    b"\0", b"\r", b"\r\n", b"\n", b'"', b"'", b",", b"\xff", b"\xef\xbb\xbf", b"[", b"]", b"{",
    b"}", b"\\", b"\\ud800", b"\x1f\x8b", b"PAR1", b"\x28\xb5\x2f\xfd", b"a" * 3000, b'"' * 101,
    b"[" * 2000, b"9" * 5000, b"\x85", b"\xe2\x80\xa8", b"\x1a", b"\t", b"&a *a", b"!!binary x",
)
KNOB_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, 1e308, -1e308, float("inf"), float("nan"), 2**63, 2**200,
    "", "x", " ", "\n", "auto", "none", "all", "a.b", "x:", "x:y", ":", "os:system", ".", "..", "/",
    "~", "~root", "~nobody/x", "./x", "*", "[", "?", "**", "s3://", "s3://x", "file://", "file:///",
    "http://", "http://[", "http://127.0.0.1:9/x", "https://x@y", "memory://x", "zip://x",
    "a" * 300, "\0", "\x1b[1m", "é", "{", "{x}", "%", "[/x]", "2020-01-01", "metadata.x", "label",
    "OPENAI_API_KEY", "sk-abc", "messages", "qa", "math", "conversation", "echo", "openai", "live",
    "/dev/null", "/dev/zero", "/etc/passwd", "/proc/self/environ", "job.yaml", "store",
    [], {}, [None], [[]], [{}], {"": 1}, {"a": None}, ["x"], ["x", "x"], [1], {"name": "x"},
    {"dataset": "x"}, {"dataset": ""}, [{"dataset": "x/y"}], {"rank": 0}, {"rank": 10**9},
    [{"name": "length", "max_words": -1}], [{"name": "json_valid", "schema": {"type": 5}}],
    [{"name": "json_valid", "schema_file": "/etc/passwd"}], [{"name": "language", "codes": ["xx"]}],
    [{"name": "forward_kl", "temperature": 0}], [{"name": "cross_entropy", "weight": 0}],
    {"model": "x"}, {"model": "x", "engine": "openai", "endpoint": "http://u:p@h"}, ["gold"],
    ["accuracy"], ["x:y"], ["emails"], ["retention"], {"by": "metadata."},
)
# What answers are made of.
PHRASES = (
    *TEXTS, "1", "4", "-3", "1/2", "0.5", "1e5", "1e-999", "1e999999999", "9" * 400, "#### 4", "$4",
    "9" * 400 + "/" + "3" * 400, "10^1000000000", "2^99999999", "\\frac{1}{2}", "\\boxed{4}", "∞",
    "\\frac{\\frac{1}{2}}{3}", "\\boxed{\\boxed{", "€1,000.50", "1.234.567,89", "٣", "inf", "50%",
    "A)", "Answer: B", "the answer is (C).", "entailment", "\u0301" * 50, "a" * 3000, "( " * 500,
    "{" * 500, "[[" * 300, "\n" * 300, " " * 3000, "word " * 500, "same line\n" * 80, "ab" * 600,
    "Score: 4", "Score: 5/5", '```json\n{"a":1}\n```', '{"a":[', "null", "true", "x.y/z",
    "::1", "I'm sorry, I can't help", "Mr. Smith of the U.S.", "Dr. " * 200, "a@b.cd",
    "+1 555 123 4567", "1-1-1-1", "--", "**", "_", "|", "&amp;", "x=1; y=2", "π", "√2",
    "3 1/2", "12:30", "1 000 000",
    "0x1F", "١٢٣", "一二三", "二十", "twelve", "minus four", "\\sqrt{2}", "\\pi", "1.", "..5", ".",
    "-", "\u22125", "5\u2009000", "4111 1111 1111 1111", "192.168.0.1",
)
# fmt: on
