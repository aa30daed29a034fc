"""A live teacher in memory teaches what its dense logits do; and whole train stages with one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from retort.errors import SpecError
from retort.events import Event, Reporter
from retort.jobs import preflight
from retort.records import Decision, Response, write_lines
from retort.stages.stage import Stage, read_examples
from retort.stages.train.batches import collate
from retort.stages.train.endpoint_teacher import is_remote
from retort.stages.train.loop import fit
from retort.stages.train.teacher import open_teacher
from retort.store import Folder
from tests.support.live import (
    ANSWERS,
    assert_alike,
    at,
    dense,
    folder,
    items_of,
    learned,
    plain_logits,
    serving,
    size_of,
    staged,
)
from tests.support.scoring import counting

__all__ = ["folder", "serving"]


@pytest.mark.parametrize("name", ["teacher", "padded"])
def test_in_memory_the_student_learns_what_dense_logits_teach_it_padding_sliced_off(folder, name):
    stage = staged(folder, folder / name)
    items, size = items_of(stage), size_of(folder)
    batch = collate(items, "cpu")
    teacher = open_teacher(stage, size, "cpu")
    target = teacher.targets(batch)
    assert target.teacher_hidden_NH is not None and target.teacher_logits_NV is None
    found = learned(folder, batch, target, teacher.head)
    logits_NV = plain_logits(folder / name, items)
    assert logits_NV.shape[1] == (size if name == "teacher" else 128)
    assert_alike(found, dense(folder, batch, logits_NV[:, :size]))


def test_a_signal_of_the_whole_vocabulary_teaches_what_the_teacher_in_memory_does(folder):
    stage = staged(folder, folder / "teacher")
    items, size = items_of(stage), size_of(folder)
    batch = collate(items, "cpu")
    teacher = open_teacher(stage, size, "cpu")
    found = learned(folder, batch, teacher.targets(batch), teacher.head)
    logprobs_NV = torch.log_softmax(plain_logits(folder / "teacher", items), dim=1)
    logprobs_NK, ids_NK = logprobs_NV.topk(size, dim=1)
    stored = replace(
        batch.target, ids_NK=ids_NK, logprobs_NK=logprobs_NK, tail_N=logprobs_NK[:, -1]
    )
    assert_alike(found, learned(folder, batch, stored))


def test_the_teacher_has_no_dropout_no_gradient_and_its_own_precision(folder, tmp_path):
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    (tmp_path / "teacher/config.json").write_text(json.dumps(config | {"attention_dropout": 0.9}))
    stage = staged(folder, tmp_path / "teacher")
    items = items_of(stage)
    batch = collate(items, "cpu")
    teacher = open_teacher(stage, size_of(folder), "cpu")
    target = teacher.targets(batch)
    assert not target.teacher_hidden_NH.requires_grad
    expected = plain_logits(folder / "teacher", items)
    with torch.autocast("cpu", torch.bfloat16):
        logits_NV = teacher.head.logits(teacher.targets(batch).teacher_hidden_NH)
    torch.testing.assert_close(logits_NV, expected, rtol=1e-5, atol=1e-5)
    learned(folder, batch, target, teacher.head)
    assert [p for p in teacher.model.parameters() if p.requires_grad or p.grad is not None] == []
    teacher.close()


def test_a_teacher_whose_head_is_not_all_gives_dense_logits(folder, monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    def doubled(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        found.logits = 2 * found.logits
        return found

    stage = staged(folder, folder / "padded")
    items, size = items_of(stage), size_of(folder)
    expected = 2 * plain_logits(folder / "padded", items)[:, :size]
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", doubled)
    teacher = open_teacher(stage, size, "cpu")
    target = teacher.targets(collate(items, "cpu"))
    assert teacher.head is None and target.teacher_hidden_NH is None
    torch.testing.assert_close(target.teacher_logits_NV, expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_of_another_template_or_too_large_is_refused_with_the_reason(
    folder, tmp_path, monkeypatch
):
    other = shutil.copytree(folder / "student", tmp_path / "other")
    stage = staged(folder, folder / "teacher", train={"student": str(other)})
    with (other / "chat_template.jinja").open("a") as stream:
        stream.write(" ")
    with pytest.raises(SpecError, match="different chat templates"):
        open_teacher(stage, size_of(folder), "cpu")
    stage = staged(folder, folder / "teacher")
    monkeypatch.setattr("retort.stages.train.teacher._free_bytes", lambda device: 1000)
    with pytest.raises(SpecError, match=r"0\.0 GB free; set generate\.dtype: bfloat16"):
        open_teacher(stage, size_of(folder), "cpu")


def test_a_teacher_in_memory_speaks_of_packed_items_in_their_own_order(folder):
    stage = staged(folder, folder / "padded", train={"runtime": {"packing": True}})
    items, size = items_of(stage), size_of(folder)
    batch = collate(items, "cpu", packed=True)
    assert batch.position_ids_BT is not None and batch.items != items
    expected = plain_logits(folder / "padded", batch.items)[:, :size]
    teacher = open_teacher(stage, size, "cpu")
    assert teacher.packs
    num_rows = []
    layer = teacher.model.get_input_embeddings()
    layer.register_forward_hook(lambda module, inputs, _: num_rows.append(len(inputs[0])))
    for packs in (True, False):
        teacher.packs = packs
        logits_NV = teacher.head.logits(teacher.targets(batch).teacher_hidden_NH)
        torch.testing.assert_close(logits_NV, expected, rtol=1e-4, atol=1e-4)
    assert num_rows == [len(batch.input_ids_BT), len(items)]


@pytest.mark.parametrize(
    ("engine", "endpoint", "message"),
    [
        ("echo", None, "echo only repeats"),
        ("anthropic", "http://127.0.0.1:9/v1", "such an endpoint does not score ids"),
        ("openai", None, r"https://api\.openai\.com/v1 does not score ids"),
        ("openai", "https://api.openai.com/v1/", "generate.engine: openai with generate.endpoint"),
    ],
)
def test_an_engine_that_cannot_score_ids_is_refused_before_the_run(
    folder, engine, endpoint, message, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    stage = staged(folder, folder / "teacher", engine, endpoint=endpoint)
    with pytest.raises(SpecError, match=message):
        is_remote(stage.spec)
    with pytest.raises(SpecError, match=message):
        open_teacher(stage, size_of(folder), "cpu")
    with pytest.raises(SpecError, match=message):
        preflight.check(stage.spec, stage.store)


def answered(stage: Stage, out: Path) -> Stage:
    """The stage, about to run: every example has an answer, and every answer was kept."""
    examples = read_examples(stage.input("prepare"), "train", "validation")
    given = [
        Response(e.id, ANSWERS[n % 4], [], "stop", 0, 0, example_id=e.id)
        for n, e in enumerate(examples)
    ]
    files = {
        "generate": {"responses-00000.jsonl": given},
        "curate": {"decisions.jsonl": [Decision(response.id, kept=True) for response in given]},
    }
    inputs = dict(stage.inputs)
    for name, written in files.items():
        folder = Folder(str(out / name))
        for file, records in written.items():
            folder.write(file, write_lines(records))
        inputs[name] = folder.commit({"facts": {}})
    return replace(stage, inputs=inputs, out=Folder(str(out / "train")))


def curve_of(stage: Stage) -> list[dict[str, float]]:
    """What a run of the train stage measures, step by step."""
    said: list[Event] = []
    fit(stage.arguments(), Reporter(said.append))
    return [event["values"] for event in said if event["kind"] == "metrics"]


def test_a_train_stage_learns_live_and_its_later_passes_ask_nothing(folder, serving, tmp_path):
    model, url = serving
    knobs = {"num_epochs": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup_ratio": 0.0}
    knobs |= {"runtime": {"num_threads": 1}, "losses": [{"name": "forward_kl"}]}
    with counting(url) as (seen, address):
        stage = answered(at(folder, address, train=knobs), tmp_path / "endpoint")
        checked = "the teacher is asked while the student learns, in its endpoint, 16 log"
        assert checked in "".join(preflight.check(stage.spec, stage.store))
        there = curve_of(stage)
    num_items = len(read_examples(stage.input("prepare"), "train"))
    assert num_items == 6
    # One more, to see whether it can be asked at all.
    assert [path for path, _ in seen].count("/v1/completions") == num_items + 1
    here = curve_of(answered(staged(folder, model, train=knobs), tmp_path / "memory"))
    for curve in (there, here):
        assert curve[-1]["forward_kl"] < 0.9 * curve[0]["forward_kl"]
        assert 0 <= curve[-1]["agreement"] <= 1
    # What 16 ids and a tail tell apart is never more than what all ids do; at the end of the first
    # pass, for a slow machine records other steps, too.
    passed = [[r for r in curve if "forward_kl_gradient_norm" in r] for curve in (there, here)]
    far, near = (curve[0]["forward_kl"] for curve in passed)
    assert 0.5 * near < far < near
    assert 0 < there[0]["teacher_top_k_mass"] < 1 and "teacher_top_k_mass" not in here[0]
