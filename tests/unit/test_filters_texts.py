"""Filters that read prose: refusals, languages, loops, and the names in a summary."""

import random

import pytest

from retort.data import filters, text_stats
from tests.support.filter_items import CHINESE, ENGLISH, item

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I can’t help with that request.",
    "As an AI language model, I cannot provide medical advice.",
    "As an AI, I don't have personal opinions.",
    "I cannot fulfill your request.",
    "I must respectfully decline this request.",
    "Unfortunately, I cannot provide that information.",
    "I am an AI assistant and I'm not able to do that.",
    "I'm afraid I won't be able to help you with that.",
    "I cannot and will not help with that.",
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Je suis désolé, mais je ne peux pas vous aider avec cela.",
    "很抱歉，我无法回答这个问题。",
]
ANSWERS = [
    "I'm sorry to hear that your order is late. I can refund you.",
    "I'm sorry, but we don't ship to Norway.",
    "I can't provide a refund after 30 days, but I can offer a voucher.",
    "Sorry! The answer is 4.",
    "I can't help but notice that 2 + 2 = 4.",
    "I apologize for the confusion. The answer is 5.",
    "He said: \"I'm sorry, but I can't assist with that.\"",
    "As AI systems improve, humans cannot ignore them.",
    "As an AI researcher, I cannot ignore that.",
    "As an aircraft, it cannot land on water.",
    "Unfortunately, the train was late, so she cannot arrive.",
    "entailment",
]


def test_a_refusal_is_known_by_its_first_words_and_being_sorry_is_none():
    assert [t for t in REFUSALS if filters.not_refused(item(t)) is None] == []
    assert [t for t in ANSWERS if filters.not_refused(item(t))] == []


def test_an_uncertain_language_is_not_held_against_an_answer():
    for text in ("zwei", "42", "x = y", "def f(a, b):\n    return a + b", "$3 + 4 = 7$ " * 9):
        assert filters.language(item(text)) is None
    assert filters.language(item(ENGLISH, prompt="1 + 1 = ?"), codes=None) is None
    assert filters.language(item(CHINESE), codes=["yue"]) is None
    labels = text_stats._identifier().labels
    assert set(labels) == text_stats.LANGUAGES


LOOPS = [
    "I love you. " * 4 + "I lo",
    "Some words first.\n" + "- the same line again and again\n" * 4,
    "谢谢你的帮助。" * 4,
    "0 " * 400,
    "x" * 60,
    "The cat " + "sat on the mat and " * 40 + "then",
]
NO_LOOPS = [
    "2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 = 4096",
    "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1",
    "1/3 = 0.33333333333333333333333333",
    "#### 1000000",
    "ha ha ha ha ha!",
    "\n".join(f"Step {n}: add {n} to the sum, which gives {n * (n + 1) // 2}." for n in range(25)),
    "5 kg + 5 kg + 5 kg + 5 kg + 5 kg + 5 kg + 5 kg = 35 kg",
    CHINESE,
]


def test_a_loop_is_told_from_a_list():
    assert [t for t in LOOPS if filters.not_repetitive(item(t)) is None] == []
    assert [t for t in NO_LOOPS if filters.not_repetitive(item(t))] == []


@pytest.mark.parametrize("text", ["", " \n", "a", "の", "ab" * 5])
def test_an_empty_or_short_text_does_not_loop(text):
    assert not text_stats.loops(text)


def test_repetition_is_the_share_of_four_word_sequences_seen_before():
    random.seed(0)
    for _ in range(20):
        words = random.choices("abcde", k=60)
        found = [tuple(words[i : i + 4]) for i in range(57)]
        again = sum(found[i] in found[:i] for i in range(57)) / 57
        assert text_stats.repeated_share(" ".join(words)) == pytest.approx(again)
        loops = text_stats.loops(" ".join(words) + " end")
        assert not loops


ARTICLE = (
    "The European Union's commissioner Anna Lindqvist met miners in Kiruna on Tuesday. The mine "
    "employs 1,850 people, and three of them said that Lindqvist had promised $20.50 a share. "
    "LKAB, the owner, declined to comment. Mr. Berg of LKAB said Kiruna would be moved by 2035."
)


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        ("EU commissioner Lindqvist met 3 miners in Kiruna, where LKAB employs 1850 people.", None),
        ("In Kiruna, Anna Lindqvist promised miners $20.5 a share.", None),
        ("A commissioner met miners.", "main entities"),
        ("She told Boris Karlsson of Kiruna and Nokia that 400 jobs go.", "does not"),
        ("Workers of LKAB will get 99 shares and 7,000 kronor by 2041.", "does not"),
    ],
)
def test_a_summary_names_what_its_article_names(summary, reason):
    said = filters.names_entities(item(summary, prompt=ARTICLE))
    assert said is None if reason is None else reason in said


def test_a_text_without_names_or_numbers_passes_where_there_are_none():
    plain = "some water is warm and some is not"
    assert filters.names_entities(item("water is warm", prompt=plain)) is None
    assert filters.names_entities(item("水是热的", prompt="有些水是热的")) is None
