"""Answers found in whatever a model writes around them: labels, choices, replies, summaries."""

import pytest

from retort.data.task_types import check_labels, conversation, nli, qa, summarization
from retort.errors import SpecError
from retort.records import Example
from tests.support.asking import CHOOSE, EXAMPLE, PAIR, content, prompt, turns

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


def test_a_number_longer_than_an_integer_may_be_is_no_label():
    with pytest.raises(ValueError, match="label") as error:
        prompt(nli, {"premise": "p", "hypothesis": "h", "label": "7" * 6000})
    assert "limit" not in str(error.value)


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


SAME = [
    *(
        ("2.0", "2"),
        ("7.50", "7.5"),
        ("$3.50", "3.5"),
        ("1,250", "1250"),
        ("60 %", "60%"),
    ),
    *(
        ("“Oslo”", "Oslo"),
        ("Oslo！", "Oslo"),
        ("«Осло»", "Осло"),
        ("東京。", "東京"),
        ("「東京」", "東京"),
    ),
    *(
        ("Cafe\u0301", "Café"),
        ("Straße", "STRASSE"),
        ("２０２４", "2024"),
        ("٧", "7"),
        ("−3", "-3"),
    ),
    *(("The Rhine", "rhine"), ("(Rome)", "Rome"), ("U.K.", "UK"), ("Vitamin A", "vitamin a")),
    ("-$" + "7" * 6000 + ".50", "-" + "7" * 6000 + ".5"),  # longer than an integer may be
]
DIFFERENT = [
    *(("7" * 6000, "7" * 5999 + "8"), ("-" + "7" * 6000, "7" * 6000)),
    *(("2.71", "271"), ("-8", "8"), ("−8", "8"), ("$2.25", "225"), ("3/4", "34"), ("6:45", "645")),
    *(("C++", "C"), ("F#", "F"), ("A+", "A"), ("A-", "A"), ("a<b", "a>b"), ("a>=b", "a<=b")),
    *(("x!=1", "x=1"), ("5-10", "510"), ("2024-05-06", "20240506"), ("6²", "62"), ("$5", "€5")),
    *(
        ("9%", "$9"),
        ("007", "7"),
        ("Python 3.10", "Python 3.1"),
        ("Vitamin A", "Vitamin"),
        ("2*4", "24"),
    ),
]


@pytest.mark.parametrize(("one", "two"), [*SAME, *DIFFERENT])
def test_open_answers_are_equal_only_if_they_say_the_same(one, two):
    answers = [qa.answer(text, EXAMPLE) for text in (one, two)]
    expected = [prompt(qa, {"question": "?", "answer": text}).expected for text in (one, two)]
    is_same = (one, two) in SAME
    assert qa.equal(answers[0], expected[1]) is qa.equal(answers[1], expected[0]) is is_same
    assert qa.equal(answers[0], expected[0])


@pytest.mark.parametrize(
    ("labels", "text", "found"),
    [
        (("C", "C++", "C#"), "It is C++.", "C++"),
        (("C", "C++", "C#"), "C#", "C#"),
        (("C", "C++"), "This is C# code", None),
        (("蕴含", "中立", "矛盾"), "答案是中立的。", "中立"),
        (("支持", "不支持"), "这段话不支持该说法", "不支持"),
        (("含意", "中立", "矛盾"), "これは矛盾です", "矛盾"),
        (("ポジティブ", "ネガティブ"), "感情はポジティブです。", "ポジティブ"),
        (("เป็นกลาง", "ขัดแย้ง"), "คำตอบคือเป็นกลางครับ", "เป็นกลาง"),
        (("긍정", "부정"), "이 문장은 긍정입니다", "긍정"),
        (("सकारात्मक", "नकारात्मक"), "उत्तर: नकारात्मक।", "नकारात्मक"),
        (("да", "нет"), "Ответ: «нет».", "нет"),
        (("是", "否"), "答案：是。", "是"),
        (("是", "否"), "答案不是这个", None),
        (("是", "否"), "是", "是"),
        (("＋", "－"), "plus", None),
        ((":)", ":("), ":(", ":("),
        (("*", "**"), "**", "**"),
    ],
)
def test_a_label_is_found_in_a_sentence_of_any_script(labels, text, found):
    example = Example("a", "test", [], options={label: label for label in labels})
    assert nli.answer(text, example) == found


@pytest.mark.parametrize(
    ("label", "labels", "expected"),
    [
        ("1.0", ("no", "maybe"), "maybe"),
        ("0.0", ("no", "maybe"), "no"),
        ("True", ("yes", "no"), "yes"),
        (False, ("yes", "no"), "no"),
        ("false", ("bad", "good"), "bad"),
        (True, ("bad", "good"), "good"),
        (True, ("false", "true"), "true"),
    ],
)
def test_labels_as_pandas_writes_them_are_read(label, labels, expected):
    assert prompt(nli, {"text": "x", "label": label}, labels=labels).expected == expected
    fields = {"question": "x", "answer": label}
    if "bad" not in labels:
        assert prompt(qa, fields, labels=labels).expected == expected


@pytest.mark.parametrize("label", ["-1.0", -1, "-"])
def test_a_missing_label_as_pandas_writes_it_is_no_gold_label(label):
    with pytest.raises(ValueError, match="no gold label"):
        prompt(nli, {"text": "x", "label": label}, labels=("no", "yes"))


@pytest.mark.parametrize(
    "labels",
    [("a", "a"), ("", "a"), ("a ", "a"), ("Not sure", "not_sure"), ("yes", "Yes!"), ("ｘ", "x")],
)
def test_labels_that_no_answer_could_tell_apart_are_refused(labels):
    with pytest.raises(SpecError, match=r"prepare\.labels: .*(same label|is empty)"):
        check_labels(labels)


def test_labels_that_differ_in_a_sign_are_told_apart():
    check_labels(("C", "C++", "C#", "A", "A+", "A-", ":)", ":(", "*", "**", "5%", "5"))


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
