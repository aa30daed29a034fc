"""Every family that people distil learns through the real train stage, whole and by adapters."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from retort.events import Event, Reporter
from retort.spec import build
from retort.stages.stage import Stage
from retort.stages.train import loop
from retort.store import Folder
from tests.support.training import job, made
from tests.support.zoo import FAMILIES, save_family

IDS = torch.arange(5, 53).reshape(4, 12)
TRAIN = {
    "losses": [{"name": "cross_entropy", "weight": 0.2}, {"name": "forward_kl", "weight": 0.8}],
    "num_epochs": 4,
    "learning_rate": 2e-3,
    "keep": "last",
    "save_dtype": "float32",
}


@pytest.fixture(scope="module", params=FAMILIES)
def ready(request, tmp_path_factory) -> Stage:
    """A train stage with a teacher and a student of the family, of different weights."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher = save_family(request.param, folder / "teacher", seed=1)
    return made(job(folder, teacher, save_family(request.param, folder), **TRAIN), folder)


def logits_of(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()


def trained(stage: Stage, out: Path, monkeypatch, **knobs) -> tuple[list[dict], torch.Tensor]:
    """The curve of a training, and the logits of the model as it stood at its end."""
    seen: list[torch.Tensor] = []
    said: list[Event] = []
    save = loop.save_student

    def watched(stage, model, *more) -> None:
        seen.append(logits_of(model))
        save(stage, model, *more)

    raw = stage.spec.model_dump(mode="json")
    raw["train"] |= knobs
    stage = dataclasses.replace(stage, spec=build(raw), out=Folder(str(out)))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_student", watched)
        loop.fit(stage.arguments(), Reporter(said.append))
    assert any("losses run chunked" in event.get("text", "") for event in said)
    return [event["values"] for event in said if event["kind"] == "metrics"], seen[0]


def losses_of_passes(curve: list[dict]) -> list[float]:
    """The losses at the end of each pass; a slow step before it may have a record of its own."""
    return [record["loss"] for record in curve if "validation_loss" in record]


def assert_learned(curve: list[dict]) -> None:
    assert curve[-1]["forward_kl"] > 0
    for name in ("loss", "validation_loss"):
        assert curve[-1][name] < 0.95 * curve[0][name], name


def assert_saved(out: Path, logits: torch.Tensor, most: float) -> None:
    student = AutoModelForCausalLM.from_pretrained(out / "student", dtype=torch.float32)
    assert (logits_of(student) - logits).abs().max() <= most * logits.abs().max()


def test_a_family_learns_and_its_saved_student_is_the_one_that_learned(
    ready, tmp_path, monkeypatch
):
    curve, logits = trained(ready, tmp_path / "a", monkeypatch)
    assert_learned(curve)
    assert_saved(tmp_path / "a", logits, 0)
    again, same = trained(ready, tmp_path / "b", monkeypatch, gradient_checkpointing=True)
    assert losses_of_passes(again) == losses_of_passes(curve)
    assert torch.equal(same, logits)


def test_a_family_learns_by_adapters_alone(ready, tmp_path, monkeypatch):
    knobs = {"lora": {"rank": 4}, "learning_rate": 1e-2}
    curve, logits = trained(ready, tmp_path, monkeypatch, **knobs)
    assert_learned(curve)
    # Merged weights round otherwise, which a router of experts can notice.
    assert_saved(tmp_path, logits, 1e-4)
    before = load_file(f"{ready.spec.train.student}/model.safetensors")
    after = load_file(tmp_path / "student/model.safetensors")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "norm" in name or "embed" in name} <= kept
    assert kept < set(before)
