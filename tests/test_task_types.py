"""Task types: rows to prompts, and answers found in whatever a model writes around them."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retort import task_types
from retort.errors import SpecError
from retort.formats import read_row
from retort.rationale import instructed, instruction, lesson, split
from retort.records import Example, Row
from retort.registry import find_file
from retort.spec import Generate, Prepare
from retort.task_types import chat_of, conversation, fill, math, nli, qa, summarization

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
BUILT_IN = (nli, qa, math, conversation, summarization)
EXAMPLE = Example("a", "test", [{"role": "user", "content": "?"}])


def prompt(task_type, fields=None, messages=None, **knobs):
    given = Prepare(train="train.jsonl", **knobs)
    return task_type.prompt(Row(messages=messages, fields=fields or {}), given)


def content(task_type, fields, **knobs):
    (turn,) = prompt(task_type, fields, **knobs).messages
    assert turn["role"] == "user"
    return turn["content"]


def turns(*texts):
    """A chat: user, assistant, user ..."""
    return [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(texts)
    ]


PAIR = {"premise": "It rains.", "hypothesis": "It is wet."}
CHOOSE = {"question": "Capital of Italy?", "choices": ["Paris", "Rome", "Bern"]}


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
    with pytest.raises(ValueError, match="brace without a partner"):
        fill("f(x) = {", {})
    with pytest.raises(ValueError, match=r"\{a\}, which is empty"):
        fill("{a}", {"a": None})


# Labels


@pytest.mark.parametrize(
    ("label", "expected"),
    [("Entailment", "entailment"), (0, "entailment"), ("1", "neutral"), (2.0, "contradiction")],
)
def test_a_label_is_read_as_text_or_as_its_number_in_the_set(label, expected):
    made = prompt(nli, {**PAIR, "label": label})
    assert made.expected == expected
    assert made.reference == ("Entailment" if label == "Entailment" else expected)
    assert made.options == {label: label for label in ("entailment", "neutral", "contradiction")}


def test_labels_that_are_numbers_are_texts_first():
    labels = ("-1", "0", "1")
    for label in (-1, 0, "1"):
        fields = {"text": "x", "label": label}
        assert prompt(nli, fields, labels=labels).expected == str(label)
    assert prompt(nli, {"text": "x", "label": True}, labels=("no", "yes")).expected == "yes"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("neutral", "neutral"),
        ("  'Neutral'.\n", "neutral"),
        ("**_neutral_**", "neutral"),
        ("The answer is neutral, I think.", "neutral"),
        ('{"reasoning": "no contradiction", "Answer_Choice": "Neutral"}', "neutral"),
        ('```json\n{"label": "neutral",\n "why": "not entailment"}\n```', "neutral"),
        ("Not entailment, not contradiction.\nAnswer: neutral", "neutral"),
        ("**Final answer:** neutral\n\nIt is no contradiction.", "neutral"),
        ("Answer: entailment? No.\nAnswer: **Neutral**", "neutral"),
        ("<think>entailment or contradiction</think>neutral", "neutral"),
        ("neutral\nSome might say contradiction.", "neutral"),
        ("neutral or contradiction", None),
        ("entailment\nneutral\ncontradiction", None),
        ("It is an entailment.\nAnswer: unclear", None),
        ('{"answer": "unclear", "rationale": "neutral"}', None),
        ("neutrality, non-neutral and not_neutral are other words", None),
        ("", None),
    ],
)
def test_a_label_is_found_where_a_text_names_one_and_only_one(text, found):
    assert nli.answer(text, EXAMPLE) == found


def test_a_label_within_a_label_is_not_mistaken_for_it():
    options = {label: label for label in ("entailment", "not_entailment")}
    example = Example("a", "test", [], options=options)
    assert nli.answer("It is not entailment.", example) == "not_entailment"
    assert nli.answer("Not-Entailment", example) == "not_entailment"
    assert nli.answer("It is entailment.", example) == "entailment"
    assert nli.answer("not entailment, or entailment", example) is None
    assert nli.equal("Entailment", "entailment")
    assert not nli.equal("entailment", "not_entailment")


# Questions


def test_open_answers_are_compared_after_squads_normalisation():
    assert qa.equal(qa.answer("The  Eiffel Tower.", EXAMPLE), "eiffel tower")
    assert qa.answer("It is high.\n\nAnswer: The Eiffel-Tower!", EXAMPLE) == "eiffeltower"
    assert qa.answer('{"answer": 1889}', EXAMPLE) == "1889"
    assert qa.answer("A", EXAMPLE) == "a"
    assert qa.answer(" ", EXAMPLE) is None
    fields = {"question": "Who?", "answer": {"text": ["Ann Lee", "Lee"], "answer_start": [1, 2]}}
    assert prompt(qa, fields).expected == "ann lee"
    assert prompt(qa, {**fields, "answer": {"text": []}}).expected is None


@pytest.mark.parametrize("given", ["B", "b", "(B)", 1, "1", "Rome", " rome.", "B. Rome"])
def test_the_right_choice_is_read_as_a_letter_a_place_or_a_text(given):
    made = prompt(qa, {**CHOOSE, "answer": given})
    assert (made.expected, made.reference) == ("B", "B")
    assert made.options == {"A": "Paris", "B": "Rome", "C": "Bern"}


def test_a_rows_own_letters_are_kept():
    fields = {**CHOOSE, "choice_letters": ["1", "2", "3"], "answer": "2"}
    assert "1. Paris\n2. Rome" in content(qa, fields)
    made = prompt(qa, fields)
    assert made.expected == "2"
    assert qa.answer("The answer is 3.", Example("a", "test", [], options=made.options)) == "3"
    numbers = {"question": "2 + 2", "choices": ["3", "4", "5"]}
    assert prompt(qa, {**numbers, "answer": "4"}).expected == "B"
    assert prompt(qa, {**numbers, "answer": 0}).expected == "A"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("b.", "B"),
        (" (B)\n", "B"),
        ("B) Rome", "B"),
        ("**B. Rome**", "B"),
        ("(B) Rome, because Paris is in France", "B"),
        ("Rome", "B"),
        ("The answer is B", "B"),
        ("the correct answer is (B), not A", "B"),
        ("The answer is b.", "B"),
        ("The answer is Rome.", "B"),
        (r"So it is \boxed{B}.", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("A. no\nC. no\nAnswer: B", "B"),
        ("Answer: B\nA is in France.", "B"),
        ('{"rationale": "A is French", "answer": "B"}', "B"),
        ("Paris is in France.\n\nB", "B"),
        ("I choose option B.", "B"),
        ("B is correct.", "B"),
        ("<think>A? C?</think>(B)", "B"),
        ("B or C", None),
        ("(A) or (B)", None),
        ("A. Paris\nB. Rome\nC. Bern", None),
        ("The answer is A. No, the answer is B.", None),
        ("A city in Italy", None),
        ("The answer is a city", None),
        ("D", None),
        ("Oslo", None),
        ("", None),
    ],
)
def test_a_choice_is_found_however_it_is_named_unless_two_are(text, found):
    example = Example("a", "test", [], options={"A": "Paris", "B": "Rome", "C": "Bern"})
    assert qa.answer(text, example) == found


def test_a_letter_comes_before_a_text_and_labels_may_be_choices():
    example = Example("a", "test", [], options={"A": "B", "B": "A"})
    assert qa.answer("A", example) == "A"
    chat = prompt(qa, messages=turns("A) x B) y", "(B) y"), labels=("A", "B"))
    assert chat.expected == "B"
    asked = {"question": "Wet?", "answer": "Yes"}
    made = prompt(qa, asked, labels=("yes", "no"))
    assert made.expected == "yes"
    said = "No, the answer is elsewhere."
    assert qa.answer(said, Example("a", "test", [], options=made.options)) == "no"


# Numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 234", "1234"),
        ("1\u202f234\u202f567 people", "1234567"),
        ("10,00,000", "1000000"),
        ("12%", "12"),
        (r"\boxed{12\%}", "12"),
        ("\u22125", "-5"),
        ("-$5.50", "-5.5"),
        ("$-5", "-5"),
        ("3/4", "0.75"),
        ("2 1/3", "7/3"),
        ("1.5e3", "1500"),
        (r"$1.5 \times 10^{3}$", "1500"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{x = {5}}", "5"),
        (r"$\boxed{18\text{ dollars}}$ as 2 < 3", "18"),
        (r"Answer: \boxed{-\dfrac{1}{3}}", "-1/3"),
        (r"1{,}234", "1234"),
        ("Answer: 18 (that is 9 * 2)", "18"),
        ("**Answer: 18**", "18"),
        ("Answer: 9 * 2 = 18", "18"),
        ("Answer:\n\nJanet makes $18. It took 3 days.", "18"),
        ("The final answer is 18. I hope all 3 of you agree.", "18"),
        ('{"reasoning": "9 * 2", "answer": 18}', "18"),
        ('{"answer": "$18 each", "rationale": "2 of them"}', "18"),
        ("1 + 2 = 3\n#### 3 which is 4 less than 7", "3"),
        ("#### 1. Add\n2 + 2 = 4\n#### 2. Double\nThis gives 8 in all", "8"),
        ("#### 5\nWait.\n#### 6", "6"),
        ("16-3-4", "4"),
        ("25 cm^2 or m2", "25"),
        ("</think>7", "7"),
        ("3,5", None),
        ("1.234,56", None),
        (r"\boxed{2\sqrt{2}}", None),
        (r"\boxed{2^{10}}", None),
        ("on 1/2/2024", None),
        ("1/0", None),
        ("1e999999999", None),
        ("<think>7", None),
        ("Answer: none of the 3", "3"),
        ("no number", None),
    ],
)
def test_a_number_is_found_and_read_as_a_value(text, value):
    assert math.answer(text, EXAMPLE) == value


def test_numbers_are_equal_as_values():
    for given in ("1234", "1,234", "1234.0", "$1234.00", "1.234e3", "2468/2"):
        assert math.equal(given, "1234")
        assert not math.equal(given, "1235")
    assert math.equal("1/3", "2/6")
    assert not math.equal("0.333", "1/3")
    assert not math.equal("x", "3")


def official(text):
    """GSM8K's own rule: grade_school_math/dataset.py, extract_answer."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return found.group(1).strip().replace(",", "")


RENDERINGS = (
    "{n:,}",
    "${n}.00",
    "{n}.0",
    r"\boxed{{{n}}}",
    "the answer is {n} dollars.",
    "The answer is {n:,}. It was not easy to find.",
    "Answer: ${n:,}",
    "2 of 3 steps are 7 * 9.\n\n**Final answer:** {n}",
    "<think>1 or 2</think>It is {n} in all.",
)


def test_numbers_agree_with_gsm8ks_own_rule_and_are_found_in_free_form():
    path = SHARED / "gsm8k" / "test_200.jsonl"
    if not path.exists():
        pytest.skip("the data is not here")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 200
    for row in rows:
        assert prompt(math, row).expected == official(row["answer"])
    for rendering in RENDERINGS:
        numbers = [official(row["answer"]) for row in rows]
        given = [math.answer(rendering.format(n=int(n)), EXAMPLE) for n in numbers]
        right = sum(g is not None and math.equal(g, n) for g, n in zip(given, numbers, strict=True))
        assert right / len(rows) >= 0.995, rendering


# Conversation and summaries


def test_replies_and_summaries_are_compared_as_texts_with_white_space_folded():
    assert conversation.answer(" Hi,\n there ", EXAMPLE) == "Hi, there"
    assert conversation.answer("<think>Who?</think>\nHi", EXAMPLE) == "Hi"
    assert conversation.answer("Q.\nAnswer: A", EXAMPLE) == "Q. Answer: A"
    drafts = "1. It rained.\n\n2. It rained in Bern.\n\nAnswer: It rained\nin Bern on Monday."
    assert summarization.answer(drafts, EXAMPLE) == "It rained in Bern on Monday."
    for task_type in (conversation, summarization):
        assert task_type.answer(" \n", EXAMPLE) is None
        assert task_type.equal("a b", "a b")
        assert not task_type.equal("a b", "a c")


# Reasoning


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
    assert lesson(text, "drop") == ("so", None)
    assert lesson(text, "field") == ("so", "why")
    assert lesson(text, "think") == ("<think>\nwhy\n</think>\n\nso", None)
    assert split(lesson(text, "think")[0]) == split(text)
    for style in ("drop", "field", "think"):
        assert lesson("plain", style) == ("plain", None)
        assert lesson("<think>why", style)[0] == ""


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


def test_whatever_a_text_holds_it_is_read_in_no_time():
    options = {"A": "Paris", "B": "Rome"}
    choose = Example("a", "test", [], options=options)
    for text in hostile_texts():
        start = time.perf_counter()
        parts = split(text)
        assert isinstance(parts[1], str)
        for style in ("drop", "field", "think"):
            lesson(text, style)
        for task_type in BUILT_IN:
            found = task_type.answer(text, EXAMPLE)
            assert found is None or (found and task_type.equal(found, found))
        assert qa.answer(text, choose) in (None, "A", "B")
        assert time.perf_counter() - start < 1, text[:60]


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
    monkeypatch.syspath_prepend(tmp_path)
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
    assert task_types.load("retort.task_types.qa") is qa
    assert find_file("task type", "retort.task_types:qa", task_types) is qa
    with pytest.raises(SpecError, match=r"did you mean 'math'.*your own as package\.module"):
        task_types.load("maths")
    for name in ("nowhere.at:all", "nowhere.at", "..", "retort.task_types:none"):
        with pytest.raises(SpecError, match="cannot be loaded"):
            task_types.load(name)
    with pytest.raises(SpecError, match=r"'json.decoder' has no function prompt and no answer"):
        task_types.load("json.decoder")


def test_every_type_names_its_filters_and_reads_without_a_heavy_import():
    for task_type in BUILT_IN:
        assert task_types.filters_of(task_type)[:3] == ("finished", "not_refused", "non_empty")
    names = ", ".join(Path(task_type.__file__).stem for task_type in BUILT_IN)
    code = (
        f"import sys; from retort.task_types import {names}; "
        "print(sorted({'numpy', 'torch', 'sklearn', 'rouge_score'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["nli", "math"])
def test_every_row_of_the_real_jobs_is_asked_as_it_stands(name):
    folder = SHARED / "azure" / name
    if not folder.exists():
        pytest.skip("the data is not here")
    task_type = task_types.load(name)
    lines = (folder / f"train_{name}.jsonl").read_text().splitlines()
    for messages in [json.loads(line)["messages"] for line in lines if line.strip()]:
        made = prompt(task_type, messages=messages)
        assert made.messages == messages
        assert (made.expected, made.reference) == (None, None)
