"""curate: every response is kept or rejected with one reason."""

import random
from collections import Counter
from functools import partial

import pytest

from retort.errors import DataError, SpecError
from retort.events import Reporter
from tests.support.curating import asked, curated, said, why

THOUGHT = "One and one are two.\nAnswer: 2"


@pytest.fixture
def run(tmp_path):
    """Curates examples and responses in a store of its own; returns facts and decisions."""
    return partial(curated, tmp_path)


def test_kept_and_rejected_are_all_responses_and_the_first_reason_wins(run):
    random.seed(0)
    names = ["finished", "non_empty", "answered", "verified", "unique", "majority", "best_of_n"]
    for n in range(4):
        examples = [asked(f"e{i}", random.choice(["train", "validation"])) for i in range(9)]
        examples[0] = asked("e0")
        responses = [
            said(e.id, random.choice(["2", "3", " ", "x"]), state, sample=sample)
            for e in examples
            for sample in range(3)
            for state in random.choices(["accepted", "truncated"], [5, 1])
        ]
        responses[0] = said("e0", "2")
        chosen = random.sample(names, n % len(names) + 1)
        chosen = [{"name": c, "at_least": 1} if c == "majority" else c for c in chosen]
        facts, decisions = run(examples, responses, chosen, min_kept=1)
        assert list(decisions) == [r.id for r in responses]
        assert facts["num_kept"] + facts["num_rejected"] == facts["num_responses"] == 27
        assert facts["num_kept"] == sum(d.kept for d in decisions.values())
        assert Counter(facts["reasons"]) == Counter(r for r in why(decisions).values() if r)
        for response in responses:
            if response.state == "truncated" and "finished" in chosen[:1]:
                assert decisions[response.id].filter == "finished"


def test_without_filters_the_task_types_own_are_asked(run):
    examples = [asked("a"), asked("b"), asked("c", "validation")]
    responses = [said("a", "2"), said("b", "2", "truncated"), said("c", "it is 2")]
    facts, decisions = run(examples, responses, ())
    assert why(decisions) == {"a": None, "b": "finished: truncated", "c": None}
    assert (facts["num_kept"], facts["num_kept_train"]) == (2, 1)
    assert "verified" in facts["filters"]


def test_the_stage_ends_with_what_was_kept_and_why_the_rest_was_not(run):
    texts = {"a": "2", "b": " ", "c": "3", "d": "4"}
    said_of_it: list[dict] = []
    filters, report = ["non_empty", "verified"], Reporter(said_of_it.append)
    responses = [said(name, text) for name, text in texts.items()]
    _, decisions = run([*map(asked, texts)], responses, filters, report=report)
    wrong, empty = why(decisions)["c"], why(decisions)["b"]
    line = f"kept 1 of 4 responses; rejected: {wrong} (2), {empty} (1)"
    assert said_of_it[-1] == {"kind": "note", "text": line}


def test_the_budget_of_a_summary_is_the_one_it_was_written_for(run):
    budget = {"prepare": {"max_summary_words": 5}}
    responses = [said("a", "one two three four five six"), said("b", "one two three")]
    examples = [asked("a"), asked("b")]
    _, decisions = run(examples, responses, ["summary_length"], **budget)
    assert why(decisions) == {"a": "summary_length: more than 5 words", "b": None}
    own = [{"name": "summary_length", "max_words": 6}]
    assert run(examples, responses, own, **budget)[0]["num_kept"] == 2


def test_peers_are_the_answers_of_the_same_turn_that_still_stand(run):
    chat = [{"role": "user", "content": "again"}]
    responses = [
        said("a", "5", "truncated"),
        said("a", "2", sample=1),
        said("a", "2", turn=1, messages=chat),
        said("a", "5", sample=2),
        said("b", "5"),
    ]
    chosen = ["finished", "unique", {"name": "majority", "at_least": 1}]
    _, decisions = run([asked("a"), asked("b")], responses, chosen)
    assert why(decisions) == {
        "a": "finished: truncated",
        "a#1.0": None,
        "a#0.1": None,
        "a#2.0": "majority: not the answer of the majority",
        "b": None,
    }


def test_one_reasoning_that_cannot_be_read_rejects_one_row_alone(run):
    texts = [
        '{"reasoning": "1 + 1", "answer": "2"}',
        '{"reasoning": "1 + 1, "answer": 2',
        THOUGHT,
        '{"reasoning": "1 + 1", "answer": "3"}',
    ]
    examples = [asked(name) for name in "abcde"]
    responses = [said(name, text) for name, text in zip("abcd", texts, strict=True)]
    responses.append(said("e", "One and one", "truncated"))
    facts, decisions = run(
        examples,
        responses,
        ["non_empty", "finished", "verified"],
        {"reasoning": "chain_of_thought"},
    )
    assert why(decisions) == {
        "a": None,
        "b": "rationale: no answer found after the reasoning",
        "c": None,
        "d": "verified: wrong answer",
        "e": "finished: truncated",
    }
    assert facts["num_kept"] == 2


@pytest.mark.parametrize(
    ("style", "target_text", "rationale"),
    [
        ("keep", None, None),
        ("drop", "2", None),
        ("field", "2", "One and one are two."),
        ("think", "<think>\nOne and one are two.\n</think>\n\n2", None),
    ],
)
def test_the_reasoning_is_kept_dropped_set_beside_or_thought(run, style, target_text, rationale):
    texts = {"a": THOUGHT, "b": "2", "c": "<think>One and one", "d": "<think>It is 3.</think>2"}
    examples = [asked(name) for name in texts]
    responses = [said(name, text) for name, text in texts.items()]
    _, decisions = run(examples, responses, ["verified"], rationale=style)
    one = decisions["a"]
    assert (one.kept, one.target_text, one.rationale) == (True, target_text, rationale)
    assert (decisions["b"].kept, decisions["b"].target_text) == (True, None)
    assert not decisions["c"].kept
    assert decisions["c"].target_text is None
    assert decisions["d"].kept


def test_a_filter_looks_at_the_answer_and_not_at_the_thoughts_before_it(run):
    text = "<think>I'm sorry, but I can't assist with that. Or can I?</think>It is 2."
    few = [{"name": "length", "max_words": 3}, "not_refused"]
    assert run([asked("a")], [said("a", text)], few)[0]["num_kept"] == 1


def test_answers_outside_the_label_set_are_rejected(run):
    labels = {"entailment": "", "neutral": "", "contradiction": ""}
    texts = ["neutral", "perhaps", "Entailment."]
    examples = [
        asked(str(i), expected=None, options=labels, question="p, h") for i in range(len(texts))
    ]
    responses = [said(str(i), text) for i, text in enumerate(texts)]
    _, decisions = run(examples, responses, ["label_in_set"], prepare={"task_type": "nli"})
    assert [d.kept for d in decisions.values()] == [True, False, True]


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("none", [1, 1, 1, 1]), ("oversample", [1, 1, 1, 3]), ("weights", [2 / 3, 2 / 3, 2 / 3, 2])],
)
def test_kept_train_rows_of_a_rare_label_weigh_more(run, mode, weights):
    expected = ["2", "2", "2", "2", "7"]
    examples = [asked(f"e{i}", expected=right) for i, right in enumerate(expected)]
    examples.append(asked("v", "validation", expected="7"))
    responses = [said(e.id, e.expected) for e in examples]
    responses[0] = said("e0", "8")
    facts, decisions = run(examples, responses, prepare={"balance": {"by": "label"}}, balance=mode)
    assert [decisions[f"e{i}"].weight for i in range(1, 5)] == pytest.approx(weights)
    assert (decisions["e0"].weight, decisions["v"].weight) == (1, 1)
    assert facts["balance_before"] == {"2": 4, "7": 1}
    assert facts["balance_after"] == {"2": 3, "7": 1}


def test_too_few_kept_rows_stop_the_job_and_it_says_why(run):
    examples = [asked("a"), asked("b"), asked("v", "validation")]
    responses = [said("a", "3"), said("b", "2"), said("v", "2")]
    with pytest.raises(DataError, match=r"kept 1 train .*min_kept=2; rejected: 1 verified: wrong"):
        run(examples, responses, min_kept=2)


def test_what_does_not_belong_together_is_refused(run):
    with pytest.raises(DataError, match="do not match by id"):
        run([asked("a"), asked("b")], [said("a", "2")])
    with pytest.raises(DataError, match="do not match by id"):
        run([asked("a")], [said("a", "2"), said("b", "2")])
    with pytest.raises(SpecError, match="did you mean 'max_words'"):
        run([asked("a")], [said("a", "2")], [{"name": "length", "max_wrods": 3}])
