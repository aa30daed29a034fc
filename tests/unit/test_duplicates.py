"""Duplicates, beside a slow and obvious version with Python's own sets."""

import os
import random
import subprocess
import sys

import numpy as np
import orjson
import pytest

from retort.data.duplicates import DuplicatePair, find_duplicates, find_leaks
from retort.data.duplicates.sketch import NUM_HASHES, bands
from retort.data.duplicates.words import (
    CHARACTER,
    FUNCTION,
    NAME,
    NEGATION,
    tokens,
)
from retort.spec.prepare import Decontaminate, Deduplicate
from tests.conftest import ROOT
from tests.support.duplicate_texts import ASKS, CONTEXT, duplicates, gathered, leaks
from tests.support.real_data import SHARED
from tests.support.slow_duplicates import corpus, slow_duplicates, slow_shared, slow_similarity


def test_what_is_found_is_what_python_sets_find():
    missed = total = 0
    for seed in range(8):
        rows = corpus(seed)
        found, slow = find_duplicates(gathered(rows), Deduplicate()), slow_duplicates(rows)
        removed = [pair.index for pair in found]
        assert removed == sorted(set(removed))
        assert [p for p in found if p.kind == "exact"] == [p for p in slow if p.kind == "exact"]
        copies = {pair.index for pair in slow if pair.kind == "exact"}
        rest = [i for i, row in enumerate(rows) if i not in copies and len(row[0].split()) > 2]
        shared = slow_shared(rows, rest)
        for pair in (pair for pair in found if pair.kind == "near"):
            similarity = slow_similarity(rows[pair.other], rows[pair.index], *shared)
            assert pair.similarity == similarity >= 0.6
            assert pair.other < pair.index and pair.other not in removed
        missed += len(set(removed) ^ {pair.index for pair in slow})
        total += len(slow) - len(copies)
    assert total > 150
    assert missed <= total / 100  # a sketch finds 999 in a thousand


def test_case_space_and_punctuation_change_nothing():
    same = [
        "Hello, World! It's (really) a well-known \u201cfact\u201d.",
        "hello world\n\tits really a well known FACT...",
        "**Hello** world: it\u2019s really; a well\u2014known *fact*",
    ]
    assert duplicates(*same) == [(1, 0, "exact"), (2, 0, "exact")]
    assert duplicates("Straße \uff21\uff22\uff23 naïve", "STRASSE abc nai\u0308ve") == [
        (1, 0, "exact")
    ]
    assert duplicates("1,234 cups", "1234 cups", "\uff11\uff12\uff13\uff14 cups") == [
        (1, 0, "exact"),
        (2, 0, "exact"),
    ]
    assert duplicates("2*3 = 6", "2 * 3=6", "2\xd73 = 6") == [(1, 0, "exact"), (2, 0, "exact")]


@pytest.mark.parametrize(
    "texts",
    [
        ("1.5 - 2", "1.5 + 2", "15 2", "1.5 2", "1.5 / 2", "1.5 * 2", "1.52", "-1.5 - 2"),
        ("(1 + 2) * 3", "1 + (2 * 3)", "1 + 2 * 3"),
        ("x = 5²", "x = 52", "x = 5", "x = 5₂", "x = 5!"),
        ("1½ cups", "11/2 cups", "12 cups"),
        ("x != y", "x = y", "x == y", "x <= y", "x < y"),
        ("f'(x) = 2", "f(x) = 2", "-f(x) = 2"),
        ("C code", "C++ code", "C# code"),
        ("50% of 3", "50 of 3", "$50 of 3", "€50 of 3"),
        ("3:45", "345", "3.45", "3 45"),
        ("5 \u2013 3", "5 3"),
        ("我有三个苹果", "我有五个苹果", "我有三个梨"),
        ("किताब", "कातब"),
        ("", ")", "(", "?"),
        ("😀", "😢"),
    ],
)
def test_what_asks_something_else_is_never_equal(texts):
    assert duplicates(*texts, near=False) == []


def test_equal_texts_of_other_scopes_are_two_questions_but_one_leak():
    assert duplicates((ASKS, "be brief"), (ASKS, "be long"), (ASKS, "be brief")) == [
        (2, 0, "exact")
    ]
    near = ASKS.replace("quick", "fast")
    assert duplicates((ASKS, "be brief"), (near, "be long")) == []
    found = find_leaks(gathered([(ASKS, "x")]), gathered([(ASKS, "y")]), Decontaminate(), True)
    assert found == [DuplicatePair(0, 0, 1.0, "leak")]


def test_a_near_duplicate_is_found_and_its_similarity_is_exact():
    near = ASKS.replace("birds", "crows")
    (pair,) = find_duplicates(gathered([ASKS, near]), Deduplicate())
    assert pair == DuplicatePair(1, 0, 13 / 19, "near")
    assert duplicates(ASKS, near, near=False) == []
    assert duplicates(ASKS, near, similarity=0.7) == []
    assert duplicates(ASKS, ASKS, exact=False) == [(1, 0, "near")]
    assert duplicates(ASKS, ASKS, exact=False, near=False) == []


def test_chinese_is_compared_by_characters():
    text = "小明每天早上去学校之前都会在公园里跑步然后回家吃早饭再和朋友一起走路上学"
    assert duplicates(text, text.replace("公园", "花园")) == [(1, 0, "near")]
    assert duplicates(text, " ".join(text) + "。") == [(1, 0, "exact")]
    assert duplicates(text, "今天天气很好我们决定坐火车去北京看望爷爷奶奶并且住几天") == []


def test_numbers_their_order_and_operators_matter_unless_told_otherwise():
    text = f"{CONTEXT} with 3 cats and 7 mice and then 1,000 more"
    for other in (
        text.replace("7", "8"),
        text.replace("3", "x").replace("7", "3").replace("x", "7"),
        text.replace("and then", "and then +"),
        text.replace("3 cats", "two cats"),
    ):
        assert duplicates(text, other) == []
        assert duplicates(text, other, numbers_matter=False) == [(1, 0, "near")]
    same = text.replace("1,000", "1000").replace("mice", "rats")
    assert duplicates(text, same) == [(1, 0, "near")]


def test_a_negation_asks_something_else():
    text = f"which of these does hold {ASKS}"
    assert duplicates(text, text.replace("does hold", "does not hold")) == []
    assert duplicates(text, text.replace("does", "doesn't")) == []


def test_other_answers_are_other_questions_and_no_answer_is_any():
    near = ASKS.replace("quick", "fast")
    assert duplicates((ASKS, "", "yes"), (near, "", "no")) == []
    assert duplicates((ASKS, "", "yes"), (near, "", "Yes ")) == [(1, 0, "near")]
    assert duplicates((ASKS, "", "yes"), (near, "", None)) == [(1, 0, "near")]
    assert duplicates((ASKS, "", "yes"), (ASKS, "", "no")) == []
    answers = [None if answer == "-" else answer for answer in "ab-aba"]
    copies = duplicates(*((ASKS, "", answer) for answer in answers))
    assert copies == [(2, 0, "exact"), (3, 0, "exact"), (4, 1, "exact"), (5, 0, "exact")]


TOWNS = [
    *("Oslo", "Lima", "Cairo", "Quito", "Accra", "Hanoi", "Minsk"),
    *("Sofia", "Tunis", "Dakar", "Bern", "Riga"),
]
LONG = (
    "I would like a detailed and friendly text of two hundred words about {} that we can print on "
    "the first page of our own monthly magazine for the people who live here, with a short list of "
    "its advantages at the end"
)


@pytest.mark.parametrize(
    "template",
    [
        "Which river flows through the old town of {}?",
        "{} was founded by whom and in which century?",
        "How far is it from here to {} by train or by bus?",
        "qual é a população da cidade de {} hoje?",
        "Какая река протекает через старый город {}?",
        "请告诉我哪一条河流经过{}的老城区谢谢",
        "{}の旧市街を流れる川はどれですか教えてください",
        LONG,
    ],
)
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_what_a_template_is_filled_with_makes_another_question(template, case):
    texts = [template.format(case(town)) for town in TOWNS]
    assert duplicates(*texts) == []
    assert leaks(texts[:8], texts[8:]) == []
    if case is str or template is not LONG:
        assert duplicates(*texts[:2]) == []
        assert leaks(texts[:1], texts[1:2]) == []
    again = template.format(case(TOWNS[3])) + " "
    assert duplicates(*texts, again) == [(12, 3, "exact")]
    assert leaks([again], texts) == [DuplicatePair(0, 3, 1.0, "leak")]


def test_a_template_of_a_few_rows_among_many_is_known_too():
    others = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}z {ASKS}"[:60] + str(i) for i in range(300)]
    texts = [LONG.format(f"the {word} museum") for word in ("toy", "clock", "train", "glass")]
    assert [pair for pair in duplicates(*others, *texts) if pair[0] >= 300] == []


def test_words_that_say_nothing_make_no_other_question():
    assert duplicates("What is the capital of Peru?", "what is capital of Peru, please") == []
    one = "How do I turn on the lights in the kitchen of my new house?"
    for other in (
        "Please: how do I turn on the lights in the kitchen of my new house?",
        "how can I turn on the lights in the kitchen of my new house",
    ):
        assert duplicates(one, other) == [(1, 0, "near")]
    for other in (one.replace("kitchen", "garage"), one.replace(" on ", " off ")):
        assert duplicates(one, other) == leaks([other], [one]) == []
        assert duplicates(one, other, words_matter=False) == [(1, 0, "near")]


def test_a_longer_question_is_no_leak_of_a_short_one_within_it_but_a_long_text_is():
    asked = "how can I cancel my order"
    longer = "How can I cancel my order with my phone?"
    assert leaks([longer], [asked]) == []
    assert leaks([longer], [asked], words_matter=False) != []
    assert leaks([f"{CONTEXT} {asked} {CONTEXT}"], [asked]) != []
    assert leaks(["Please, how can I cancel my order?"], [asked]) != []


def test_a_name_matters_where_capitals_tell_one():
    text = f"the report of {{}} says that {ASKS}"
    for one, two in (("Anna Berg", "Olga Lund"), ("Berlin", "Hamburg")):
        assert duplicates(text.format(one), text.format(two)) == []
        assert duplicates(text.format(one).upper(), text.format(two).upper()) != []
        assert duplicates(text.format(one.lower()), text.format(two.lower())) != []


def test_another_last_line_asks_something_else():
    for one, two in (
        ("where does the fox live", "where does the dog live"),
        ("where does the quick brown fox live in all of winter", ASKS),
    ):
        assert duplicates(f"{CONTEXT}\n{one}", f"{CONTEXT}\n\n{two}\n") == []
        changed = CONTEXT.replace("wgaq", "other")
        assert duplicates(f"{CONTEXT}\n{one}", f"{changed}\n{one}") == [(1, 0, "near")]
    long = ASKS.replace("quick", "fast")
    assert duplicates(f"{CONTEXT}\n{ASKS}", f"{CONTEXT}\n{long}") == [(1, 0, "near")]


def test_a_last_line_that_all_texts_have_is_passed_over():
    others = [f"{chr(97 + i // 26)}{chr(97 + i % 26)} bit\nanswer" for i in range(60)]
    two = [f"{CONTEXT}\nwhere does the {who} live\nanswer" for who in ("fox", "dog")]
    assert duplicates(*others, *two) == []


def test_premise_and_hypothesis_that_changed_places_ask_something_else():
    one = f"premise {ASKS}"
    two = f"hypothesis {ASKS}".replace("near a river", "near a green river")
    swapped = two.replace("hypothesis", "premise"), one.replace("premise", "hypothesis")
    assert duplicates(f"{one}\n{two}", "\n".join(swapped)) == []


def test_instructions_that_all_rows_share_do_not_count():
    told = "given the following two texts say whether the second follows from the first or not"
    rows = [f"{told} {'abcdefghij'[i % 10] * 2} {'klmnopq'[i // 10] * 3} end" for i in range(70)]
    assert duplicates(*rows) == []
    assert duplicates(*rows[:49]) == []
    assert len(duplicates(*rows[:49], words_matter=False)) == 48
    asked = [f"{told} something new entirely", f"{told} something different this time"]
    assert leaks(rows, asked) == leaks(rows[:49], asked) == []
    assert len(leaks(rows[:49], asked, words_matter=False)) == 49


def test_short_texts_are_only_compared_whole():
    assert duplicates("big dog", "big cat", "Big dog!", "", " ") == [
        (2, 0, "exact"),
        (4, 3, "exact"),
    ]
    assert leaks(["a big dog barks", "big dog"], ["big dog"]) == [DuplicatePair(1, 0, 1.0, "leak")]


def test_the_earliest_stays_and_a_chain_is_not_followed():
    drift = [ASKS.split()]
    for at in (2, 8, 14):
        drift.append([*drift[-1][:at], f"new{chr(97 + at)}", *drift[-1][at + 1 :]])
    rows = [" ".join(words) for words in drift]
    # 1 is like 0, 2 only like 1 which goes, 3 like 2 which stays.
    assert duplicates(*rows) == [(1, 0, "near"), (3, 2, "near")]


def test_large_clusters_leave_what_the_slow_version_leaves():
    draw = random.Random(5)
    base = [[f"{chr(97 + b)}{draw.randrange(9**4)}z" for _ in range(50)] for b in range(12)]
    base = [["".join(chr(97 + int(c)) if c.isdigit() else c for c in w) for w in b] for b in base]
    rows = []
    for _ in range(700):
        words = list(draw.choice(base))
        for at in draw.sample(range(50), 2):
            words[at] = chr(97 + draw.randrange(26)) * draw.randrange(2, 9)
        rows.append((" ".join(words), "", None))
    found = find_duplicates(gathered(rows), Deduplicate())
    slow = slow_duplicates(rows)
    assert {p.index for p in found} == {p.index for p in slow}
    assert len(slow) > 650


def test_bands_find_what_is_just_similar_enough():
    for similarity in (0.1, 0.3, 0.5, 0.6, 0.8, 0.95, 1.0):
        count, width = bands(similarity)
        assert count * width <= NUM_HASHES
        assert 1 - (1 - similarity**width) ** count >= 0.999


def test_real_data_loses_no_row_that_asks_something_else():
    nli = SHARED / "azure/nli/train_nli.jsonl"
    if nli.exists():
        chats = [orjson.loads(line)["messages"] for line in nli.read_bytes().splitlines()]
        assert duplicates(*((chat[1]["content"], chat[0]["content"]) for chat in chats)) == []
    rows = (ROOT / "examples/quickstart/data/train.jsonl").read_bytes().splitlines()[:3000]
    asked = [orjson.loads(row)["question"] for row in rows]
    pairs = find_duplicates(gathered(asked), Deduplicate())
    digits = [[word for word in row.replace(".", " ").split() if word.isdigit()] for row in asked]
    assert all(digits[pair.index] == digits[pair.other] for pair in pairs)


def test_the_result_does_not_depend_on_the_process_or_on_when_rows_were_stored(monkeypatch):
    code = (
        "from tests.unit.test_duplicates import *\n"
        "rows = corpus(3)\n"
        "print(find_duplicates(gathered(rows), Deduplicate()),"
        " gathered(rows).columns().wholes.tolist())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(results) == 1
    whole = gathered(corpus(3)).columns()
    monkeypatch.setattr("retort.data.duplicates.texts.MAX_PENDING", 7)
    monkeypatch.setattr("retort.data.duplicates.words.MAX_CACHED", 20)
    again = gathered(corpus(3))
    for one, two in zip(whole, again.columns(), strict=True):
        assert np.array_equal(one, two)
    assert len(again._pieces) < 20  # what is held of words is bounded


def test_rows_can_be_added_after_a_search():
    texts = gathered([ASKS])
    assert find_duplicates(texts, Deduplicate()) == []
    texts.add(ASKS)
    assert len(texts) == 2
    assert find_duplicates(texts, Deduplicate()) == [DuplicatePair(1, 0, 1.0, "exact")]


def test_any_text_can_be_added():
    odd = ["\ud800 half a character", "\0 null\0 in it", "a" * 100_000, "の" * 5000, "-" * 99]
    odd += ["".join(map(chr, range(1, 0x3000))), "\u200b\ufeff", "x\r\ny\u2028z", "\n\n"]
    texts = gathered(odd)
    assert len(texts) == len(odd)
    assert find_duplicates(texts, Deduplicate()) == []
    assert [pair.index for pair in leaks(odd, odd)] == list(range(len(odd)))


def test_a_word_has_its_kind_whatever_stands_beside_it():
    assert tokens("($3,000.50)!")[1:3] == [("$", 0), ("3000.50", 1)]
    assert [word for word, _ in tokens("x-5")] == ["x", "-", "5"]
    assert [word for word, _ in tokens("ice-cream")] == ["ice", "cream"]
    assert [word for word, _ in tokens("10-year-old")] == ["10", "year", "old"]
    assert [word for word, _ in tokens("5\u201310")] == ["5", "-", "10"]
    assert [word for word, _ in tokens("a₁₂²")] == ["a", "12", "^", "2"]
    kinds = [kind for piece in ["The", "Straße", "don't", "東の"] for _, kind in tokens(piece)]
    assert kinds == [FUNCTION, NAME, NEGATION, CHARACTER, FUNCTION]
