"""compressed-tensors exports: vLLM answers with the very weights that were chosen for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from retort import processes
from retort.data.encoding import load_tokenizer, render
from retort.errors import SpecError
from retort.events import SILENT
from retort.stages.export.formats import Student, compressed_tensors, find_format
from tests.support import child_functions, zoo
from tests.support.tiny import save_model

CHATS = {"sum": "17 + 25 = ?", "hens": "12 hens, 5 more", "hi": "Hi"}
FAMILIES = ("gemma-3", "llama-3.1", "mistral", "phi-3-mini-4k", "qwen3")


def exported(student: Path, quantization: str, importance: dict | None = None) -> tuple[Path, dict]:
    out = student.parent / f"{student.name}-{quantization}-{len(importance or {})}"
    out.mkdir()
    compressed_tensors.check(student, quantization)
    return out, compressed_tensors.write(Student(student, importance or {}), quantization, out)


def weights(folder: Path, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The weights of the linear layers but the head's, as transformers decompresses them."""
    knobs = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    is_export = "quantization_config" in json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, **(knobs if is_export else {})
    )
    named = model.named_modules()
    linear = {n: m.weight.detach().float() for n, m in named if isinstance(m, torch.nn.Linear)}
    return {name: weight for name, weight in linear.items() if name != "lm_head"}


def made_up(student: Path, seed: int = 5) -> dict[str, np.ndarray]:
    """An importance of each input channel, over four orders of magnitude."""
    chosen = np.random.default_rng(seed)
    return {
        name: (10.0 ** chosen.uniform(-2, 2, weight.shape[1])).astype(np.float32)
        for name, weight in weights(student).items()
    }


def errors(student: Path, out: Path, importance: dict[str, np.ndarray]) -> list[float]:
    """The relative errors of the layers' outputs, by the decompressed weights."""
    found = []
    whole, quantized = weights(student), weights(out)
    for name, h_C in importance.items():
        difference_NC = (quantized[name] - whole[name]).numpy()
        squared = (h_C * whole[name].numpy() ** 2).sum()
        found.append(float((h_C * difference_NC**2).sum() / squared))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stored_weights_have_the_error_that_the_facts_say(tmp_path, family):
    student = zoo.save_family(family, tmp_path)
    importance = made_up(student)
    plain_out, plain = exported(student, "w4a16")
    out, facts = exported(student, "w4a16", importance)
    found = np.mean(errors(student, out, importance))
    assert found == pytest.approx(facts["relative_error"]["chosen"], rel=0.05)  # bfloat16
    assert found < 0.85 * facts["relative_error"]["plain"]
    assert found < 0.95 * np.mean(errors(student, plain_out, importance))
    assert facts["left"] == [] and facts["num_layers"] == len(importance)
    assert plain["relative_error"]["chosen"] < plain["relative_error"]["plain"]


@pytest.mark.parametrize(("quantization", "most"), [("w8a8", 1e-4), ("fp8", 1e-3)])
def test_scales_of_whole_channels_have_the_error_that_the_facts_say(tmp_path, quantization, most):
    student = zoo.save_family("llama-3.1", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    facts = compressed_tensors.write(Student(student), quantization, out)
    ones = {name: np.ones(w.shape[1], np.float32) for name, w in weights(student).items()}
    found = np.mean(errors(student, out, ones))
    assert 0 < found < most
    assert found == pytest.approx(facts["relative_error"]["chosen"], rel=0.02)


@pytest.mark.parametrize("quantization", ["w8a8", "w4a16"])
def test_embeddings_and_head_stay_and_the_rest_is_smaller(tmp_path, quantization):
    student = zoo.save_family("llama-3.1", tmp_path)
    out, facts = exported(student, quantization)
    before = load_file(student / "model.safetensors")
    after = load_file(out / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name], before[name].to(after[name].dtype))
    linear = [name for name in after if name.endswith("weight_scale")]
    assert len(linear) == facts["num_layers"] == 14
    bits = {"w8a8": 8, "w4a16": 4 + 16 / 32}[quantization]
    parts = [m for n, m in weights(student).items() if f"{n}.weight_scale" in linear]
    smaller = sum(weight.numel() for weight in parts) * bits / 8
    whole = 640 * 512 * 2 * (4 if quantization == "w8a8" else 2)
    size = (out / "model.safetensors").stat().st_size
    assert smaller + whole < size < 1.05 * (smaller + whole)
    text = "Ünïcode <|eot_id|> 3"
    wanted = load_tokenizer(str(student))([text], add_special_tokens=False)["input_ids"]
    assert compressed_tensors.token_ids(out, [text]) == wanted


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A student's exports, and what vLLM answered with each: w8a8, w4a16, and a w4a16 whose layers
    are in part of odd sizes."""
    folder = tmp_path_factory.mktemp("served")
    students = [save_model(folder / "even", seed=3), save_model(folder / "odd", seed=3)]
    config = LlamaConfig.from_pretrained(students[1], intermediate_size=100)
    torch.manual_seed(4)
    LlamaForCausalLM(config).save_pretrained(students[1])
    exports = [(students[0], "w8a8"), (students[0], "w4a16"), (students[1], "w4a16")]
    written = [exported(student, quantization) for student, quantization in exports]
    settings = {
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 8,
        "max_model_len": 64,
        "top_k": 20,
        "dtype": "auto",
        "seed": 0,
        "runtime": {
            "device": "cpu",
            "max_num_seqs": 4,
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "gpu_memory_utilization": 0.5,
            "kv_cache_gib": 1,
            "distributed_executor": "auto",
        },
    }
    arguments = {
        "engine": compressed_tensors.ENGINE,
        "settings": settings,
        "models": [str(out) for out, _ in written],
        "chats": CHATS,
    }
    runtime = {"timeout_seconds": 300.0, "num_threads": 1}
    found = processes.run(
        child_functions.answer_with_each, arguments, SILENT, folder / "log", runtime
    )
    return students, written, found


def distance(folder: Path, answers: dict, **knobs) -> float:
    """The mean weighted difference of log-probabilities between vLLM's answers and transformers in
    float32, in nats a token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **knobs).eval()
    tokenizer, found = load_tokenizer(str(folder)), []
    for key, answer in answers.items():
        (prompt,) = render(tokenizer, [[{"role": "user", "content": CHATS[key]}]])
        ids, signal = answer["token_ids"], answer["signal"]
        with torch.inference_mode():
            logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs_TK = torch.log_softmax(logits_TV, -1).gather(1, torch.tensor(signal["ids_TK"]))
        theirs_TK = torch.tensor(signal["logprobs_TK"])
        found.append((theirs_TK.exp() * (logprobs_TK - theirs_TK).abs()).sum(1))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize(("index", "student"), [(0, 0), (1, 0), (2, 1)])
def test_vllm_computes_with_the_weights_that_transformers_decompresses(served, index, student):
    students, written, found = served
    answers = found[index]["answers"]
    assert set(answers) == set(CHATS) and all(answer["token_ids"] for answer in answers.values())
    knobs = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    same = distance(written[index][0], answers, **knobs)
    assert same < 0.05  # activations in int8, or everything in bfloat16
    if index:
        assert same < 0.2 * distance(students[student], answers)


def test_layers_of_odd_sizes_stay_with_those_that_vllm_joins_them_with(served):
    _, written, _ = served
    left = written[2][1]["left"]
    assert {name.rpartition(".")[2] for name in left} == {"gate_proj", "up_proj", "down_proj"}
    assert written[2][1]["num_layers"] == 8


@pytest.mark.parametrize(
    ("family", "format_name", "cause"),
    [
        ("gpt-2", "compressed_tensors:w8a8", "GPT2LMHeadModel.*Conv1D"),
        ("deepseek-v3", "compressed_tensors:w4a16", "DeepseekV3ForCausalLM.*mixture of experts"),
    ],
)
def test_what_has_no_linear_layers_is_refused_by_name(tmp_path, family, format_name, cause):
    module, quantization = find_format(format_name)
    with pytest.raises(SpecError, match=f"{format_name}: {cause}"):
        module.check(zoo.save_family(family, tmp_path), quantization)


def test_w4a16_is_refused_where_no_layer_has_groups(tmp_path):
    student = save_model(tmp_path / "narrow", hidden=48)
    with pytest.raises(SpecError, match="multiples of 32"):
        compressed_tensors.check(student, "w4a16")
    compressed_tensors.check(student, "w8a8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine may have float8")
def test_float8_is_refused_without_hardware_for_it(tmp_path):
    with pytest.raises(SpecError, match=r"float8 needs an NVIDIA GPU.*w8a8"):
        compressed_tensors.check(save_model(tmp_path / "student"), "fp8")
