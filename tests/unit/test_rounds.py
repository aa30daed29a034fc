"""On-policy rounds in the spec: which recipes there are, what they share, and what is refused."""

import pytest

from retort.errors import SpecError
from retort.spec import build, recipes, rounds
from retort.spec.train import OnPolicy
from retort.stages.generate.written import turns

SOURCES = {
    "prepare.train": "a",
    "prepare.test": "b",
    "generate.teacher": "c",
    "generate.engine": "vllm",
    "train.student": "d",
    "evaluate.engine": "vllm",
}


def spec_of(on_policy, **train):
    return build(
        {
            "name": "rounds",
            "prepare": {"train": "train.jsonl", "test": "test.jsonl"},
            "generate": {"teacher": "teacher", "engine": "transformers"},
            "train": {"student": "base", "on_policy": on_policy, **train},
        }
    )


def names_of(on_policy, **train):
    made = recipes(spec_of(on_policy, **train), SOURCES)
    return {name: recipe.name for name, recipe in made.items()}


def test_a_job_without_rounds_is_the_phase_before_them():
    with_rounds, plain = names_of({"rounds": 3}), names_of(None)
    assert with_rounds["train-offline"] == plain["train"]
    assert [with_rounds[name] for name in ("prepare", "generate", "curate")] == [
        plain[name] for name in ("prepare", "generate", "curate")
    ]


def test_rounds_before_the_decay_are_those_of_a_longer_job():
    few, many = names_of({"rounds": 4, "decay": 0.5}), names_of({"rounds": 8, "decay": 0.5})
    same = {name for name in few if few[name] == many.get(name)}
    assert {"round-001", "round-002", "scores-003", "rollouts-003"} <= same
    assert few["round-003"] != many["round-003"]
    constant = names_of({"rounds": 2, "decay": 0}), names_of({"rounds": 3, "decay": 0})
    assert constant[0]["train"] == constant[1]["round-002"]


def test_what_is_only_compared_changes_no_round():
    few = names_of({"rounds": 2}, controls=["offline_steps", "offline_cost", "fine_tuning"])
    none = names_of({"rounds": 2})
    assert all(
        few[name] == none[name] for name in none if name not in ("evaluate", "report", "release")
    )
    assert few["train-offline_steps"] != few["train-offline_cost"]
    assert few["train-fine_tuning"] == names_of(None, controls=["fine_tuning"])["train-fine_tuning"]


def test_another_loss_of_the_rounds_asks_the_student_of_round_one_nothing_anew():
    one = names_of({"rounds": 2, "losses": [{"name": "reverse_kl"}]})
    other = names_of({"rounds": 2, "losses": [{"name": "jsd"}]})
    assert one["scores-001"] == other["scores-001"] and one["round-001"] != other["round-001"]


def test_the_step_size_falls_over_the_last_rounds_alone():
    knobs = OnPolicy(rounds=4, decay=0.5)
    found = [knobs.learning_rates(number) for number in (1, 2, 3, 4)]
    assert found == [(1, 1), (1, 1), (1, 0.5), (0.5, 0)]
    assert OnPolicy(rounds=3, decay=0).learning_rates(3) == (1, 1)


def test_answers_grow_to_their_whole_length():
    knobs = OnPolicy(rounds=9, grow=4, max_tokens=80)
    assert [knobs.longest(number, 512) for number in (1, 3, 4, 5, 9)] == [20, 50, 65, 80, 80]
    assert OnPolicy().longest(1, 512) == 512


def test_every_prompt_is_asked_before_any_is_asked_again():
    rounds_of_four = [turns(10, 4, number, seed=7) for number in range(1, 6)]
    flat = [index for part in rounds_of_four for index in part]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert turns(3, 8, 2, seed=7) == turns(3, 3, 2, seed=7)
    assert all(len(set(turns(11, 8, number, seed=1))) == 8 for number in range(1, 12))


def test_seeds_of_the_rounds_differ_and_are_those_of_the_job():
    spec = spec_of({"rounds": 3})
    seeds = [rounds.rollouts(spec, number).generate.seed for number in (1, 2, 3)]
    assert len(set(seeds)) == 3
    again = spec_of({"rounds": 9}, seed=0)
    assert rounds.rollouts(again, 2).generate.seed == seeds[1]
    assert rounds.rollouts(spec_of({}, seed=5), 2).generate.seed != seeds[1]


@pytest.mark.parametrize(
    ("generate", "train", "said"),
    [
        ({"top_k": 0}, {"losses": [{"name": "cross_entropy"}]}, "generate.top_k is 0"),
        ({}, {"on_policy": {"losses": [{"name": "hidden_states"}]}}, "drop the loss"),
        ({}, {"on_policy": {"losses": [{"name": "jsd", "weight": 0}]}}, "weight 0"),
        ({}, {"on_policy": None, "controls": ["offline_cost"]}, "offline_cost is no control"),
    ],
)
def test_what_rounds_cannot_do_is_refused(generate, train, said):
    raw = {
        "name": "rounds",
        "prepare": {"train": "train.jsonl", "test": "test.jsonl"},
        "generate": {"teacher": "teacher", **generate},
        "train": {"student": "base", "on_policy": {}, **train},
    }
    with pytest.raises(SpecError, match=said):
        build(raw)
