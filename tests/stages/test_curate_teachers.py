"""curate among several teachers' answers: a vote or the judge picks one, without being named."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models

from tests.support.curating import asked, curated, said, why

TEACHERS = ("a", "b", "c")
OTHER = "majority: not the answer of the majority"
LATER = "first_of_n: not the first of n"


@pytest.fixture
def run(tmp_path):
    """Curates what teachers answered, by example, where the route is `route`."""

    def of(answers: dict[str, tuple[str, ...]], route, filters=("finished",), **knobs):
        responses = [
            replace(said(name, text), id=name if who == "a" else f"{name}@{who}", teacher=who)
            for name, texts in answers.items()
            for who, text in zip(TEACHERS, texts, strict=True)
        ]
        generate = {
            "teacher": "",
            "teachers": {name: {"teacher": name} for name in TEACHERS},
            "route": route,
        }
        examples = [asked(name, expected=None) for name in answers]
        prepare = {"task_type": "math"}
        return curated(tmp_path, examples, responses, filters, generate, prepare=prepare, **knobs)

    return of


def test_by_agreement_an_example_has_the_first_answer_of_the_majority(run):
    answers = {
        "most": ("7", "5", "it is 5"),
        "all": ("2", "2.0", "2"),
        "none": ("1", "2", "3"),
        "cut": ("x", "4", "4"),
    }
    facts, decisions = run(answers, "agreement")
    reasons = why(decisions)
    kept = [name for name, reason in reasons.items() if reason is None]
    assert kept == ["most@b", "all", "none", "cut@b"]
    assert reasons["most"] == OTHER and reasons["most@c"] == LATER
    assert reasons["none@c"] == OTHER
    assert reasons["cut"] == "majority: no answer found"
    assert facts["num_kept_of"] == {"a": 2, "b": 2, "c": 0}


def test_a_vote_that_is_named_with_its_own_bound_is_the_one_that_counts(run):
    strict = ("finished", {"name": "majority", "at_least": 3})
    answers = {"most": ("7", "5", "it is 5"), "all": ("2", "2.0", "2")}
    _, decisions = run(answers, "agreement", strict)
    assert [name for name, reason in why(decisions).items() if reason is None] == ["all"]


def test_by_the_judge_an_example_has_the_answer_that_it_scored_best(run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    judge = {"model": str(tmp_path), "engine": "echo", "max_tokens": 4000}
    answers = {
        "x": ("2. Score: 2", "3. Score: 4", "no score"),
        "y": ("9. Score: 1", "8. Score: 1", "longer 7. Score: 5"),
    }
    facts, decisions = run(answers, "best_judged", judge=judge)
    assert [name for name, reason in why(decisions).items() if reason is None] == ["x@b", "y@c"]
    assert why(decisions)["x@c"] == "judged: the judge gave no score"
    assert facts["filters"] == ["finished", "judged", "best_of_n"]
