"""The forms that rows come in: each sample as its provider or its dataset writes it."""

import json

import pytest

from retort.data.formats import read_row, recognise
from retort.errors import SpecError
from retort.plugins import function_names
from retort.records import Row
from tests.support.chat_samples import ASKED, CHAT, CHATS, FUNCTION, TOOL, turn
from tests.support.real_data import every_real_file


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_recognised_and_read_whatever_its_form(name):
    row, form, chat = CHATS[name]
    assert recognise(row) == form
    found, read = read_row(row, "auto", {})
    assert (found, read.messages) == (form, chat)
    assert read_row(row, form, {}) == (form, read)
    assert json.dumps(row) == json.dumps(CHATS[name][0])


def test_what_a_row_has_besides_travels_with_it():
    row = {"messages": CHAT, "id": 7, "metadata": {"a": [1]}, "tools": [TOOL], "answer": "5"}
    _, read = read_row(row, "auto", {})
    assert read == Row(CHAT, {"answer": "5"}, "7", [TOOL], {"a": [1]})
    batch = {"custom_id": "r-1", "body": {"messages": ASKED, "tools": [TOOL], "top_p": 1}}
    _, read = read_row(batch, "auto", {})
    assert (read.id, read.tools, read.fields["top_p"]) == ("r-1", [TOOL], 1)
    stored = {"id": "x", "request": {"messages": ASKED, "tools": [TOOL]}, "response": "5"}
    assert read_row(stored, "auto", {})[1].tools == [TOOL]
    for key, value in (("functions", [FUNCTION]), ("functions", json.dumps([FUNCTION]))):
        assert read_row({"messages": ASKED, key: value}, "auto", {})[1].tools == [TOOL]
    for key in ("id", "custom_id", "_id", "uid"):
        assert read_row({"question": "q", key: "own"}, "auto", {})[1].id == "own"
    for nothing in (None, "", {"$oid": "1"}):
        assert read_row({"question": "q", "id": nothing}, "auto", {})[1].id is None
    _, read = read_row({"question": "q", "metadata": "a note"}, "auto", {})
    assert (read.metadata, read.fields["metadata"]) == ({}, "a note")
    assert read_row({"question": "q", "metadata": '{"a": 1}'}, "auto", {})[1].metadata == {"a": 1}


def test_a_row_of_openais_evals_is_the_row_inside_with_its_columns_as_metadata():
    item = {"question": "2 + 3?", "truth": "5", "metadata": {"a": 1}}
    for row in ({"item": item}, {"item": item, "sample": {"output_text": "6"}}):
        form, read = read_row(row, "auto", {})
        assert (form, read.metadata) == ("question_answer", item)
        assert read.fields["question"] == "2 + 3?" and read.fields["truth"] == "5"
    _, read = read_row({"item": {"ask": "q"}}, "auto", {"question": "ask"})
    assert read.fields["question"] == "q"
    said = {"input": ASKED, "output": [{"role": "assistant", "content": "5"}]}
    run = {"id": "o-1", "object": "eval.run.output_item", "datasource_item": {"truth": "5"}}
    form, read = read_row({**run, "sample": said, "results": []}, "auto", {})
    assert (form, read.id, read.messages) == ("messages", "o-1", CHAT[1:])
    assert read.metadata == {"truth": "5"}
    # A column of that name in any other row stays one.
    other = read_row({"question": "q", "item": {"a": 1}}, "auto", {})[1]
    assert other.fields["item"] == {"a": 1}


BAD_CHATS = {
    "at least one turn": [],
    "messages must be a list": {"role": "user"},
    "each turn must be an object with role and text content": ["hi"],
    "text content": [turn("user", 7)],
    "role 'robot' is not system, user, assistant, tool": [turn("robot", "x")],
    "role None is not": [{"content": "x"}],
    "no user turn": [turn("system", "x"), turn("assistant", "y")],
    "the last user turn is empty": [*ASKED, turn("assistant", "5"), turn("user", " \n")],
    "roles out of order: two user turns in a row at turn 2": [*ASKED, *ASKED],
    "two assistant turns in a row at turn 4": [*CHAT, turn("assistant", "6")],
    "a system turn at turn 2; only the first": [*ASKED, turn("system", "x")],
    "nobody called the tool of turn 2": [*ASKED, turn("tool", "5")],
    "nobody called the tool of turn 4": [*CHAT, turn("tool", "5")],
    "tool_calls of turn 2 must be a list": [*ASKED, turn("assistant", "", tool_calls="f")],
    "turn 1 holds a part of kind image_url: only text is read": [
        turn("user", [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}])
    ],
    "turn 1 holds a part of kind image": [turn("user", [{"text": None, "image": {}}])],
    "turn 1 holds a part of kind text without a text": [turn("user", [{"type": "text"}])],
    "turn 1 holds images: only text is read": [turn("user", "x", images=["a.png"])],
    "turn 2 holds audio": [*ASKED, turn("assistant", None, audio={"id": "a"})],
    "neither JSON nor a list as Python": "[{'role': 'user', 'content': f(x)}]",
    "the arguments of a tool call in turn 2 are no JSON object": [
        *ASKED,
        turn("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "{x"}}]),
    ],
    "a tool call of turn 2 names no function": [
        *ASKED,
        turn("assistant", None, tool_calls=[{"function": {"arguments": "{}"}}]),
    ],
}


@pytest.mark.parametrize("reason", BAD_CHATS)
def test_a_chat_that_cannot_be_asked_is_refused_with_its_reason(reason):
    turns = BAD_CHATS[reason]
    for row in ({"messages": turns}, {"conversations": turns}, {"body": {"messages": turns}}):
        if "body" in row and not isinstance(turns, list):
            continue
        with pytest.raises(ValueError, match=reason):
            read_row(row, "auto", {})


BAD_ROWS = {
    "question is not a text or is empty": {"question": "  "},
    "question is not a text": {"question": None, "answer": "x"},
    "problem is not a text": {"problem": 7},
    "hypothesis is not a text": {"premise": "x", "hypothesis": ""},
    "prompt is not a text": {"prompt": 7},
    "instruction is not a text": {"instruction": {}},
    "article is not a text": {"article": ["a"], "highlights": "b"},
    "choices must be a list": {"question": "q", "choices": "x or y"},
    "3 choices, but 2 letters": {"question": "q", "choices": {"text": list("xyz"), "label": "12"}},
    "tools must be a list of objects": {"question": "q", "tools": "f"},
    "body must be an object": {"custom_id": "x", "body": "hi"},
    "no known columns; the row has topic, n; known are: .*question.*prepare.columns": {
        "topic": "x",
        "n": 1,
    },
    "no known columns; the row has none": {},
    "column images holds an image, a sound or a video: only text is read": {
        "messages": ASKED,
        "images": ["1.jpg"],
    },
    "column image holds": {"conversations": CHAT, "image": "1.jpg"},
    "column audio holds": {"instruction": "x", "audio": {"bytes": None, "path": None}},
    "column scan holds": {"question": "x", "scan": [{"bytes": None, "path": "p"}]},
    "history holds earlier turns, which are not read": {
        "premise": "a",
        "hypothesis": "b",
        "history": [["q", "a"]],
    },
    "history beside choices": {"question": "q", "A": "x", "B": "y", "history": [["q", "a"]]},
    "history must be a list of": {"prompt": "q", "history": [["a", "b", "c"]]},
    "chosen is neither a list of turns nor": {"chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_row_that_cannot_be_read_is_refused_with_its_reason(reason):
    with pytest.raises(ValueError, match=reason):
        read_row(BAD_ROWS[reason], "auto", {})


@pytest.mark.parametrize("form", sorted({*function_names("retort.data.formats")} - {"columns"}))
def test_a_row_without_what_its_named_form_needs_is_bad_and_not_a_crash(form):
    for row in ({}, {"other": 1}, *({name: wrong} for name in COLUMN_NAMES for wrong in WRONG)):
        with pytest.raises(ValueError, match=r"."):
            read_row(row, form, {})


COLUMN_NAMES = "messages conversations body input request prompt instruction question text article"
COLUMN_NAMES = COLUMN_NAMES.split()
WRONG = [None, 7, "", [], {}, [None], [7], [{}], {"messages": 7}, [{"role": "user"}], [[]]]


def own_form(row):
    """A form of the user's own."""
    return Row(fields={"question": row["q"] + "?"})


def test_a_form_of_ones_own_is_reached_by_module_and_name():
    name = "tests.unit.test_formats:own_form"
    assert read_row({"q": "why"}, name, {}) == (name, Row(fields={"question": "why?"}))
    with pytest.raises(SpecError, match=r"unknown format 'sharegtp' \(did you mean 'sharegpt'\?\)"):
        read_row({}, "sharegtp", {})


@every_real_file
def test_every_real_row_is_recognised_and_read(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        form, read = read_row(row, "auto", {})
        if "messages" in row:
            assert (form, read.messages) == ("messages", row["messages"])
        else:
            assert (form, read.fields) == ("question_answer", row)
    assert len(rows) > 40
