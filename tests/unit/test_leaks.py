"""Leaks of held-out rows, beside a slow and obvious version with Python's own sets."""

import random

import pytest

from retort.data.duplicates import DuplicatePair
from tests.support.duplicate_texts import ASKS, CONTEXT, leaks
from tests.support.slow_duplicates import corpus, slow_leaks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", [0.3, 0.6, 1.0])
def test_leaks_are_those_that_python_sets_find(seed, overlap):
    draw = random.Random(seed)
    rows = [row[0] for row in corpus(seed)]
    held_out, texts = rows[:60], rows[40:]
    texts = [f"{text} {draw.choice(rows)}" if draw.random() < 0.2 else text for text in texts]
    assert leaks(texts, held_out, overlap) == slow_leaks(texts, held_out, overlap)


def test_a_leak_is_found_inside_a_longer_row_and_the_most_similar_is_told():
    held_out = [ASKS.replace("fox", "cat").replace("dog", "hen"), ASKS, "the lazy dog is old today"]
    long = f"{CONTEXT} {ASKS} {CONTEXT}"
    (pair,) = leaks([long], held_out)
    assert pair == DuplicatePair(0, 1, 1.0, "leak")
    (pair,) = leaks([long.replace("brown", "red")], held_out)
    assert pair == DuplicatePair(0, 1, 13 / 16, "leak")
    assert leaks([CONTEXT], held_out) == []
    assert leaks([], held_out) == leaks([long], []) == leaks([], []) == []


def test_a_leak_has_all_numbers_of_the_held_out_row_as_often():
    asked = f"{ASKS} 5 and 5 and 35 of them"
    assert leaks([f"{asked} and 8"], [asked])
    for other in (asked.replace("5 and 5", "5 and 8"), asked.replace("35", "36")):
        assert leaks([other], [asked]) == []
        assert leaks([other], [asked], numbers_matter=False)
