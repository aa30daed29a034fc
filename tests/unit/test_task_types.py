"""Task types: rows to prompts, and types of one's own; the tests of answers stand beside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retort.data import task_types
from retort.data.formats import read_row
from retort.data.reasoning import instruction
from retort.data.task_types import chat_of, conversation, fill, math, nli, qa, summarization
from retort.errors import SpecError
from retort.plugins import FOLDER, find_file
from retort.records import Row
from retort.spec import Generate, Prepare
from tests.support.asking import BUILT_IN, CHOOSE, PAIR, content, prompt, turns
from tests.support.real_data import AZURE, needs_azure

# Rows to prompts


@pytest.mark.parametrize(
    ("task_type", "reply", "expected"),
    [
        (nli, "Neutral.", "neutral"),
        (qa, "The Tiber", "tiber"),
        (math, "6 * 3\n#### 18", "18"),
        (conversation, "Hello", None),
        (summarization, "It\n rained.", "It rained."),
    ],
)
def test_chats_and_plain_prompts_are_read_by_every_type(task_type, reply, expected):
    for reads in (
        {"messages": [{"role": "system", "content": "s"}, *turns("old", "no", "asked", reply)]},
        {"fields": {"prompt": "asked", "completion": reply, "other": 1}},
    ):
        made = prompt(task_type, **reads)
        assert made.messages[-1] == {"role": "user", "content": "asked"}
        assert (made.expected, made.reference) == (expected, reply)
        assert len(made.messages) == (4 if "messages" in reads else 1)
    bare = prompt(task_type, {"prompt": "asked", "completion": " "})
    assert (bare.expected, bare.reference) == (None, None)


def test_the_reply_of_a_chat_is_the_last_text_after_the_last_user_turn():
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    result = {"role": "tool", "content": "7", "tool_call_id": "1"}
    chat = [*turns("a", "b", "c"), call, result, {"role": "assistant", "content": "It is 7."}]
    assert chat_of(Row(messages=chat)) == (chat[:3], "It is 7.")
    assert chat_of(Row(messages=chat[:4])) == (chat[:3], None)
    with pytest.raises(ValueError, match="no user turn"):
        chat_of(Row(messages=[call]))


@pytest.mark.parametrize(
    ("task_type", "fields", "reason"),
    [
        (qa, {"id": 1, "title": "x"}, "no messages and no question or prompt.*has id, title"),
        (math, {}, "no messages and no question or problem or prompt.*has no columns"),
        (nli, CHOOSE, "no messages and no premise and hypothesis or prompt.*has question, choices"),
        (nli, {"premise": "x"}, "no messages and no premise and hypothesis"),
        (summarization, {"question": "x"}, "no messages and no article or prompt or text"),
        (conversation, {"question": "x"}, "no messages and no prompt"),
        (math, {"question": "  "}, "question is not a text or is empty"),
        (nli, {**PAIR, "hypothesis": 7}, "hypothesis is not a text or is empty"),
        (math, {"question": "x", "answer": "none"}, "the expected answer 'none' holds no number"),
        (nli, {**PAIR, "label": "maybe"}, "'maybe' is none of entailment, neutral, contradiction"),
        (nli, {**PAIR, "label": 3}, "'3' is none of entailment"),
        (nli, {**PAIR, "label": -1}, "no gold label"),
        (nli, {**PAIR, "label": "-"}, "no gold label"),
        (nli, {"text": "Fine!", "label": 1}, r"set prepare\.labels"),
        (qa, {**CHOOSE, "choices": "Rome"}, "choices must be a list of at least two"),
        (qa, {**CHOOSE, "choice_letters": ["A", "B"]}, "3 choices, but 2 letters"),
        (qa, {**CHOOSE, "answer": 3}, "'3' is none of A, B, C, none of the choices"),
        (qa, {**CHOOSE, "answer": "Oslo"}, "'Oslo' is none of A, B, C"),
    ],
)
def test_a_row_that_does_not_fit_says_what_is_read_and_what_it_has(task_type, fields, reason):
    with pytest.raises(ValueError, match=reason):
        prompt(task_type, fields)


def test_the_labels_of_a_chat_are_checked_too():
    with pytest.raises(ValueError, match="'perhaps' is none of entailment"):
        prompt(nli, messages=turns("?", "perhaps"))
    with pytest.raises(ValueError, match="'no idea' holds no number"):
        prompt(math, messages=turns("?", "no idea"))


def test_default_templates_ask_with_the_columns_of_the_row():
    text = content(nli, PAIR)
    assert "Premise: It rains.\nHypothesis: It is wet.\n" in text
    assert "entailment, neutral, contradiction" in text
    labels = ("bad", "good")
    assert content(nli, {"text": "Fine!"}, labels=labels).startswith("Fine!\n")
    assert "bad, good" in content(nli, {"text": "Fine!"}, labels=labels)
    assert content(qa, {"question": "Who?"}) == "Who?"
    assert content(qa, {"question": "Who?", "context": ""}) == "Who?"
    assert content(qa, {"question": "Who?", "context": "Ann did."}) == "Ann did.\n\nWho?"
    listed = "Capital of Italy?\n\nA. Paris\nB. Rome\nC. Bern\n\nAnswer with the letter"
    assert content(qa, CHOOSE).startswith(listed)
    assert content(qa, {**CHOOSE, "context": "Europe."}).startswith("Europe.\n\n" + listed)
    assert content(math, {"problem": "1 + 1"}) == "1 + 1"
    assert content(summarization, {"article": "Long."}, max_summary_words=30) == (
        "Summarize the following text in at most 30 words.\n\nLong."
    )


def test_a_template_of_the_spec_replaces_the_default_for_columns_but_not_for_chats():
    fields = {"frage": "Wie viel?", "answer": "7"}
    made = prompt(math, fields, template="{{json}} {frage}")
    assert (made.messages[0]["content"], made.expected) == ("{json} Wie viel?", "7")
    assert content(qa, CHOOSE, template="{choices}\n{question}").startswith("A. Paris\nB. Rome")
    words = {"template": "{article} ({max_words})", "max_summary_words": 9}
    assert content(summarization, {"article": "x"}, **words) == "x (9)"
    assert content(nli, PAIR, template="{premise} {labels}").endswith("neutral, contradiction")
    assert prompt(math, messages=turns("hi"), template="{x}").messages == turns("hi")
    with pytest.raises(ValueError, match="the question is empty"):
        prompt(math, {"a": " "}, template="{a}")


def test_a_row_keeps_its_own_system_prompt():
    made = prompt(math, {"question": "1 + 1", "system": "Be brief."})
    assert [turn["role"] for turn in made.messages] == ["system", "user"]
    assert made.messages[0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("task_type", "row", "asked", "expected"),
    [
        (math, {"problem": "1 + 1", "solution": r"so \boxed{2}"}, "1 + 1", "2"),
        (
            nli,
            {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"},
            "Premise: a",
            "neutral",
        ),
        (qa, {"question": "?", "passage": "P", "answers": {"text": ["X"]}}, "P\n\n?", "x"),
        (qa, {"question": "?", "A": "x", "B": "y", "answer": "B"}, "?\n\nA. x\nB. y\n", "B"),
        (summarization, {"document": "D", "highlights": "H"}, "Summarize", "H"),
        (conversation, {"instruction": "I", "input": "X", "output": "O"}, "I\n\nX", None),
    ],
)
def test_the_columns_of_well_known_data_fit_the_types(task_type, row, asked, expected):
    read = read_row(row, "auto", {})[1]
    made = task_type.prompt(read, Prepare(train="train.jsonl"))
    assert made.messages[0]["content"].startswith(asked)
    assert made.expected == expected


def test_a_template_is_filled_with_columns_and_nothing_else():
    assert fill("{a}{b c} {{a}}", {"a": "{b c}", "b c": 2}) == "{b c}2 {a}"
    assert fill("{{{a.b:c}}}", {"a.b:c": "x"}) == "{x}"
    with pytest.raises(ValueError, match=r"names \{x\}, but the row has a, b; write \{\{ and"):
        fill("{x}", {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="unpaired brace"):
        fill("f(x) = {", {})
    with pytest.raises(ValueError, match=r"\{a\}, which is empty"):
        fill("{a}", {"a": None})


# Types of one's own

HAIKU = """
from retort.records import Prompt

def prompt(row, knobs):
    if "theme" not in row.fields:
        raise ValueError("no theme")
    return Prompt([{"role": "user", "content": f"A haiku about {row.fields['theme']}."}])

def answer(text, example):
    return text.strip() or None

def equal(given, expected):
    return given.splitlines() == expected.splitlines()
"""


def test_a_sixth_type_is_one_file_anywhere(tmp_path, monkeypatch):
    (tmp_path / "poetry_types").mkdir()
    (tmp_path / "poetry_types" / "haiku.py").write_text(HAIKU)
    (tmp_path / "lone_haiku.py").write_text(HAIKU + 'METRICS = ("rouge_l",)\nFILTERS = ()\n')
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for name in ("poetry_types.haiku", "lone_haiku:"):
        haiku = task_types.load(name)
        assert content(haiku, {"theme": "rain"}) == "A haiku about rain."
    lone, haiku = haiku, task_types.load("poetry_types.haiku")
    assert task_types.filters_of(haiku) == ("finished", "not_refused", "non_empty")
    assert task_types.metrics_of(haiku) == ("accuracy",)
    assert (task_types.filters_of(lone), task_types.metrics_of(lone)) == ((), ("rouge_l",))
    text = instruction(haiku, Generate(teacher="t", reasoning="chain_of_thought"))
    assert text.endswith("Answer: <the answer>")
    with pytest.raises(SpecError, match="not for task type haiku"):
        instruction(haiku, Generate(teacher="t", reasoning="chain_of_density"))


def test_task_types_are_found_by_name_and_wrong_names_are_refused():
    assert task_types.load("math") is math
    assert task_types.load("retort.data.task_types.qa") is qa
    assert find_file("task type", "retort.data.task_types:qa", task_types) is qa
    with pytest.raises(SpecError, match=r"did you mean 'math'.*your own as package\.module"):
        task_types.load("maths")
    for name in ("nowhere.at:all", "nowhere.at", "..", "retort.data.task_types:none"):
        with pytest.raises(SpecError, match="cannot be loaded"):
            task_types.load(name)
    with pytest.raises(SpecError, match=r"'retort.data.encoding' has no function prompt and no"):
        task_types.load("retort.data.encoding")
    with pytest.raises(SpecError, match="of Python's standard library"):
        task_types.load("json.decoder")


def test_every_type_names_its_filters_and_reads_without_a_heavy_import():
    for task_type in BUILT_IN:
        assert task_types.filters_of(task_type)[:3] == ("finished", "not_refused", "non_empty")
    names = ", ".join(Path(task_type.__file__).stem for task_type in BUILT_IN)
    code = (
        f"import sys; from retort.data.task_types import {names}; "
        "print(sorted({'numpy', 'torch', 'sklearn', 'rouge_score'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@needs_azure
@pytest.mark.parametrize("name", ["nli", "math"])
def test_every_row_of_the_real_jobs_is_asked_as_it_stands(name):
    folder = AZURE / name
    task_type = task_types.load(name)
    lines = (folder / f"train_{name}.jsonl").read_text().splitlines()
    for messages in [json.loads(line)["messages"] for line in lines if line.strip()]:
        made = prompt(task_type, messages=messages)
        assert made.messages == messages
        assert (made.expected, made.reference) == (None, None)
