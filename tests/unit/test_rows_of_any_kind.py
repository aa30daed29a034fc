"""Rows that nobody has thought of: every format with any words in it, and spoiled in any way."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retort.data.formats import read_row
from retort.errors import SpecError
from retort.records import Example, read_lines
from retort.spec import build
from retort.stages.prepare.rows import Read, Reader, new_counts, quarantined

TASK_TYPES = ("math", "qa", "nli", "summarization", "conversation")
steady = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
words = st.text("abcdefgh ÄßØ漢字", min_size=1).map(lambda text: f"w{text.strip()}")
texts = st.text(st.characters(codec="utf-8"), max_size=30)


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def chat(asked: str, reply: str, system: str) -> list[dict[str, str]]:
    first = [turn("system", system)] if system.startswith("wa") else []
    return [*first, turn("user", asked), turn("assistant", reply)]


# A well-formed row of each format, of what it asks and what it answers.
FORMATS: dict[str, Any] = {
    "messages": lambda a, b, c: {"messages": chat(a, b, c)},
    "bedrock": lambda a, b, c: {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": c}],
        "messages": [
            {"role": "user", "content": [{"text": a}]},
            {"role": "assistant", "content": [{"text": b}]},
        ],
    },
    "stored_completion": lambda a, b, c: {
        "request": {"model": c, "messages": [turn("user", a)]},
        "response": {"choices": [{"message": turn("assistant", b)}]},
    },
    "sharegpt": lambda a, b, c: {
        "conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]
    },
    "alpaca": lambda a, b, c: {"instruction": c, "input": a, "output": b},
    "prompt_completion": lambda a, b, c: {"prompt": a, "completion": b},
    "preference": lambda a, b, c: {
        "chosen": [turn("user", a), turn("assistant", b)],
        "rejected": [turn("user", a), turn("assistant", c)],
    },
    "question_answer": lambda a, b, c: {"question": a, "context": c, "answers": {"text": [b]}},
    "nli": lambda a, b, c: {"premise": a, "hypothesis": b, "label": 1},
    "summarization": lambda a, b, c: {"article": a, "summary": b},
    "text_label": lambda a, b, c: {"text": a, "label": b},
}
CHOICES = {
    "a list, by index": lambda asked, options: {"question": asked, "choices": options, "answer": 0},
    "ARC's": lambda asked, options: {
        "question": asked,
        "choices": {"label": ["A", "B", "C"][: len(options)], "text": options},
        "answerKey": "A",
    },
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def good_rows(draw) -> tuple[str, dict[str, Any], str, str]:
    """A format, a row of it, and two of its texts: what it asks and what it answers."""
    name, asked, reply = draw(st.sampled_from(list(FORMATS))), draw(words), draw(words)
    return name, FORMATS[name](asked, reply, draw(words)), asked, reply


@st.composite
def spoiled_rows(draw) -> Any:
    """A row of a format of which some parts are anything, gone, or beside what they should be."""
    row = json.loads(json.dumps(draw(good_rows())[1]))
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = row
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                holder = inner
                continue
            if draw(st.integers(0, 3)):
                holder[key] = draw(json_values)
            else:
                del holder[key]
            break
    return row


def as_line(row: Any) -> bytes:
    return json.dumps(row).replace("\n", " ").encode()


lines = st.one_of(
    spoiled_rows().map(as_line),
    json_values.map(as_line),
    st.binary(min_size=1, max_size=40).map(lambda data: data.replace(b"\n", b" ")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rows")


def read(folder: Path, given_lines: list[bytes], task_type: str, **knobs: Any) -> list[Read]:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(given_lines) + b"\n")
    raw = {
        "name": "any",
        "prepare": {"task_type": task_type, "train": str(path), **knobs},
        "generate": {"teacher": "t", "engine": "echo", "top_k": 0},
        "train": {"student": "s"},
    }
    return list(Reader(build(raw)).rows())


@steady
@given(st.lists(lines, min_size=1, max_size=8), st.sampled_from(TASK_TYPES))
def test_each_line_becomes_an_example_or_is_kept_as_bad_for_a_reason(folder, given_lines, kind):
    given_lines.insert(0, b'{"question": "?"}')  # by its first bytes a file may be of another kind
    found, counts = read(folder, given_lines, kind), new_counts()
    numbered = [(n, line) for n, line in enumerate(given_lines, start=1) if line.strip()]
    assert [each.raw.line for each in found] == [number for number, _ in numbered]
    for each, (_, line) in zip(found, numbered, strict=True):
        counts.add(each)
        assert (each.example is None) == bool(each.reason)
        if each.example:
            assert read_lines(Example, each.line) == [each.example]
            continue
        bad = quarantined(each)
        kept = base64.b64decode(bad.raw) if bad.encoding == "base64" else bad.raw.encode()
        assert kept.strip() == line.strip() and bad.reason == each.reason
    ids = [each.example.id for each in found if each.example]
    assert len(ids) == len(set(ids)) == counts.examples["train"]
    assert counts.num_bad + counts.examples["train"] == counts.rows["train"] == len(numbered)


@steady
@given(good_rows())
def test_a_row_of_any_words_is_recognised_and_read_with_them(row):
    form, values, asked, reply = row
    before = json.dumps(values)
    name, found = read_row(values, "auto", {})
    assert name == form and read_row(values, form, {}) == (form, found)
    assert json.dumps(values) == before
    kept = json.dumps([found.messages, found.fields], ensure_ascii=False)
    assert asked in kept and reply in kept


@steady
@given(words, st.lists(words, min_size=2, max_size=3, unique=True), st.sampled_from([*CHOICES]))
def test_choices_of_any_words_are_asked_and_one_is_expected(folder, asked, options, how):
    (found,) = read(folder, [as_line(CHOICES[how](asked, options))], "qa")
    assert found.example, found.reason
    text = found.example.messages[-1]["content"]
    assert asked in text and all(option in text for option in options)
    assert found.example.options and list(found.example.options.values()) == options
    assert found.example.expected == next(iter(found.example.options))


def test_an_unknown_format_is_refused_before_any_row_is_read(folder):
    with pytest.raises(SpecError, match="nowhere"):
        read(folder, [b"{}"], "qa", format="nowhere")
