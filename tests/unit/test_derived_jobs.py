"""What a stage's child is given: jobs that nobody wrote, derived from the one that somebody did."""

import json
from pathlib import Path

import pytest

from retort.errors import SpecError
from retort.events import SILENT
from retort.spec import JobSpec, build, recipes
from retort.stages.judge import as_teacher
from retort.stages.stage import Stage, from_arguments
from retort.store import Folder, Store

LOSSES = [
    {"name": "forward_kl"},
    {"name": "hidden_states", "weight": 0.02},
    {"name": "attention_relations", "weight": 0.1},
]


def written(**sections) -> JobSpec:
    raw = {
        "name": "whole",
        "prepare": {"train": "train.jsonl", "validation": "v.jsonl", "test": "test.jsonl"},
        "generate": {"teacher": "teacher", "max_model_len": 64},
        "train": {"student": "base"},
    }
    for name, knobs in sections.items():
        raw[name] = {**raw.get(name, {}), **knobs}
    return build(raw)


class AnyDigest(dict):
    def __missing__(self, key):
        return "digest"


def read_by_child(spec: JobSpec, tmp_path: Path) -> JobSpec:
    out = Folder(str(tmp_path / "out"))
    stage = Stage("train", spec, Store(str(tmp_path)), {}, out, SILENT, tmp_path / "log")
    return from_arguments(json.loads(json.dumps(stage.arguments())), SILENT).spec


@pytest.mark.parametrize(
    "sections",
    [
        {
            "train": {"controls": ["fine_tuning", "random_start"]},
            "report": {"gate": {"beat_fine_tuning": True}},
        },
        {
            "train": {
                "controls": ["fine_tuning", "offline_steps", "offline_cost"],
                "on_policy": {"rounds": 2, "prompts": 4},
            },
            "curate": {"judge": {"model": "judge"}, "filters": [{"name": "judged"}]},
            "report": {"gate": {"beat_fine_tuning": True}},
        },
        {
            "train": {"student": {"from_teacher": {"layers": 2}}},
            "evaluate": {"judge": {"model": "judge"}},
        },
        {
            "train": {
                "teacher": "live",
                "losses": LOSSES,
                "controls": ["fine_tuning", "without_loss_hidden_states"],
            },
            "report": {"gate": {"beat_fine_tuning": True}},
        },
    ],
)
def test_every_derived_job_is_read_again_as_it_is(sections, tmp_path):
    spec = written(**sections)
    derived = [recipe.spec for recipe in recipes(spec, AnyDigest()).values()]
    derived += [as_teacher(spec, who) for who in spec.consulted_models.values()]
    derived += [spec.control(name) for name in spec.controls if not name.startswith("offline")]
    assert len(derived) > 7
    for own in derived:
        assert read_by_child(own, tmp_path) == own


def test_a_loss_is_left_out_by_a_control_and_the_others_stay():
    spec = written(
        train={"teacher": "live", "losses": LOSSES, "controls": ["without_loss_hidden_states"]}
    )
    found = spec.control("without_loss_hidden_states")
    assert [loss.name for loss in found.losses] == ["forward_kl", "attention_relations"]
    assert found.train.teacher == "live" and found.controls == ()
    made = recipes(spec, AnyDigest())
    assert made["train-without_loss_hidden_states"].name != made["train"].name


@pytest.mark.parametrize(
    ("losses", "control"),
    [
        (LOSSES[:1], "without_loss_forward_kl"),
        (LOSSES[:1], "without_loss_hidden_states"),
        ([LOSSES[0], {"name": "jsd", "weight": 0.0}], "without_loss_jsd"),
    ],
)
def test_a_loss_that_is_alone_or_not_there_cannot_be_left_out(losses, control):
    with pytest.raises(SpecError, match=f"{control} is no control"):
        written(train={"losses": losses, "controls": [control]})
