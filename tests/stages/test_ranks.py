"""Several processes train one student: what they learn is what one learns, whoever holds what."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from retort.errors import SpecError, StageError
from retort.events import SILENT, Event, Reporter
from retort.spec import Train, build
from retort.stages.stage import Stage
from retort.stages.train import train as train_stage
from retort.stages.train.layout import Layout, layout_of
from retort.store import Folder
from tests.stages.test_train import ready

__all__ = ["ready"]

FSDP = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True},
    "machine_rank": 0,
    "main_training_function": "main",
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "use_cpu": False,
}
# 24 items in steps of 7: the last step of a pass has 3, and its micro-batches hold one or two.
KNOBS = {"batch_size": 7, "num_epochs": 2, "max_grad_norm": 0.5}
RUNTIME = {"device": "cpu", "num_threads": 1, "micro_batch_tokens": 96, "checkpoint_seconds": 1e9}


def config(folder: Path, **changed) -> str:
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(FSDP | changed))
    return str(path)


def run(
    ready: Stage,
    out: Path,
    runtime: dict,
    report: Reporter = SILENT,
    cluster: str | None = None,
    **knobs,
) -> list:
    """Trains in processes of their own, here or on a Ray cluster; returns the records of the ends
    of the passes."""
    raw = ready.spec.model_dump(mode="json")
    raw["train"] |= {**KNOBS, **knobs, "runtime": {**RUNTIME, **runtime}}
    raw["cluster"] = {"ray": cluster}
    log = out.parent / f"{out.name}.log"
    stage = dataclasses.replace(
        ready, spec=build(raw), out=Folder(str(out)), log=log, report=report
    )
    facts = train_stage(stage)
    assert facts["num_processes"] == layout_of(stage.spec.train).num_processes
    curve = Folder(str(out)).read_json("history.json")
    return [record for record in curve if "validation_loss" in record]


def notes(said: list[Event]) -> list[str]:
    return [event["text"] for event in said if event["kind"] == "note"]


@pytest.fixture(scope="module")
def alone(ready, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, run(ready, out, {})


def assert_same_run(one: tuple[Path, list], other: tuple[Path, list]) -> None:
    untimed = ("tokens_per_second", "peak_memory_bytes")
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert set(mine) == set(theirs)
        for name in set(mine) - set(untimed):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), name
    mine, theirs = (load_file(path / "student/model.safetensors") for path, _ in (one, other))
    assert set(mine) == set(theirs)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_two_processes_learn_what_one_does(ready, alone, tmp_path):
    said: list[Event] = []
    records = run(ready, tmp_path / "two", {"num_processes": 2}, Reporter(said.append))
    assert_same_run(alone, (tmp_path / "two", records))
    assert "training on cpu, 2 processes, the student replicated by DDP, 1 threads" in notes(said)


def test_a_student_sharded_by_fsdp2_learns_what_a_whole_one_does(ready, alone, tmp_path):
    runtime = {"accelerate_config": config(tmp_path)}
    said: list[Event] = []
    records = run(ready, tmp_path / "cut", runtime, Reporter(said.append))
    assert_same_run(alone, (tmp_path / "cut", records))
    assert any("2 processes, the student sharded by FSDP2" in note for note in notes(said))


def test_an_interrupt_of_two_processes_is_continued_by_one(ready, alone, tmp_path):
    """The stage's process gets SIGTERM in mid-run, as from an orchestrator that ends it."""
    runtime = {**RUNTIME, "accelerate_config": config(tmp_path), "checkpoint_seconds": 0}
    raw = ready.spec.model_dump(mode="json")
    raw["train"] |= {**KNOBS, "num_epochs": 2, "runtime": runtime}
    stage = dataclasses.replace(ready, spec=build(raw), out=Folder(str(tmp_path / "out")))
    program = (
        "import sys, json; from retort.stages.stage import from_arguments; "
        "from retort.events import Reporter; from retort.stages.train import train; "
        "say = Reporter(lambda event: print(json.dumps(event), flush=True)); "
        "train(from_arguments(json.loads(sys.argv[1]), say))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(stage.arguments())],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        event: Event = json.loads(line)
        if event["kind"] == "progress" and event["done"] >= 4:
            process.send_signal(signal.SIGKILL)  # not asked: its children notice
            break
    process.wait()
    process.stdout.close()
    out = Folder(str(tmp_path / "out"))
    assert [name for name in out.files() if "step-" in name]
    said: list[Event] = []
    records = run(ready, tmp_path / "out", {}, Reporter(said.append))
    assert any("continuing after step" in note for note in notes(said))
    assert records[-1]["validation_loss"] == pytest.approx(
        alone[1][-1]["validation_loss"], rel=2e-4
    )


def test_what_one_of_the_processes_says_is_wrong_is_said(ready, tmp_path):
    losses = [{"name": "tests.stages.test_train:no_gradient"}]
    with pytest.raises(StageError, match="has no gradient"):
        run(ready, tmp_path / "out", {"num_processes": 2}, losses=losses)


def test_a_file_of_accelerate_config_says_how_the_student_is_sharded(tmp_path):
    def layout(**changed) -> Layout:
        knobs = {"accelerate_config": config(tmp_path, **changed)}
        return layout_of(Train(student="s", runtime=knobs))

    assert layout() == Layout(2, shards=True)
    more = {"fsdp_version": 2, "fsdp_reshard_after_forward": False}
    assert layout(fsdp_config=more) == Layout(2, shards=True, reshards=False)
    assert layout(distributed_type="MULTI_GPU", fsdp_config={}) == Layout(2)
    assert layout(num_processes=1) == Layout(1)
    machines = layout(num_machines=2, num_processes=8)
    assert (machines, machines.num_processes_here) == (Layout(8, shards=True, num_nodes=2), 4)
    assert layout_of(Train(student="s", runtime={"num_processes": 3})) == Layout(3)
    spread = {"num_processes": 3, "num_nodes": 2}
    assert layout_of(Train(student="s", runtime=spread)) == Layout(6, num_nodes=2)
    for changed, message in [
        ({"fsdp_config": {"fsdp_version": 1}}, "set fsdp_version: 2"),
        (
            {"fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}},
            "offload_params: false",
        ),
        ({"distributed_type": "DEEPSPEED"}, "MULTI_GPU, MULTI_CPU and FSDP are known"),
        ({"num_machines": 2, "num_processes": 3}, "each gets equally many"),
        ({"mixed_precision": "bf16"}, "train.dtype is float32"),
        ({"no_such_key": 1}, "is no file of `accelerate config`"),
    ]:
        with pytest.raises(SpecError, match=message):
            layout(**changed)
    knobs = {"accelerate_config": config(tmp_path), "num_nodes": 2}
    with pytest.raises(SpecError, match=r"says num_machines: 1, but train.runtime.num_nodes is 2"):
        layout_of(Train(student="s", runtime=knobs))
    with pytest.raises(SpecError, match="no file"):
        layout_of(Train(student="s", runtime={"accelerate_config": str(tmp_path / "none")}))
