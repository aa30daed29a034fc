"""Students that were cut from the zoo's teachers answer in vLLM and as GGUF as they do plainly."""

import importlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from retort import processes
from retort.data.encoding import load_tokenizer
from retort.events import SILENT
from retort.stages.cut import layers, width
from retort.stages.cut.shape import plan_of
from retort.stages.cut.writing import save
from retort.store import model_folder
from tests.stages.test_zoo import answer_each, difference
from tests.support.cutting import job_of
from tests.support.zoo import save_family
from tests.unit.test_cut import batch_of, ids_of

NARROW = {"intermediate_size": 192}
# The layers of the zoo's models that stay, and how wide they are then.
CUTS = {
    "deepseek-v3": ([0, 2], {}),
    "gemma-3": ([1, 4, 5], {**NARROW, "hidden_size": 96, "num_attention_heads": 1}),
    "gpt-2": ([1], {}),
    "llama-3.1": ([1], {**NARROW, "hidden_size": 384, "num_attention_heads": 2}),
    "phi-4-mini": ([0], {**NARROW, "hidden_size": 256, "num_attention_heads": 2}),
    "qwen2.5": ([0], {**NARROW, "hidden_size": 128, "num_attention_heads": 1}),
    "qwen3": ([1], {**NARROW, "hidden_size": 96, "num_attention_heads": 1}),
}


def cut(family: str, folder: Path) -> Path:
    """Writes what stays of a family's model, with its tokenizer."""
    kept, wide = CUTS[family]
    teacher = save_family(family, folder / "teachers")
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    plan = plan_of(job_of(teacher, {"layers": len(kept), "width": wide}))
    measured = layers.Teacher(model, plan.layers_at, [batch_of(model, ids_of())])
    axes = width.indices(measured, kept, plan.teacher, plan.student)
    save(folder / family, model, plan, kept, axes)
    model_folder.copy_tokenizer(teacher, folder / family)
    return folder / family


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cut")


@pytest.fixture(scope="module")
def answered(folder):
    """What vLLM answered with each."""
    models = [(str(cut(family, folder)), 256) for family in CUTS]
    runtime = {"timeout_seconds": 300.0, "num_threads": 1}
    answers = processes.run(answer_each, {"models": models}, SILENT, folder / "log", runtime)
    return dict(zip(CUTS, answers, strict=True))


@pytest.mark.parametrize("family", CUTS)
def test_vllm_answers_with_a_cut_student_as_a_plain_forward_does(answered, folder, family):
    model = AutoModelForCausalLM.from_pretrained(folder / family, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(folder / family))
    assert difference(model, tokenizer, answered[family]) < 1e-3


@pytest.mark.parametrize("family", ["gemma-3", "llama-3.1", "qwen2.5"])
def test_the_file_of_a_cut_student_answers_as_the_student_does(answered, folder, family, tmp_path):
    gguf = importlib.import_module("tests.stages.test_export_gguf")  # skips without its runtime
    gguf.exported(folder / family, "f32", tmp_path)
    found = gguf.answered(gguf.opened("llamacpp", tmp_path))
    plain = gguf.answered(gguf.opened("transformers", folder / family))
    assert {key: a.raw for key, a in found.items()} == {key: a.raw for key, a in plain.items()}
