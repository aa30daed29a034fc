"""The forms that rows come in: each sample as its provider or its dataset writes it."""

import json
from pathlib import Path

import pytest

from retort import formats
from retort.errors import SpecError
from retort.formats import read_row, recognise
from retort.records import Row
from retort.registry import find_function, function_names

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


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
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_recognised_and_read_whatever_its_form(name):
    row, form, chat = CHATS[name]
    assert recognise(row) == form
    found, read = read_row(row, "auto", {})
    assert (found, read.messages) == (form, chat)
    assert read_row(row, form, {}) == (form, read)
    assert json.dumps(row) == json.dumps(CHATS[name][0])


LETTERS = {"choice_letters": ["A", "B", "C"], "choices": ["x", "y", "z"]}
COLUMNS = {
    "gsm8k": (
        {"question": "1 + 1?", "answer": "so #### 2"},
        "question_answer",
        {"question": "1 + 1?", "answer": "so #### 2"},
    ),
    "math": (
        {"problem": "1 + 1?", "level": "5", "solution": r"\boxed{2}"},
        "question_answer",
        {"question": "1 + 1?", "answer": r"\boxed{2}", "level": "5"},
    ),
    "metamath": (
        {"query": "1 + 1?", "response": "2"},
        "question_answer",
        {"question": "1 + 1?", "answer": "2"},
    ),
    "squad": (
        {
            "id": "56be",
            "title": "T",
            "context": "It is red.",
            "question": "What is it?",
            "answers": {"text": ["red", "is red"], "answer_start": [6, 3]},
        },
        "question_answer",
        {"question": "What is it?", "context": "It is red.", "answer": "red", "title": "T"},
    ),
    "unanswerable": (
        {"question": "What?", "passage": "p", "answers": {"text": [], "answer_start": []}},
        "question_answer",
        {"question": "What?", "context": "p"},
    ),
    "mmlu": (
        {"question": "q", "choices": ["x", "y", "z"], "answer": 2},
        "question_answer",
        {"question": "q", "answer": 2, **LETTERS},
    ),
    "arc": (
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        "question_answer",
        {"question": "q", "answer": "2", "choices": ["x", "y"], "choice_letters": ["1", "2"]},
    ),
    "arc's own file": (
        {"question": "q", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]},
        "question_answer",
        {"question": "q", "choices": ["x", "y"], "choice_letters": ["A", "B"]},
    ),
    "medqa": (
        {"question": "q", "options": {"A": "x", "B": "y", "C": "z", "D": None}, "answer": "y"},
        "question_answer",
        {"question": "q", "answer": "y", **LETTERS},
    ),
    "letters": (
        {"question": "q", "A": "x", "B": "y", "C": "z", "D": "", "answer": "C"},
        "question_answer",
        {"question": "q", "answer": "C", **LETTERS},
    ),
    "options": (
        {"question": "q", "option_a": "x", "option_b": "y", "option_c": "z", "label": 0},
        "question_answer",
        {"question": "q", "answer": 0, **LETTERS},
    ),
    "medmcqa": (
        {"question": "q", "opa": "x", "opb": "y", "opc": "z", "answer": 1},
        "question_answer",
        {"question": "q", "answer": 1, **LETTERS},
    ),
    "choices in csv": (
        {"question": "q", "choices": '["x", "y", "z"]', "answer": ""},
        "question_answer",
        {"question": "q", "answer": "", **LETTERS},
    ),
    "openorca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "1 + 1?", "response": "2"},
        "question_answer",
        {"question": "1 + 1?", "answer": "2", "system": "Be brief."},
    ),
    "snli": (
        {"premise": "a", "hypothesis": "b", "label": 1},
        "nli",
        {"premise": "a", "hypothesis": "b", "label": 1},
    ),
    "snli's own file": (
        {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"},
        "nli",
        {"premise": "a", "hypothesis": "b", "label": "neutral"},
    ),
    "pairs": (
        {"text1": "a", "text2": "b", "label": 0},
        "nli",
        {"premise": "a", "hypothesis": "b", "label": 0},
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        "alpaca",
        {"prompt": "Add.\n\n1, 1", "completion": "2"},
    ),
    "alpaca without input": (
        {"instruction": "Add 1, 1.", "input": "", "output": "2"},
        "alpaca",
        {"prompt": "Add 1, 1.", "completion": "2"},
    ),
    "dolly": (
        {"instruction": "Add.", "context": "1, 1", "response": "2", "category": "closed_qa"},
        "alpaca",
        {"prompt": "Add.\n\n1, 1", "completion": "2", "category": "closed_qa"},
    ),
    "completion": (
        {"prompt": "1 + 1 =", "completion": " 2"},
        "prompt_completion",
        {"prompt": "1 + 1 =", "completion": " 2"},
    ),
    "prompt alone": ({"prompt": "1 + 1 ="}, "prompt_completion", {"prompt": "1 + 1 ="}),
    "cnn": (
        {"article": "long", "highlights": "short"},
        "summarization",
        {"article": "long", "summary": "short"},
    ),
    "xsum": (
        {"document": "long", "summary": "short"},
        "summarization",
        {"article": "long", "summary": "short"},
    ),
    "samsum": (
        {"dialogue": "A: hi", "summary": "short"},
        "summarization",
        {"article": "A: hi", "summary": "short"},
    ),
    "billsum": (
        {"text": "long", "summary": "short", "title": "t"},
        "summarization",
        {"article": "long", "summary": "short", "title": "t"},
    ),
    "imdb": ({"text": "good", "label": 1}, "text_label", {"text": "good", "label": 1}),
    "sst2": ({"sentence": "good", "label": 1}, "text_label", {"text": "good", "label": 1}),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_recognised_and_stand_under_our_names_and_their_own(name):
    row, form, fields = COLUMNS[name]
    found, read = read_row(row, "auto", {})
    assert (found, read.messages) == (form, None)
    placed = {"id", "metadata", "tools", "messages"}
    own = {key: value for key, value in row.items() if key not in placed}
    assert read.fields == {**own, **fields}
    assert read_row(row, form, {}) == (form, read)


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
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_row_that_cannot_be_read_is_refused_with_its_reason(reason):
    with pytest.raises(ValueError, match=reason):
        read_row(BAD_ROWS[reason], "auto", {})


@pytest.mark.parametrize("form", sorted({*function_names("retort.formats")} - {"columns"}))
def test_a_row_without_what_its_named_form_needs_is_bad_and_not_a_crash(form):
    for row in ({}, {"other": 1}, *({name: wrong} for name in COLUMN_NAMES for wrong in WRONG)):
        with pytest.raises(ValueError, match=r"."):
            read_row(row, form, {})


COLUMN_NAMES = "messages conversations body input request prompt instruction question text article"
COLUMN_NAMES = COLUMN_NAMES.split()
WRONG = [None, 7, "", [], {}, [None], [7], [{}], {"messages": 7}, [{"role": "user"}], [[]]]


def test_columns_are_mapped_and_a_mapped_column_that_is_missing_names_both():
    row = {"Frage": "1 + 1?", "prompt": "no", "answer": "own"}
    form, read = read_row(row, "auto", {"question": "Frage", "answer": "prompt"})
    assert form == "question_answer"
    assert read.fields == {**row, "question": "1 + 1?", "answer": "no"}
    assert read_row({"question": "1 + 1"}, "auto", {"prompt": "question"})[0] == "prompt_completion"
    with pytest.raises(ValueError, match=r"no column 'Antwort'.*as answer; the row has Frage"):
        read_row({"Frage": "1"}, "auto", {"question": "Frage", "answer": "Antwort"})


def test_any_columns_are_read_where_that_is_asked_for():
    row = {"word": "cat", "rhyme": "hat", "id": 7, "metadata": {"a": 1}}
    form, read = read_row(row, "columns", {})
    assert (form, read.id, read.metadata) == ("columns", "7", {"a": 1})
    assert read.fields == {"word": "cat", "rhyme": "hat"}


def own_form(row):
    """A form of the user's own."""
    return Row(fields={"question": row["q"] + "?"})


def test_a_form_of_ones_own_is_reached_by_module_and_name():
    name = "tests.test_formats:own_form"
    assert read_row({"q": "why"}, name, {}) == (name, Row(fields={"question": "why?"}))
    with pytest.raises(SpecError, match=r"unknown format 'sharegtp' \(did you mean 'sharegpt'\?\)"):
        read_row({}, "sharegtp", {})


def test_every_public_function_of_the_module_is_a_form_with_a_sample_here():
    names = function_names("retort.formats")
    sampled = {form for _, form, _ in [*CHATS.values(), *COLUMNS.values()]}
    assert sampled == set(names) - {"columns"}
    assert all(find_function("format", n, "retort.formats") is getattr(formats, n) for n in names)
    with pytest.raises(SpecError):
        find_function("format", "read_row", "retort.formats")


@pytest.mark.parametrize("path", sorted(SHARED.rglob("*.jsonl")), ids=lambda path: path.name)
def test_every_real_row_is_recognised_and_read(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        form, read = read_row(row, "auto", {})
        if "messages" in row:
            assert (form, read.messages) == ("messages", row["messages"])
        else:
            assert (form, read.fields) == ("question_answer", row)
    assert len(rows) > 40
