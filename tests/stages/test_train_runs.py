"""How a run goes: its schedule, when it stops, which pass is kept, and what an interrupt leaves."""

import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from retort.events import Event, Reporter
from retort.spec import Train
from retort.stages.train.curve import Curve
from retort.stages.train.optimizer import lr_factor
from retort.store import Folder
from tests.stages.test_train import ready, same, train

__all__ = ["ready"]


def test_each_schedule_warms_up_and_decays_as_its_equation_says():
    def shares(name: str) -> list[float]:
        knobs = Train(student="s", warmup_ratio=0.1, schedule=name, min_learning_rate_ratio=0.2)
        return [lr_factor(step, 100, knobs) for step in range(101)]

    for name in ("cosine", "linear", "constant"):
        assert shares(name)[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert shares("constant")[10:] == [1.0] * 91
    linear = [1 - 0.8 * (step - 10) / 90 for step in range(10, 101)]
    assert shares("linear")[10:] == pytest.approx(linear)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=90, eta_min=0.2)
    for found in shares("cosine")[10:]:
        assert found == pytest.approx(cosine.get_last_lr()[0])
        reference.step()
        cosine.step()


def test_the_best_pass_is_kept_and_a_run_that_gets_worse_stops_early(ready, tmp_path):
    # A huge learning rate at constant height: the validation loss soon only rises.
    wild = {"learning_rate": 0.3, "schedule": "constant", "num_epochs": 8, "warmup_ratio": 0.0}
    said: list[Event] = []
    kept = train(ready, tmp_path / "best", Reporter(said.append), **wild, early_stopping=2)
    curve = Folder(str(tmp_path / "best")).read_json("history.json")
    losses = [r["validation_loss"] for r in curve if "validation_loss" in r]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 8
    notes = [event["text"] for event in said if event["kind"] == "note"]
    assert any("stopped early: 2 passes" in note for note in notes)
    assert any(note.startswith("kept the student after step") for note in notes)
    first, end = (f"{curve[at]['loss']:.4g}" for at in (0, -1))
    assert (
        f"{curve[-1]['step']} steps: loss {first} at first, {end} at the end; lowest validation "
        f"loss {min(losses):.4g}"
    ) in notes
    # A run of just so many passes at that constant rate ends with the same weights.
    short = {**wild, "num_epochs": best + 1}
    assert same(kept, train(ready, tmp_path / "short", **short))
    last = train(ready, tmp_path / "last", **{**wild, "num_epochs": best + 3}, keep="last")
    assert not same(kept, last)


def test_an_interrupt_saves_the_step_under_way_and_the_next_run_ends_as_if_there_was_none(
    ready, tmp_path
):
    def interrupt(event: Event) -> None:
        if event["kind"] == "progress" and event["done"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(ready, tmp_path / "cut", Reporter(interrupt))
    assert signal.getsignal(signal.SIGTERM) is before
    out = Folder(str(tmp_path / "cut"))
    assert [name for name in out.files() if "step-" in name] == [
        "scratch/step-000000006.safetensors"
    ]
    resumed = train(ready, tmp_path / "cut")
    assert same(resumed, train(ready, tmp_path / "whole"))
    curves = [Folder(str(tmp_path / name)).read_json("history.json") for name in ("cut", "whole")]
    assert [r["validation_loss"] for r in curves[0] if "validation_loss" in r] == [
        r["validation_loss"] for r in curves[1] if "validation_loss" in r
    ]


def test_divergence_and_overfitting_are_said_and_a_good_run_is_not(tmp_path):
    def warned(train_losses: list[float], validation: list[float]) -> str:
        curve = Curve(Folder(str(tmp_path)), 0)
        for step, loss in enumerate(train_losses, start=1):
            curve.add(step, {"loss": loss})
        for step, loss in enumerate(validation, start=1):
            curve.add(step, {"validation_loss": loss})
        return " ".join(curve.warnings())

    falling = [math.exp(-n / 5) for n in range(20)]
    assert warned(falling, [2.0, 1.0, 1.05]) == ""
    assert warned([], []) == ""
    assert "overfitting" in warned(falling, [2.0, 1.0, 1.2])
    assert "after step 2" in warned(falling, [2.0, 1.0, 1.2])
    assert "diverged" in warned(falling[::-1], [])


def test_the_curve_forgets_what_comes_after_the_step_it_goes_on_from(tmp_path):
    curve = Curve(Folder(str(tmp_path)), 0)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5), (4, 2.0)):
        curve.add(step, {"validation_loss": loss})
    assert (curve.best_step, curve.num_stale) == (2, 2)
    curve.write()
    again = Curve(Folder(str(tmp_path)), 3)
    assert [record["step"] for record in again.records] == [1, 2, 3]
    assert (again.best_step, again.num_stale) == (2, 1)


def test_adapters_are_trained_in_place_of_the_weights_and_a_cut_run_ends_the_same(ready, tmp_path):
    knobs = {"lora": {"rank": 4, "dropout": 0.1}, "learning_rate": 1e-2, "num_epochs": 4}
    knobs["gradient_checkpointing"] = True

    def interrupt(event: Event) -> None:
        if event["kind"] == "progress" and event["done"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(ready, tmp_path / "cut", Reporter(interrupt), **knobs)
    said: list[Event] = []
    resumed = train(ready, tmp_path / "cut", **knobs)
    assert same(resumed, train(ready, tmp_path / "whole", Reporter(said.append), **knobs))
    adapters = load_file(tmp_path / "whole/adapter/adapter_model.safetensors")
    assert adapters and all(name.endswith("weight") for name in adapters)
    configs = [
        (tmp_path / name / "adapter/adapter_config.json").read_text() for name in ("cut", "whole")
    ]
    assert configs[0] == configs[1]
    base = load_file(f"{ready.spec.train.student}/model.safetensors")
    changed = {name for name, tensor in resumed.items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if "_proj" in name}
    losses = [e["values"]["loss"] for e in said if e["kind"] == "metrics"]
    assert losses[-1] < losses[0]
