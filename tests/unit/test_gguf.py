"""GGUF's blocks against the official reader and a slow search, and what the format refuses."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from retort.engines._gguf_header import read_header
from retort.errors import DamagedError, SpecError
from retort.stages.export.formats import Student, _gguf_families, find_format
from retort.stages.export.formats._gguf_blocks import (
    quantize_q4_0,
    quantize_q6_k,
    weighted_error,
)
from retort.stages.export.formats._gguf_vocabulary import GPT4O, LLAMA3, read_vocabulary
from tests.support.tiny import save_model
from tests.support.zoo import save_family

Types = gguf.GGMLQuantizationType


def drawn(shape, seed=0):
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape).astype(np.float32) * 0.02
    return values, random.gamma(0.3, 1, shape[-1]).astype(np.float32)


def restored(data, kind):
    return gguf.quants.dequantize(data, kind)


def least_error(block, weights):
    """The least weighted error of a block of four bits, by trying a thousand scales."""
    scales = np.linspace(-1.5, 1.5, 1001) * np.abs(block).max() / 8
    codes = np.rint(block / np.where(scales, scales, 1)[:, None]).clip(-8, 7)
    return ((block - scales[:, None] * codes) ** 2 @ weights).min()


def test_four_bits_come_close_to_the_least_error_that_any_scale_gives():
    values, importance = drawn((40, 64))
    found = restored(quantize_q4_0(values, importance), Types.Q4_0)
    least = error = 0.0
    for start in (0, 32):
        for block, ours in zip(
            *(a[:, start : start + 32].astype("d") for a in (values, found)), strict=True
        ):
            weights = importance[start : start + 32] * np.sqrt(np.mean(block**2) + block**2)
            least += least_error(block, weights)
            error += (block - ours) ** 2 @ weights
    assert error < 1.03 * least


def test_importance_lowers_the_error_that_it_weighs_and_raises_the_plain_one():
    values, importance = drawn((300, 256), 1)
    plain = restored(quantize_q4_0(values), Types.Q4_0)
    official = restored(gguf.quants.quantize(values, Types.Q4_0), Types.Q4_0)
    weighted = restored(quantize_q4_0(values, importance), Types.Q4_0)
    errors = [weighted_error(values, found, importance) for found in (weighted, plain, official)]
    assert errors[0] < 0.85 * errors[1] < 0.85 * errors[2]
    assert np.square(values - plain).sum() < np.square(values - weighted).sum()


def test_numbers_of_four_and_six_bits_come_back_exactly():
    random = np.random.default_rng(2)
    four = random.integers(-8, 8, (50, 64)).astype(np.float32)
    four[:, [3, 40]] = -8
    assert np.array_equal(restored(quantize_q4_0(four / 4), Types.Q4_0), four / 4)
    six = random.integers(-32, 32, (20, 512)).astype(np.float32)
    six[:, ::16] = -32
    assert np.array_equal(restored(quantize_q6_k(six / 2), Types.Q6_K), six / 2)


def test_six_bits_lie_between_five_and_eight():
    values, _ = drawn((50, 1024), 3)
    values[0] = 0
    errors = [
        float(np.square(values - restored(data, kind)).sum())
        for data, kind in (
            (gguf.quants.quantize(values, Types.Q8_0), Types.Q8_0),
            (quantize_q6_k(values), Types.Q6_K),
            (gguf.quants.quantize(values, Types.Q5_0), Types.Q5_0),
        )
    ]
    assert errors == sorted(errors) and errors[1] < 0.25 * errors[2]
    assert not restored(quantize_q6_k(values), Types.Q6_K)[0].any()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_family("qwen3", tmp_path_factory.mktemp("zoo"))


def changed(student, folder, **config):
    """A copy of a student's small files, with another configuration."""
    for path in student.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    raw = json.loads((student / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **config}))
    return folder


def refusal(folder, quantization="q8_0"):
    with pytest.raises(SpecError) as refused:
        find_format("gguf:q8_0")[0].check(folder, quantization)
    return str(refused.value)


def test_a_family_that_llama_cpp_computes_otherwise_is_refused_by_name(student, tmp_path):
    find_format("gguf:q8_0")[0].check(student, "q8_0")
    said = refusal(changed(student, tmp_path, model_type="cohere"))
    assert "the family cohere" in said and "qwen2, qwen3" in said
    assert "activation silu, not relu" in refusal(changed(student, tmp_path, hidden_act="relu"))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    said = refusal(changed(student, tmp_path, rope_parameters=dynamic))
    assert "rotary embeddings default or linear, not dynamic" in said and "qwen3" in said
    (changed(student, tmp_path) / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(tmp_path)


def test_a_family_that_fits_is_known_from_its_file_without_transformers(student, tmp_path):
    named_otherwise = {"gpt2"}  # its file says n_head, which transformers reads
    for kind in _gguf_families.ARCHITECTURES.keys() - named_otherwise:
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        assert _gguf_families.plainly_fits(tmp_path / kind), kind
        assert _gguf_families.read_family(tmp_path / kind).config.model_type == kind
    for number, wrong in enumerate(({"hidden_act": "relu"}, {"model_type": "cohere"})):
        (folder := tmp_path / str(number)).mkdir()
        assert not _gguf_families.plainly_fits(changed(student, folder, **wrong))
    code = (
        "import sys; from pathlib import Path; from retort.stages.export.formats import gguf;"
        f"gguf.check(Path({str(student)!r}), 'q8_0'); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_what_to_do(student, monkeypatch):
    said = refusal(student, "q4_k_m")
    assert "pip install 'retort[export-k]'" in said and "q8_0, q4_0" in said
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert "pip install 'retort[export]'" in refusal(student)
    with pytest.raises(SpecError, match="unknown quantization of gguf 'q4_1'"):
        find_format("gguf:q4_1")


def test_the_file_has_the_types_and_the_size_of_llama_cpps_own_quantizer(tmp_path):
    """Untied: the head is kept at six bits, the embedding is not; norms stay as they are."""
    model = save_family("llama-3.1", tmp_path)
    module, quantization = find_format("gguf:q4_0")
    facts = module.write(Student(model), quantization, tmp_path)
    header, reader = read_header(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    assert header.types == {t.name: t.tensor_type.name for t in reader.tensors}
    assert header.types["output.weight"] == "Q6_K" and header.types["token_embd.weight"] == "Q4_0"
    assert facts["tensors"] == {"F32": 6, "Q4_0": 15, "Q6_K": 1}
    assert (header.quantization, header.context, header.vocabulary) == ("q4_0", 131072, 640)
    numbers = {name: int(np.prod(t.shape)) for t in reader.tensors for name in [t.name]}
    bits = {"F32": 32, "Q4_0": 4.5, "Q6_K": 6.5625}
    whole = sum(numbers[name] * bits[kind] / 8 for name, kind in header.types.items())
    names = sum(len(bytes(part)) for f in reader.fields.values() for part in f.parts)
    assert whole + names < facts["bytes"] < 1.01 * (whole + names) + 3000


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"something else, long enough")
    with pytest.raises(DamagedError, match="is no GGUF file"):
        read_header(path)
    path.write_bytes(b"GGUF\3\0\0\0" + b"\1\0\0\0\0\0\0\0" * 2)
    with pytest.raises(DamagedError, match="is cut short"):
        read_header(path)


def test_pre_tokenizers_are_recognised_by_what_they_match(student, tmp_path):
    raw = json.loads((student / "tokenizer.json").read_text())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}

    def name(*patterns, use_regex=False, **model):
        steps = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in patterns
        ]
        steps.append({**level, "use_regex": use_regex})
        pre = {"type": "Sequence", "pretokenizers": steps}
        changed = {**raw, "pre_tokenizer": pre, "model": {**raw["model"], **model}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        found = read_vocabulary(tmp_path)
        return found.pre if found.readable else None

    assert name(use_regex=True) == "gpt-2"
    assert name(LLAMA3, ignore_merges=True) == "llama-bpe" and name(LLAMA3) == "dbrx"
    possessive = LLAMA3.replace("]?", "]?+").replace("]+[", "]++[")
    assert possessive != LLAMA3 and name(possessive) == "dbrx"
    assert name(GPT4O) == "gpt-4o"
    assert name(r"\p{N}", use_regex=True) == "smollm"
    assert name(r"\p{L}+") is None and name(LLAMA3, r"\p{N}") is None


def test_a_normalizer_is_named_or_makes_a_tokenizer_unreadable(student, tmp_path):
    raw = json.loads((student / "tokenizer.json").read_text())
    for normalizer, readable, said in (
        (None, True, None),
        ({"type": "NFC"}, True, "accents"),
        ({"type": "Lowercase"}, False, None),
        (
            {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            False,
            None,
        ),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**raw, "normalizer": normalizer}))
        found = read_vocabulary(tmp_path)
        assert found.readable is readable and (said or "") in (found.unlike or "")
        assert bool(found.unlike) is bool(said)


def test_a_tokenizer_that_llama_cpp_has_not_is_a_list_of_distinct_tokens(tmp_path):
    found = read_vocabulary(save_model(tmp_path / "model", vocabulary=100), 100)
    assert not found.readable and found.pre is None
    assert len(found.tokens) == len(found.types) == len(set(found.tokens)) == 100
    assert found.tokens[-1] == "[PAD99]" and "\u2581" in found.tokens
