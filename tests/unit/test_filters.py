"""Filters: each keeps what holds and rejects what does not, on answers written by hand."""

import json
import random

import pytest

from retort import plugins
from retort.data import filters
from retort.data.filters.candidate import Candidate, check
from retort.data.task_types import load
from retort.errors import SpecError
from retort.records import Example, Response
from tests.support.filter_items import CHINESE, ENGLISH, MATH, QUESTION, item
from tests.support.real_data import GSM8K, needs_gsm8k

QA = load("qa")


def group(*answers, task=MATH, expected=None, scores=()) -> list[Candidate]:
    """The answers to one example, in the order of the samples."""
    peers: list[Candidate] = []
    for sample, text in enumerate(answers):
        response = Response(f"a#{sample}", text, [], "stop", 1, 1, sample=sample)
        example = Example("a", "train", [{"role": "user", "content": QUESTION}], expected)
        score = scores[sample] if scores else None
        peers.append(Candidate(example, response, task, text, score=score, peers=peers))
    return peers


def kept(name, items, **options) -> list[int]:
    """Which samples a filter keeps."""
    rejects = check(name, options)
    return [i for i, one in enumerate(items) if rejects(one, **options) is None]


GERMAN = "Die Antwort ist zwei, denn eins und noch eins ergeben zusammen zwei Stück."
CASES = [
    ("finished", {}, item("x"), item("x", state="truncated"), "truncated"),
    ("non_empty", {}, item(tool_calls=[{"id": "1"}]), item(" \n"), "empty"),
    ("not_refused", {}, item("2"), item("", state="filtered"), "filtered"),
    ("language", {}, item(ENGLISH), item(GERMAN), "language de"),
    ("language", {"codes": ["de", "en"]}, item(GERMAN), item(CHINESE), "language zh"),
    ("length", {"min_words": 2}, item("so two"), item("two"), "fewer than 2 words"),
    ("length", {"max_words": 2}, item("so two"), item("it is 2"), "more than 2 words"),
    ("length", {"max_words": 4}, item("十分好的"), item("十分好的吗"), "more than 4 words"),
    ("length", {"min_tokens": 2}, item("x", num_tokens=2), item("x"), "fewer than 2 tokens"),
    ("length", {"max_tokens": 2}, item("x"), item("x", num_tokens=3), "more than 2 tokens"),
    ("not_repetitive", {}, item(ENGLISH), item("I do not know. " * 5), "ends in a loop"),
    ("verified", {}, item("2.0", expected="2"), item("3", expected="2"), "wrong answer"),
    ("verified", {}, item("x"), item("x", expected="2"), "no answer found"),
    ("answered", {}, item("it is 2"), item("no idea"), "no answer found"),
    ("summary_length", {}, item("word " * 80), item("word " * 81), "more than 80 words"),
    ("summary_length", {"min_words": 3}, item("a b c"), item("a b"), "fewer than 3 words"),
    ("teachers_agree", {}, item("2", second="2.0"), item("2", second="3"), "disagree"),
    ("teachers_agree", {}, item("2", second="so: 2"), item("2"), "gave no answer"),
    ("judged", {}, item(score=3.0), item(score=2.9), "scored below 3"),
    ("judged", {"min_score": 4.5}, item(score=4.5), item(), "the judge gave no score"),
    ("json_valid", {}, item(' {"a": [1]}\n'), item('```json\n{"a": 1}\n```'), "not JSON"),
    ("json_valid", {}, item('"text"'), item('{"a": NaN}'), "not JSON"),
]


@pytest.mark.parametrize(("name", "options", "good", "bad", "reason"), CASES)
def test_a_filter_keeps_what_holds_and_says_what_does_not(name, options, good, bad, reason):
    rejects = check(name, options)
    assert rejects(good, **options) is None
    assert reason in rejects(bad, **options)


def test_every_filter_is_a_function_of_an_item_with_checked_defaults():
    for name in plugins.function_names("retort.data.filters"):
        check(name, {})
    assert len(plugins.function_names("retort.data.filters")) == 20


@needs_gsm8k
def test_worked_answers_and_their_questions_pass_what_looks_at_texts():
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    for row in rows:
        one = item(row["answer"], row["question"], expected=MATH.answer(row["answer"], None))
        for name in ("not_refused", "language", "not_repetitive", "verified", "answered"):
            assert getattr(filters, name)(one) is None, (name, row["answer"])


def test_a_label_or_letter_outside_the_set_is_rejected():
    labels, letters = {"yes": "it is", "no": "it is not"}, {"A": "one", "B": "two"}
    for name, options in (("label_in_set", labels), ("option_valid", letters)):
        rejects = getattr(filters, name)
        first = next(iter(options))
        assert rejects(item(first, task=QA, options=None)) is None
        assert rejects(item(f"{first}.".upper(), task=Whole, options=options)) is None
        assert "not one of" in rejects(item("maybe", task=Whole, options=options))
        assert "found" in rejects(item("", task=Whole, options=options))


class Whole:
    """A task type in which the text is the answer."""

    @staticmethod
    def answer(text, example):
        return text.strip(". ") or None

    @staticmethod
    def equal(given, expected):
        return given == expected


def test_json_must_fit_its_schema_given_or_in_a_file(tmp_path):
    schema = {"type": "object", "required": ["names"], "properties": {"names": {"type": "array"}}}
    schema["properties"]["names"]["items"] = {"type": "string"}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for options in ({"schema": schema}, {"schema_file": str(tmp_path / "schema.json")}):
        rejects = check("json_valid", options)
        assert rejects(item('{"names": ["a"]}'), **options) is None
        assert rejects(item("{}"), **options) == "schema: required at $"
        assert rejects(item('{"names": ["a", 7]}'), **options) == "schema: type at $.names[]"
    elsewhere = {"$ref": "https://example.org/schema.json"}
    with pytest.raises(SpecError, match=r"refers to https://example\.org"):
        filters.json_valid(item("{}"), schema=elsewhere)


SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
REPLY = {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}, {"id": "2"}]}
RESULT = {"role": "tool", "content": "r"}


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([SYSTEM, USER], None),
        ([USER, REPLY, USER], None),
        ([REPLY, USER], None),
        ([USER, CALL, RESULT, RESULT], None),
        ([USER, CALL, RESULT, RESULT, REPLY, USER], None),
        ([USER, USER], "user after user"),
        ([USER, REPLY], "assistant after assistant"),
        ([USER, SYSTEM], "system after user"),
        ([SYSTEM, SYSTEM, USER], "system after system"),
        ([USER, RESULT], "tool after user"),
        ([USER, CALL, RESULT], "a tool call without its result"),
        ([USER, CALL, RESULT, RESULT, RESULT], "tool after tool"),
        ([USER, CALL, USER], "a tool call without its result"),
    ],
)
def test_roles_alternate_and_tools_stand_in_their_places(chat, reason):
    assert filters.roles_alternate(item("x", prompt=chat)) == reason
    assert filters.roles_alternate(item("x", messages=chat)) == reason


def test_of_equal_texts_the_first_stays():
    assert kept("unique", group("Two!", "two", "TWO!", " two", "2")) == [0, 1, 4]
    calls = [item(tool_calls=[{"id": name}]) for name in "aab"]
    for one in calls:
        one.peers.extend(calls)
    assert kept("unique", calls) == [0, 2]


def test_the_majority_wins_compared_as_values_and_the_first_of_equals():
    assert kept("majority", group("2", "3", "2.0", "none")) == [0, 2]
    assert kept("majority", group("3", "2", "2.0", "3.0")) == [0, 3]
    assert kept("majority", group("1", "2", "3")) == []
    assert kept("majority", group("1", "2", "3"), at_least=1) == [0]
    assert kept("majority", group("7", "7", "7", "6"), at_least=4) == []
    assert kept("majority", group("none", "none", "none", "5", "5")) == [3, 4]
    assert kept("majority", [item("2")], at_least=1) == [0]


def test_the_majority_is_that_of_a_count_by_hand():
    random.seed(1)
    for _ in range(50):
        given = [random.choice("1123") for _ in range(random.randint(1, 9))]
        most = max(given, key=lambda a: (given.count(a), -given.index(a)))
        wanted = [i for i, a in enumerate(given) if a == most and given.count(most) >= 2]
        assert kept("majority", group(*given)) == wanted


def test_the_first_of_n_is_the_first_that_is_left():
    peers = group("2", "3", "2")
    assert kept("first_of_n", peers) == [0]
    first = peers.pop(0)
    assert kept("first_of_n", peers) == [0] and first not in peers
    assert kept("first_of_n", [item("2")]) == [0]


def test_the_best_of_n_is_right_then_well_judged_then_short_then_first():
    assert kept("best_of_n", group("it is 3", "it is certainly 2", "2", expected="2")) == [2]
    assert kept("best_of_n", group("3", "so it is 2", expected="2")) == [1]
    assert kept("best_of_n", group("so it is 2", "2", "2", scores=(4, 3, None))) == [0]
    assert kept("best_of_n", group("so it is 2", "2", "3")) == [1]
    assert kept("best_of_n", [item("2")]) == [0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lenght", {}, "did you mean 'length'"),
        ("length", {"max_word": 3}, "did you mean 'max_words'.*min_words=None, max_words=None"),
        ("length", {"max_words": "3"}, "max_words: '3'"),
        ("length", {"max_words": True}, "max_words: True"),
        ("length", {"max_words": -1}, "greater than or equal to 0"),
        ("finished", {"x": 1}, "its options: none"),
        ("judged", {"min_score": 7}, "less than or equal to 5"),
        ("language", {"codes": ["de", "eng"]}, "no language code 'eng'"),
        ("language", {"codes": "de"}, "valid list"),
        ("json_valid", {"schema": {"type": "objekt"}}, "no JSON schema"),
        ("json_valid", {"schema_file": "nowhere.json"}, "nowhere.json cannot be read"),
        (
            "tests.unit.test_filters:mine",
            {},
            "needs the option word; its options: word, upper=False",
        ),
        ("tests.unit.test_filters:mine", {"word": "a", "upper": "no"}, "upper: 'no'"),
        ("tests.unit.test_filters:GSM8K", {}, "is no function"),
        ("nowhere.at:all", {}, "cannot be loaded"),
    ],
)
def test_an_option_that_a_filter_does_not_have_is_refused_with_those_it_has(name, options, said):
    with pytest.raises(SpecError, match=f"(?s){said}"):
        check(name, options)


def mine(item: "Candidate", *, word: str, upper: bool = False) -> str | None:
    """A filter from outside."""
    return None if (word.upper() if upper else word) in item.text else f"without {word}"


def test_a_filter_from_outside_is_checked_and_called_the_same():
    options = {"word": "two", "upper": True}
    rejects = check("tests.unit.test_filters:mine", options)
    assert rejects(item("TWO"), **options) is None
    assert rejects(item("two"), **options) == "without two"
