"""Faults of the student's knobs that `retort validate` finds, before the teacher is paid."""

import pytest

from retort.errors import SpecError
from retort.jobs.preflight import check
from retort.spec import load
from retort.store import open_store
from tests.support.tiny import write_job


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"), engine="echo")


def checked(job, *overrides):
    spec, _ = load(job, list(overrides))
    return check(spec, open_store(str(job.parent / "store")))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.lora={target_modules: [no_such]}"], "'no_such' names no linear layer"),
        (["train.lora={target_modules: [q_projj]}"], "did you mean 'q_proj'"),
        (["train.lora={target_modules: [q_proj, mlp]}"], "'mlp' names no linear layer"),
        (["train.lora={target_modules: [embed_tokens]}"], "names no linear layer"),
        (["train.lora={quantize: nf4}", "train.runtime.device=cpu"], "needs a CUDA device"),
        (["train.early_stopping=2", "prepare.validation=null"], "there are no validation rows"),
        (
            ["train.schedule=constant", "train.min_learning_rate_ratio=0.1"],
            "train.schedule: constant has none",
        ),
        (["train.schedule=cosin"], "train.schedule"),
        (["train.max_length=100000"], "the student takes at most .* tokens"),
        (["evaluate.max_model_len=100000"], "evaluate.max_model_len: 100000; the student takes"),
        (["train.max_length=2"], "the shortest of the first .* train prompts"),
    ],
)
def test_a_wrong_target_schedule_or_length_is_refused_before_a_run(job, overrides, words):
    with pytest.raises(SpecError, match=words):
        checked(job, *overrides)


def test_right_targets_schedules_and_lengths_pass(job):
    lines = checked(
        job,
        "train.lora={rank: 4, target_modules: [q_proj, mlp.down_proj]}",
        "train.early_stopping=2",
        "train.schedule=constant",
        "train.max_length=64",
    )
    assert "train.lora: adapters of rank 4 on q_proj, mlp.down_proj" in lines
