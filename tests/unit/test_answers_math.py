"""Numbers found in whatever a model writes around them, and compared as values."""

import json
import re

import pytest

from retort.data.task_types import math
from tests.support.asking import EXAMPLE, prompt
from tests.support.real_data import GSM8K, needs_gsm8k


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


GOLD = {
    r"\frac25": "0.4",
    r"-\frac{7}{8}": "-0.875",
    r"\frac{100}9": "100/9",
    r"\dfrac{11}{4}": "2.75",
    r"4\frac{1}{5}": "4.2",
    r"-2\frac14": "-2.25",
    r"\frac{-5}{8}": "-0.625",
    r"12,\!345": "12345",
    r"\$7,\!500": "7500",
    r"1\,250\text{ km}": "1250",
    "45^{\\circ}": "45",
    "30°": "30",
    "7¾": "7.75",
    "3⁄8": "0.375",
    "12’500": "12500",
    "$2.5 billion": "2500000000",
    "3 thousand dollars": "3000",
    r"15\%": "15",
    r"\(6\)": "6",
    "US$9.99": "9.99",
    "x = -4": "-4",
    "6 \\times 7 = 42": "42",
    "24 cm^2": "24",
    "120 (pages)": "120",
    "٤٢": "42",
    "+8": "8",
    "They sold 3 * 4 = 12 cakes": "12",
    "First there are 7.\nThen there are 5.": "5",
}
NO_GOLD = [
    *(
        r"\sqrt{5}",
        r"2\sqrt{7}",
        "3 + 2i",
        "x^2-9",
        "3n-1",
        r"(1,5) \cup (5,9)",
        "101_2",
        "2, 4, 6",
    ),
    *(
        r"4\pi",
        r"\frac{\pi}{6}",
        r"1.\overline{6}",
        r"2 \pm \sqrt{3}",
        "(3, 4)",
        "(3,456)",
        "2^{8}",
    ),
    *("5 or 7", "x=1, y=2", "2:3", "9:15", "4!", "8 - 3", r"\frac{1}{2}x", "3x", "e^3", r"\log 5"),
    *("6 dozen", r"\{1, 2\}", "7,5", "3 cats and 4 dogs", r"\approx 2.7", r"\text{(C)}"),
]


@pytest.mark.parametrize("text", GOLD)
def test_a_rows_own_answer_is_the_one_number_that_it_is(text):
    assert prompt(math, {"question": "?", "answer": text}).expected == GOLD[text]
    assert prompt(math, {"question": "?", "answer": rf"so \boxed{{{text}}}"}).expected == GOLD[text]


@pytest.mark.parametrize("text", NO_GOLD)
def test_no_number_is_made_of_an_answer_that_is_not_one_number(text):
    with pytest.raises(ValueError, match=r"is not one rational number|holds no number"):
        prompt(math, {"question": "?", "answer": text})


@pytest.mark.parametrize(
    "text", [r"$\frac25$", r"\boxed{\frac25}", r"Answer: \frac{2}{5}", "2/5", "0.40"]
)
def test_an_answer_in_any_notation_is_the_gold_answer(text):
    assert math.equal(math.answer(text, EXAMPLE), "0.4")
    assert math.answer(r"\boxed{2k + 2}", EXAMPLE) is None


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


@needs_gsm8k
def test_numbers_agree_with_gsm8ks_own_rule_and_are_found_in_free_form():
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    assert len(rows) == 200
    for row in rows:
        assert prompt(math, row).expected == official(row["answer"])
    for rendering in RENDERINGS:
        numbers = [official(row["answer"]) for row in rows]
        given = [math.answer(rendering.format(n=int(n)), EXAMPLE) for n in numbers]
        right = sum(g is not None and math.equal(g, n) for g, n in zip(given, numbers, strict=True))
        assert right / len(rows) >= 0.995, rendering
