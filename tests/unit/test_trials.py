"""Nested subsets of what a student learns from, and the names of their artifacts."""

import itertools

from retort.records import Example, Response
from retort.spec import build, of_trial, recipes
from retort.stages.train.training_rows import fewest

SOURCES = {
    "prepare.train": "a",
    "prepare.test": "b",
    "generate.teacher": "c",
    "generate.engine": "vllm",
    "train.student": "d",
    "evaluate.engine": "vllm",
}


def asked(number: int, split: str, samples: int = 1) -> tuple[list[Response], dict[str, Example]]:
    ids = [f"{split}-{n}" for n in range(number)]
    examples = {id: Example(id, split, [{"role": "user", "content": id}]) for id in ids}
    responses = [
        Response(f"{id}#{n}", "", [], "stop", 1, 1, example_id=id, sample=n)
        for id in ids
        for n in range(samples)
    ]
    return responses, examples


def chosen(responses: list[Response], examples: dict[str, Example], number: int) -> set[str]:
    return {r.id for r in fewest(responses, examples, number)}


def test_fewer_examples_are_among_more_with_all_their_answers_and_all_of_validation():
    train, of_train = asked(40, "train", samples=2)
    held, of_held = asked(5, "validation")
    responses, examples = [*train, *held], of_train | of_held
    nested = [chosen(responses, examples, number) for number in (1, 5, 10, 40)]
    assert [len(each) for each in nested] == [2 + 5, 10 + 5, 20 + 5, 80 + 5]
    assert all(few < more for few, more in itertools.pairwise(nested))
    assert all({r.id for r in held} <= each for each in nested)
    # Neither the order of the rows nor further ones among them decide between two examples.
    assert chosen(responses[::-1], examples, 10) == nested[2]
    half = [r for r in responses if int(r.example_id.split("-")[1]) % 2 == 0]
    assert chosen(half, examples, 20) == {r.id for r in half}
    assert chosen(half, examples, 5) & nested[1] == {r.id for r in half} & nested[1]
    assert fewest(responses, examples, None) == responses


def spec_of(**train):
    return build(
        {
            "name": "trials",
            "prepare": {"train": "train.jsonl", "test": "test.jsonl"},
            "generate": {"teacher": "teacher", "engine": "transformers"},
            "train": {"student": "base", **train},
            "evaluate": {"rounds": 2, **({"limit": 3} if "max_examples" in train else {})},
        }
    )


def test_a_subset_names_its_own_training_and_scoring_and_the_whole_is_the_jobs():
    whole, few = (recipes(spec_of(**own), SOURCES) for own in ({}, {"max_examples": 7}))
    assert "max_examples" not in whole["train"].ingredients["knobs"]
    assert whole["train"].name != few["train"].name
    assert whole["curate"].name == few["curate"].name
    scores = [of_trial(made, made["train"]) for made in (whole, few)]
    assert scores[0].ingredients["knobs"] == scores[1].ingredients["knobs"]
    assert len({scores[0].name, scores[1].name, whole["evaluate"].name}) == 3
    assert scores[0].inputs == ("prepare", "generate", "train-trial")
