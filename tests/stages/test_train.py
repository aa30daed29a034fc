"""Training: a killed run ends where an undisturbed one does, and nothing trains in vain."""

import dataclasses
import filecmp
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retort.errors import SpecError, StageError
from retort.events import SILENT, Event, Reporter
from retort.jobs.run import JobRun
from retort.plugins import check_options
from retort.spec import build, load
from retort.stages.stage import Stage
from retort.stages.train.alignment import within
from retort.stages.train.loop import fit
from retort.store import Artifact, Folder, model_folder, open_store
from retort.store.signals import captured
from tests.support.tiny import save_model, write_job


def no_gradient(logits, target, temperature):
    """A loss that moves nothing, named in a spec from outside."""
    return logits.sum() * 0


class CutError(Exception):
    """The run was cut off."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Stage:
    """A train stage whose inputs are made, by the transformers engine."""
    folder = tmp_path_factory.mktemp("train")
    spec = load(write_job(folder, engine="transformers"))[0]
    job = JobRun(spec, open_store(str(folder / "store")), [], lambda stage, event: None)
    inputs: dict[str, Artifact] = {}
    for stage, needed in [
        ("prepare", []),
        ("generate", ["prepare"]),
        ("curate", ["prepare", "generate"]),
    ]:
        inputs[stage] = job.make(stage, {name: inputs[name] for name in needed})
    return Stage("train", spec, job.store, inputs, Folder(str(folder)), SILENT, job.log)


def train(ready: Stage, out: Path, report: Reporter = SILENT, **knobs) -> dict[str, torch.Tensor]:
    raw = ready.spec.model_dump(mode="json")
    raw["train"] |= knobs
    stage = dataclasses.replace(ready, spec=build(raw), out=Folder(str(out)))
    fit(stage.arguments(), report)
    return load_file(out / "student/model.safetensors")


def same(one: dict, other: dict) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_was_cut_off_ends_bit_for_bit_where_an_undisturbed_one_does(ready, tmp_path):
    runtime = {"checkpoint_seconds": 0}

    def cut(event: Event) -> None:
        if event["kind"] == "progress":
            raise CutError

    with pytest.raises(CutError):
        train(ready, tmp_path / "cut", Reporter(cut), runtime=runtime)
    standing = [name for name in Folder(str(tmp_path / "cut")).files() if "step-" in name]
    assert standing == ["scratch/step-000000005.safetensors"]
    said = []
    resumed = train(ready, tmp_path / "cut", Reporter(said.append), runtime=runtime)
    assert {"kind": "note", "text": "continuing after step 5 of 12"} in said
    whole = train(ready, tmp_path / "whole")
    assert same(resumed, whole)


@pytest.mark.parametrize("share", [0.4, 0.5])  # within the first pass of two, and at its end
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_training_that_stopped_early_goes_on_to_the_student_of_a_whole_one(
    ready, tmp_path, share, lora
):
    knobs = {"learning_rate": 1e-2, "lora": lora}
    early = train(ready, tmp_path / "early", **knobs, stop_after=share)
    curve = json.loads((tmp_path / "early/history.json").read_text())
    assert curve[-1]["step"] == math.ceil(12 * share) and curve[-1]["validation_loss"] > 0
    shutil.copytree(tmp_path / "early/paused", tmp_path / "later")
    later = train(ready, tmp_path / "later", **knobs)
    whole = train(ready, tmp_path / "whole", **knobs)
    assert same(later, whole) and not same(early, whole)
    passes = [
        [
            each["step"]
            for each in json.loads((tmp_path / f"{name}/history.json").read_text())
            if "validation_loss" in each
        ]
        for name in ("later", "whole")
    ]
    assert passes == [[6, 12], [6, 12]]


def test_a_student_that_cools_down_is_compared_and_a_longer_training_goes_on_from_before(
    ready, tmp_path
):
    knobs = {"learning_rate": 1e-2, "stop_after": 0.4}
    early = train(ready, tmp_path / "early", **knobs)
    cooled = train(ready, tmp_path / "cooled", **knobs, cool_down=0.5)
    assert not same(early, cooled)
    curve = json.loads((tmp_path / "cooled/history.json").read_text())
    rates = {each["step"]: each["learning_rate"] for each in curve}
    # 5 steps of 12, and 3 more: the last one with a third of the step size that the sixth has.
    sixth = 1e-2 * 0.5 * (1 + math.cos(math.pi * 4 / 11))
    assert curve[-1]["step"] == 8 and curve[-1]["validation_loss"] > 0
    assert rates[8] == pytest.approx(sixth / 3)
    shutil.copytree(tmp_path / "cooled/paused", tmp_path / "later")
    later = train(ready, tmp_path / "later", learning_rate=1e-2)
    assert same(later, train(ready, tmp_path / "whole", learning_rate=1e-2))
    steps = [each["step"] for each in json.loads((tmp_path / "later/history.json").read_text())]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_the_seed_decides_the_order(ready, tmp_path):
    assert not same(train(ready, tmp_path / "a", seed=1), train(ready, tmp_path / "b", seed=2))


def test_splitting_a_step_into_micro_batches_changes_nothing(ready, tmp_path):
    whole = train(ready, tmp_path / "whole", weight_decay=0.1)
    split = train(ready, tmp_path / "split", weight_decay=0.1, runtime={"micro_batch_tokens": 1})
    for name, tensor in whole.items():
        assert torch.allclose(tensor, split[name], atol=2e-5), name


def test_a_loss_that_moves_nothing_is_refused_before_training(ready, tmp_path):
    losses = [{"name": "cross_entropy"}, {"name": "tests.stages.test_train:no_gradient"}]
    with pytest.raises(StageError, match="no gradient"):
        train(ready, tmp_path, losses=losses)


def test_training_lowers_the_loss_and_logs_each_term(ready, tmp_path):
    said: list[Event] = []
    train(ready, tmp_path, Reporter(said.append), num_epochs=8, learning_rate=1e-2)
    curve = [event["values"] for event in said if event["kind"] == "metrics"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    for name in ("cross_entropy", "forward_kl", "gradient_norm", "learning_rate"):
        assert name in curve[-1]
    assert 0 < curve[-1]["teacher_top_k_mass"] <= 1
    assert curve[-1]["validation_loss"] > 0
    weighted = 0.2 * curve[-1]["cross_entropy"] + 0.8 * curve[-1]["forward_kl"]
    assert curve[-1]["loss"] == pytest.approx(weighted)


def test_the_students_tokenizer_and_template_are_the_bases_own(ready, tmp_path):
    train(ready, tmp_path)
    base, student = Path(ready.spec.train.student), tmp_path / "student"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert filecmp.cmp(base / name, student / name, shallow=False)
    assert model_folder.token_map(base) == model_folder.token_map(student)
    assert (tmp_path / "mask_audit.txt").read_text().count("example ") == 4


def test_ids_past_the_tokenizers_are_sliced_off_and_never_trained(ready, tmp_path):
    padded = save_model(tmp_path / "padded", hidden=32, layers=1, seed=2, vocabulary=128)
    size = model_folder.token_map(padded)[1]
    assert size < 128
    before = load_file(padded / "model.safetensors")["model.embed_tokens.weight"]
    after = train(ready, tmp_path / "out", student=str(padded))["model.embed_tokens.weight"]
    assert torch.equal(before[size:], after[size:])
    assert not torch.equal(before[:size], after[:size])


def test_bf16_training_stays_near_fp32(ready, tmp_path):
    exact = train(ready, tmp_path / "a")
    rounded = train(ready, tmp_path / "b", dtype="bfloat16")
    for name, tensor in exact.items():
        assert torch.allclose(tensor, rounded[name], atol=0.02), name


def test_the_student_is_saved_in_the_precision_asked_for(ready, tmp_path):
    half = train(ready, tmp_path, save_dtype="bfloat16")
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "term",
    [
        {"name": "reverse_kl", "temperature": 2},
        {"name": "jsd", "beta": 0.3},
        {"name": "skewed_forward_kl", "alpha": 0.2},
        {"name": "skewed_reverse_kl"},
        {"name": "adaptive_kl", "mu": 0.7},
        {"name": "total_variation"},
    ],
    ids=lambda term: term["name"],
)
def test_every_loss_of_the_spec_trains_with_its_options_and_logs_agreement(ready, tmp_path, term):
    said: list[Event] = []
    knobs = {"losses": [{**term, "weight": 0.5}], "num_epochs": 6, "learning_rate": 1e-2}
    train(ready, tmp_path, Reporter(said.append), **knobs)
    curve = [event["values"] for event in said if event["kind"] == "metrics"]
    assert curve[-1]["loss"] == pytest.approx(0.5 * curve[-1][term["name"]])
    assert curve[-1][term["name"]] < curve[0][term["name"]]
    assert 0 <= curve[-1]["agreement"] <= 1
    assert any("losses run chunked" in event.get("text", "") for event in said)


def test_an_option_that_a_loss_does_not_have_is_refused_with_what_it_has():
    with pytest.raises(SpecError, match=r"unknown option 'alhpa' \(did you mean 'alpha'\?\)"):
        check_options("loss", "skewed_forward_kl", "retort.losses", {"alhpa": 0.1})
    with pytest.raises(SpecError, match=r"'wieght' \(did you mean 'weight'\?\)"):
        check_options("loss", "jsd", "retort.losses", {"wieght": 1}, ["weight"])
    with pytest.raises(SpecError, match=r"no_gradient: unknown option 'mu'; it has: none"):
        check_options("loss", "tests.stages.test_train:no_gradient", "retort.losses", {"mu": 0.1})


def test_a_stored_signal_counts_as_if_padding_ids_had_been_cut_off_before_the_softmax():
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    logits[:, 10:] += 3.0  # of 12 ids the tokenizer knows 10
    logprobs, ids = torch.log_softmax(logits, 1).topk(8, dim=1)
    targets = logits[:, :10].argmax(1)
    chosen = torch.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]
    whole = captured(*(t.numpy() for t in (ids.int(), logprobs, targets.int(), chosen)))
    found = within(10, whole)
    exact = torch.log_softmax(logits[:, :10], 1)
    assert found.ids_TK.max() < 10
    for t in range(5):
        assert len(set(found.ids_TK[t])) == 8
        for k in range(8):
            if ids[t, k] < 10:
                own = float(exact[t, found.ids_TK[t, k]])
                assert found.logprobs_TK[t, k] == pytest.approx(own, abs=1e-5)
        total = np.exp(found.logprobs_TK[t]).sum() + np.exp(found.tail_T[t])
        assert total == pytest.approx(1.0, abs=1e-5)
        stand_ins = found.ids_TK[t][(ids[t] >= 10).numpy()]
        assert targets[t].item() not in stand_ins
    assert found.target_logprobs_T == pytest.approx(exact.max(1).values.numpy(), abs=1e-5)
    assert within(12, whole) is whole
