"""What a sweep may try, which trials its seed draws, and how its winner is written."""

import numpy as np
import pytest
import yaml

from retort.errors import SpecError, StageError
from retort.jobs import trust
from retort.jobs.sweep.sampling import Sampler
from retort.jobs.sweep.search import Candidate, as_yaml, best, promoted
from retort.plugins import FOLDER
from retort.spec import JobSpec, build
from retort.spec.variants import check, value_of, variant
from retort.stages.train.alignment import largest
from retort.store.signals import captured

JOB = {
    "name": "job",
    "prepare": {"train": "a.jsonl", "validation": "v.jsonl", "test": "b.jsonl"},
    "generate": {"teacher": "t"},
    "train": {"student": "s", "learning_rate": 3e-5},
}
OVER = {
    "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "train.lora.rank": {"low": 2, "high": 9},
    "train.losses.1.temperature": [1, 2.5],
    "curate.filters": [["finished"], ["finished", {"name": "length", "max_words": 9}]],
}


def job(over: dict, **knobs) -> JobSpec:
    return build({**JOB, "sweep": {"over": over, **knobs}})


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"train.learning_rat": [1]}, r"no such knob \(did you mean 'learning_rate'"),
        ({"trian.learning_rate": [1]}, r"no such knob \(did you mean 'train'"),
        ({"train.learning_rate": []}, "train.learning_rate has no value"),
        ({"train.learning_rate": {"low": 2, "high": 1}}, "empty range: low 2 is not below 1"),
        ({"train.weight_decay": {"low": 0, "high": 1, "log": True}}, "needs a low above 0"),
        ({"train.num_epochs": {"low": 1.2, "high": 1.8}}, "no whole number"),
        ({"train.schedule": {"low": 1, "high": 2}}, "takes no range; list its values"),
        ({"train.learning_rate": [1e-4, -1]}, "-1 the job is not valid.*greater than 0"),
        ({"train.losses.7.weight": [1]}, "no place 7 in this list, which has 2"),
        ({"train.lora": [None], "train.lora.rank": [2]}, "train.lora holds train.lora.rank"),
        ({}, "names no knob"),
        # What would ask a teacher, or another model.
        ({"generate.top_k": [4]}, "generate.top_k: .*teacher asked again.*train.top_k"),
        ({"prepare.limit": [4]}, "prepare.limit: cannot be tried: .*teacher asked again"),
        ({"train.teacher": ["live"]}, "train.teacher: .*teacher asked again"),
        ({"train.on_policy.rounds": [4]}, "train.on_policy.rounds: .*teacher asked again"),
        ({"curate.judge.model": ["m"]}, "curate.judge.model: .*another model asked"),
        ({"train.student": ["m"]}, "about one base"),
        ({"evaluate.seed": [1]}, "changes nothing of what the student learns"),
        ({"train.runtime.device": ["cpu"]}, "changes nothing of what the student learns"),
    ],
)
def test_what_cannot_be_tried_is_refused_by_name(over, message):
    with pytest.raises(SpecError, match=message):
        check(job(over))


def test_a_filter_that_asks_a_model_cannot_be_tried_where_its_model_is_named():
    raw = {**JOB, "curate": {"judge": {"model": "m"}}}
    spec = build({**raw, "sweep": {"over": {"curate.filters": [["finished"], ["judged"]]}}})
    with pytest.raises(SpecError, match="judged cannot be tried: it would have another model"):
        check(spec)


@pytest.mark.parametrize(
    ("section", "knobs", "message"),
    [
        ("train", {"teacher": "live"}, "train.teacher: live has the teacher asked"),
        ("train", {"on_policy": {"rounds": 2}}, "train.on_policy has the teacher asked"),
        ("train", {"stop_after": 0.5}, "train.stop_after ends every training early"),
        ("prepare", {"validation": None}, "there are none; set prepare.validation_ratio"),
    ],
)
def test_a_job_whose_trainings_ask_or_that_has_no_validation_rows_is_refused(
    section, knobs, message
):
    raw = {**JOB, section: {**JOB[section], **knobs}, "sweep": {"over": OVER}}
    with pytest.raises(SpecError, match=message):
        check(build(raw))


def told(spec: JobSpec, number: int) -> list[dict]:
    """The trials of a seed, each told that a high rank is best."""
    sampler, found = Sampler(spec), []
    sampler.tell({}, 0.1)
    while len(found) < number:
        drawn = sampler.draw(4)
        for values in drawn:
            sampler.tell(values, values["train.lora.rank"] / 10)
        found += drawn
    return found


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_a_seed_draws_the_same_trials_again_within_their_ranges(sampler):
    spec = job(OVER, sampler=sampler, trials=8)
    drawn = told(spec, 12)
    assert drawn == told(spec, 12)
    assert drawn != told(job(OVER, sampler=sampler, trials=8, seed=1), 12)
    for values in drawn:
        assert values.keys() == OVER.keys()
        assert 1e-5 <= values["train.learning_rate"] <= 1e-3
        assert values["train.lora.rank"] in range(2, 10)
        assert values["train.losses.1.temperature"] in (1, 2.5)
        tried = variant(spec, values)
        assert all(value_of(tried, path) == value for path, value in list(values.items())[:3])
        # A person can read the numbers, and as text they are the same.
        assert float(f"{values['train.learning_rate']:.3g}") == values["train.learning_rate"]


def test_nothing_is_drawn_twice_and_the_job_as_it_is_counts_as_drawn():
    spec = job({"train.batch_size": [16, 32, 64], "train.weight_decay": [0.0, 0.1]})
    sampler = Sampler(spec)
    drawn = [tuple(values.values()) for values in sampler.draw(50)]
    others = {(b, d) for b in (16, 32, 64) for d in (0.0, 0.1)} - {(32, 0.0)}
    assert len(drawn) == 5 and set(drawn) == others


def test_what_is_drawn_follows_the_scores():
    high = [v["train.lora.rank"] for v in told(job(OVER, trials=8), 24)[12:]]
    assert np.mean(high) > np.mean(range(2, 10)) + 1


def test_of_equals_the_first_drawn_goes_on_and_what_failed_does_not():
    class Scored(Candidate):
        rank = property(lambda self: {0: 0.5, 1: 0.7, 2: 0.7, 3: 0.9}[self.number])

    some = [Scored(number, {}) for number in range(4)]
    some[3].failed = "the gradient's norm is nan"
    assert [each.number for each in best(some, 2)] == [1, 2]
    assert [each.number for each in best(some, 1)] == [1]
    with pytest.raises(StageError, match=r"no trial could be trained.*norm is nan"):
        best(some[3:], 1)


def test_the_job_as_it_is_goes_on_and_others_by_turns_by_score_and_likelihood():
    class Measured(Candidate):
        rank = property(lambda self: [0.0, 0.9, 0.8, 0.2, 0.1][self.number])
        likelihood = property(lambda self: [-9.0, -2.0, -0.7, -0.9, -0.5][self.number])

    some = [Measured(n, {"train.batch_size": n} if n else {}) for n in range(5)]
    assert [each.number for each in promoted(some, 1)] == [0, 1]
    assert [each.number for each in promoted(some, 3)] == [0, 1, 4]
    assert [each.number for each in promoted(some, 4)] == [0, 1, 2, 4]
    some[4].failed = "lost"
    assert [each.number for each in promoted(some, 3)] == [0, 1, 2]
    some[0].failed = "lost"
    assert [each.number for each in promoted(some, 2)] == [1, 2]


def test_the_winner_is_written_as_the_job_that_it_is():
    spec = job(OVER)
    (values,) = Sampler(spec).draw(1)
    written = as_yaml(variant(spec, values))
    assert build(yaml.safe_load(written)) == variant(spec, values)
    raw = yaml.safe_load(written)
    assert "sweep" not in raw and raw["train"]["learning_rate"] == values["train.learning_rate"]
    assert "batch_size" not in raw["train"]  # what nobody set is not written


def test_code_beside_a_job_that_only_its_sweep_names_needs_trust(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "mine.py").write_text("def loss(logits, target, temperature):\n    return 0\n")
    losses = [[{"name": "cross_entropy"}], [{"name": "mine:loss"}]]
    with pytest.raises(SpecError, match=r"mine:loss in .*give --trust once"):
        trust.check(job({"train.losses": losses}), tmp_path, trusts=False)


def test_reading_fewer_of_the_stored_log_probabilities_moves_the_others_to_the_tail():
    probabilities = np.array([[0.1, 0.5, 0.2], [0.3, 0.1, 0.4]], dtype=np.float32)
    ids, targets = np.array([[4, 7, 9], [1, 5, 8]]), np.array([7, 1])
    whole = captured(ids, np.log(probabilities), targets, np.log(probabilities[[0, 1], [1, 0]]))
    few = largest(2, whole)
    assert few.ids_TK.tolist() == [[7, 9], [1, 8]]
    np.testing.assert_allclose(np.exp(few.logprobs_TK), [[0.5, 0.2], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(few.tail_T), [0.3, 0.3], rtol=1e-5)
    assert few.target_ids_T.tolist() == [7, 1]
    assert largest(3, whole) is whole and largest(None, whole) is whole
