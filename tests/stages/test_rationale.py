"""Rationales: what the teacher is told, and how its text is split into thoughts and answer."""

import json
import random
import time

import pytest

from retort.data.reasoning import instructed, instruction, split, target_text
from retort.data.task_types import math, qa, summarization
from retort.errors import SpecError
from retort.records import Example
from retort.spec import Generate
from tests.support.asking import BUILT_IN, EXAMPLE, turns


def test_the_teacher_is_told_what_split_reads():
    for task_type in BUILT_IN:
        kind = "chain_of_density" if task_type is summarization else "chain_of_thought"
        text = instruction(task_type, Generate(teacher="t", reasoning=kind))
        last = text.splitlines()[-1]
        said = last.replace("<number>", "7").replace("<", "").replace(">", "")
        reason, answer = split(f"Because.\n{said}")
        assert reason == "Because."
        assert answer == said.removeprefix("Answer: ").removeprefix("#### ")
    assert instruction(math, Generate(teacher="t")) is None
    assert instruction(math, Generate(teacher="t", instruction="Think.")) == "Think."


def test_a_kind_of_reasoning_that_a_type_lacks_is_refused_with_those_it_has():
    with pytest.raises(SpecError, match=r"chain_of_density .*task type math.* chain_of_thought"):
        instruction(math, Generate(teacher="t", reasoning="chain_of_density"))
    with pytest.raises(SpecError, match=r"chain_of_thought .*summarization.* chain_of_density"):
        instruction(summarization, Generate(teacher="t", reasoning="chain_of_thought"))


def test_an_instruction_follows_the_last_question_and_leaves_the_chat_alone():
    chat = [{"role": "system", "content": "mine"}, *turns("a", "b", "c")]
    before = json.dumps(chat)
    told = instructed(chat, "Think.")
    assert json.dumps(chat) == before
    assert told[:3] == chat[:3]
    assert told[3:] == [{"role": "user", "content": "c\n\nThink."}]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nwhy\n</think>\n\nso", ("why", "so")),
        ("why</think>so", ("why", "so")),
        ("<think>why", ("why", "")),
        ("<think>a</think><think>b</think>so", ("ab", "so")),
        ("<think>a</think>b\nAnswer: so", ("a\n\nb", "so")),
        ("Write <think> before </think>.", (None, "Write <think> before </think>.")),
        ('{"reasoning": "why", "answer": "so"}', ("why", "so")),
        ('Here:\n```json\n{"Thoughts": ["a", "b"], "label": 1}\n```\nDone', ("a\nb", "1")),
        ('{"rationale": "line\nbreak", "answer": "so"}', ("line\nbreak", "so")),
        ('{"answer": "so"}', (None, '{"answer": "so"}')),
        ("why\nAnswer: so", ("why", "so")),
        ("why\n**Final Answer:** so", ("why", "so")),
        ("why\n**Answer: so**", ("why", "so")),
        ("Answer: no. Answer: so\n\nand more", ("Answer: no.", "so\n\nand more")),
        ("Answer: so", (None, "so")),
        ("1 + 1 = 2\n#### 2", ("1 + 1 = 2", "2")),
        ("why\n#### x", ("why", "x")),
        ("#### Step 1\n1 + 1 = 2\n", (None, "#### Step 1\n1 + 1 = 2\n")),
        ("What is the answer: yes?", (None, "What is the answer: yes?")),
        (" plain \n", (None, " plain \n")),
    ],
)
def test_a_text_is_split_into_rationale_and_answer(text, parts):
    assert split(text) == parts


def test_a_lesson_drops_keeps_or_tags_the_rationale():
    text = "why\nAnswer: so"
    assert target_text(text, "drop") == ("so", None)
    assert target_text(text, "field") == ("so", "why")
    assert target_text(text, "think") == ("<think>\nwhy\n</think>\n\nso", None)
    assert split(target_text(text, "think")[0]) == split(text)
    for style in ("drop", "field", "think"):
        assert target_text("plain", style) == ("plain", None)
        assert target_text("<think>why", style)[0] == ""


def hostile_texts():
    random_bytes = random.Random(0)
    pieces = [
        "<think>",
        "</think>",
        "{",
        "}",
        '"answer": ',
        '"reasoning":',
        "Answer:",
        "####",
        "\n",
    ]
    pieces += [
        "\\boxed{",
        " 1,2 ",
        "-",
        "**",
        "answer is ",
        "```json\n",
        "\ud800",
        "\0",
        "B)",
        "e9",
    ]
    for _ in range(300):
        yield random_bytes.randbytes(60).decode("latin-1")
        yield "".join(random_bytes.choices(pieces, k=12))
    yield '{"a": ' * 20_000
    yield '{"answer": ' * 400 + '"x"' + "}" * 400
    yield '{"reasoning": ' + "[" * 900 + "]" * 900 + ', "answer": ' + "[" * 900 + "]" * 900 + "}"
    for piece in [
        *pieces,
        " ",
        "_",
        "\\boxed{1",
        "#### 1\n",
        "Answer: 1\n",
        "1 ",
        "1,",
        "a ^",
        "- ",
    ]:
        yield piece * 5_000
        yield piece * 5_000 + "x"


def test_whatever_a_text_holds_it_is_read_and_never_for_ever():
    # Of this thread's own work, whatever else the machine does: the longest text takes 0.1 seconds,
    # an expression that tries every way of reading it takes minutes.
    most_seconds = 20
    options = {"A": "Paris", "B": "Rome"}
    choose = Example("a", "test", [], options=options)
    for text in hostile_texts():
        start = time.thread_time()
        parts = split(text)
        assert isinstance(parts[1], str)
        for style in ("drop", "field", "think"):
            target_text(text, style)
        for task_type in BUILT_IN:
            found = task_type.answer(text, EXAMPLE)
            assert found is None or (found and task_type.equal(found, found))
        assert qa.answer(text, choose) in (None, "A", "B")
        assert time.thread_time() - start < most_seconds, text[:60]
