"""ONNX exports answer as transformers does, whatever the family, in batches and alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, GraniteConfig
from transformers import SmolLM3Config as SmolLM3

from retort.data.encoding import load_tokenizer, render
from retort.engines import Request, Settings, find_engine
from retort.errors import SpecError
from retort.stages.export.formats import Student, find_format, onnx
from tests.support import zoo
from tests.support.tiny import save_model

CHATS = {
    "sum": "What is 17 + 25?",
    "long": "A farmer has 12 hens and buys 5 more, then sells 3. " * 4,
    "hi": "Hi",
    "letters": "q" * 70,
}
SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
# Families that the zoo does not have, in shapes of their own.
MORE = {
    "gemma": (GemmaConfig, {**SMALL, "head_dim": 64}),
    "gemma-2": (Gemma2Config, {**SMALL, "head_dim": 64}),
    "granite": (GraniteConfig, {**SMALL, "residual_multiplier": 0.22, "logits_scaling": 8.0}),
    "smollm3": (SmolLM3, SMALL),
}
WINDOW = {"sliding_window": 16}
REFUSED = ("deepseek-v3", "gpt-2", "phi-4-mini")  # the last for its width, which is the vocabulary
CASES = {
    **{name: (name, {}) for name in (*zoo.FAMILIES, *MORE) if name not in REFUSED},
    "phi-4-mini": ("phi-4-mini", {"vocabulary": 656}),
    "mistral's window": ("mistral", WINDOW),
    "phi-3's window": ("phi-3-mini-4k", WINDOW),
    "gemma-3's window": ("gemma-3", WINDOW),
    "a long rope's long side": (
        "phi-3-mini-128k",
        {"max_position_embeddings": 512, "original_max_position_embeddings": 16},
    ),
    "linear rope": ("qwen3", {"rope": {"rope_type": "linear", "factor": 4.0}}),
}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Returns a function that writes a family with some of its settings changed."""

    def save(name: str, knobs: dict | None = None) -> Path:
        knobs = dict(knobs or {})
        monkeypatch.setattr(zoo, "VOCABULARY", knobs.pop("vocabulary", zoo.VOCABULARY))
        style, kind, shape = zoo.FAMILIES.get(name) or (zoo.LLAMA, *MORE[name])
        rope = {**shape.get("rope_parameters", {}), **knobs.pop("rope", {})}
        if original := knobs.pop("original_max_position_embeddings", None):
            rope["original_max_position_embeddings"] = original
        changed = {**shape, **knobs, **({"rope_parameters": rope} if rope else {})}
        monkeypatch.setitem(zoo.FAMILIES, "changed", (style, kind, changed))
        return zoo.save_family("changed", tmp_path)

    return save


def exported(student: Path, quantization: str = "fp32", importance: dict | None = None) -> Path:
    out = student.parent / f"{student.name}-{quantization}{len(importance or {})}"
    out.mkdir()
    onnx.check(student, quantization)
    onnx.write(Student(student, importance or {}), quantization, out)
    return out


def opened(folder: Path, max_num_seqs: int = 8, **knobs):
    settings = {"temperature": 0.0, "top_p": 1.0, "max_model_len": None, "top_k": 0, "seed": 0}
    settings |= {"dtype": "auto", "max_tokens": 12, "runtime": {"max_num_seqs": max_num_seqs}}
    return find_engine("onnx").open_engine(Settings(str(folder), **{**settings, **knobs}))


def answered(engine, chats: dict[str, str] = CHATS) -> dict:
    requests = [Request(key, [{"role": "user", "content": text}]) for key, text in chats.items()]
    return {answer.id: answer for answer in engine.generate(requests)}


def ids_of(found: dict) -> dict[str, list[int]]:
    return {key: answer.raw["token_ids"] for key, answer in found.items()}


def prompts(student: Path, chats: dict[str, str] = CHATS) -> dict[str, list[int]]:
    messages = [[{"role": "user", "content": text}] for text in chats.values()]
    return dict(zip(chats, render(load_tokenizer(str(student)), messages), strict=True))


def own_answers(
    student: Path, max_tokens: int = 12, chats: dict[str, str] = CHATS
) -> dict[str, list[int]]:
    """The greedy answers of transformers in float32, each by itself."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    found = {}
    for key, ids in prompts(student, chats).items():
        ids_1T = torch.tensor([ids])
        mask = torch.ones_like(ids_1T)
        out = model.generate(
            ids_1T, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )
        found[key] = out[0, len(ids) :].tolist()
    return found


def divergence(student: Path, found: dict) -> float:
    """KL from the student in float32 to the export, in nats a token of the export's answers; the
    signal is of the whole vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    divergences = []
    for key, ids in prompts(student).items():
        answer, signal = found[key].raw["token_ids"], found[key].signal
        with torch.inference_mode():
            logits_TV = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        logprobs_TV = torch.log_softmax(logits_TV.double(), dim=-1).numpy()
        theirs_TV = np.zeros_like(logprobs_TV)
        np.put_along_axis(theirs_TV, signal.ids_TK, signal.logprobs_TK.astype(np.float64), 1)
        divergences.append((np.exp(logprobs_TV) * (logprobs_TV - theirs_TV)).sum(1))
    return float(np.concatenate(divergences).mean())


@pytest.mark.parametrize("case", CASES)
def test_every_answer_of_float32_is_that_of_transformers(save, case):
    student = save(*CASES[case])
    tokens = 4 if "long side" in case else 12  # transformers keeps the keys of the short side
    found = answered(opened(exported(student), top_k=zoo.VOCABULARY, max_tokens=tokens))
    assert ids_of(found) == own_answers(student, tokens)
    assert abs(divergence(student, found)) < 1e-6


@pytest.mark.parametrize(
    ("family", "knobs", "cause"),
    [
        ("deepseek-v3", {}, "the family is none of"),
        ("gpt-2", {}, "the family is none of"),
        ("phi-4-mini", {}, "as wide as the vocabulary"),
        ("llama-3.1", {"rope": {"rope_type": "linear"}}, "linear, and not default or llama3"),
        ("qwen3", {"rope": {"rope_type": "yarn", "factor": 4.0}}, "yarn, and not default"),
    ],
)
def test_what_the_builder_writes_wrongly_is_refused_by_name(save, family, knobs, cause):
    student = save(family, knobs)
    name = json.loads((student / "config.json").read_text())["architectures"][0]
    with pytest.raises(SpecError, match=f"onnx:int8.*{name}.*{cause}"):
        find_format("onnx:int8")[0].check(student, "int8")


def test_weights_of_fewer_bits_are_smaller_files_that_answer_almost_alike(save):
    # A cache of rotary embeddings for 131072 tokens would hide the sizes of the weights.
    student = save("llama-3.1", {"tie_word_embeddings": True, "max_position_embeddings": 512})
    sizes, divergences, dtypes = [], [], []
    for quantization in onnx.QUANTIZATIONS:
        out = exported(student, quantization)
        sizes.append(sum(path.stat().st_size for path in out.glob("model.onnx*")))
        engine = opened(out, top_k=zoo.VOCABULARY)
        dtypes.append(engine.facts["dtype"])
        divergences.append(divergence(student, answered(engine)))
    assert dtypes == ["float32", "int8", "int4"]
    assert sizes[1] < 0.5 * sizes[0]
    assert sizes[2] < 0.75 * sizes[1]
    assert divergences[0] < 1e-6 < divergences[1] < divergences[2]


def test_a_prompt_that_holds_the_padding_is_answered_as_it_is_alone(save):
    student = save("llama-3.1")
    chats = {**CHATS, "pad": f"Hi {zoo.LLAMA.pad}{zoo.LLAMA.pad}", "after": "Hi there"}
    found = answered(opened(exported(student)), chats)
    assert ids_of(found) == own_answers(student, chats=chats)


def test_an_answer_ends_with_any_end_token_at_a_stop_text_or_for_want_of_room(save):
    student = save("mistral")
    whole = own_answers(student)["sum"]
    path = student / "generation_config.json"
    config = json.loads(path.read_text())
    end = next(token for token in whole[3:] if whole.index(token) >= 3)
    path.write_text(json.dumps({**config, "eos_token_id": [config["eos_token_id"], end]}))
    out = exported(student)
    found = answered(opened(out))
    assert ids_of(found) == own_answers(student)
    assert found["sum"].raw["finish_reason"] == "stop"
    assert found["sum"].raw["token_ids"] == whole[: whole.index(end) + 1]
    text = found["sum"].raw["text"]
    stopped = answered(opened(out, stop=(text[1:3],)))["sum"].raw
    assert stopped["text"] == text[: text.index(text[1:3])]
    assert stopped["finish_reason"] == "stop"
    short = answered(opened(out, max_model_len=len(prompts(student)["hi"]) + 2))
    assert short["sum"].raw["finish_reason"] == "prompt_too_long"
    assert short["hi"].raw["finish_reason"] == "length"
    assert len(short["hi"].raw["token_ids"]) == 2


def test_a_request_alone_is_timed(save):
    engine = opened(exported(save("qwen3")))
    timing = engine.timed(Request("a", [{"role": "user", "content": CHATS["long"]}]))
    assert 0 < timing.first_token_seconds < timing.whole_seconds


def test_sampled_tokens_come_as_often_as_the_model_has_them_likely(save):
    out = exported(save("mistral"))
    signal = answered(opened(out, top_k=zoo.VOCABULARY, max_tokens=1))["hi"].signal
    chats = {str(i): CHATS["hi"] for i in range(600)}
    sampler = opened(out, 600, temperature=1.0, max_tokens=1)
    first = np.array([ids[0] for ids in ids_of(answered(sampler, chats)).values()])
    for token, logprob in zip(signal.ids_TK[0][:3], signal.logprobs_TK[0][:3], strict=True):
        probability = np.exp(logprob)
        spread = np.sqrt(probability * (1 - probability) / len(first))
        assert abs((first == token).mean() - probability) < 4 * spread


@pytest.mark.parametrize("family", ["llama-3.1", "qwen2.5", "phi-3-mini-4k"])
def test_the_runtime_reads_texts_as_transformers_does(save, family):
    texts = [
        "17 + 25 = 42, isn't it?",
        "Hens\n\n  and ünïcode 3",
        "<|eot_id|><|im_end|> spelled out",
    ]
    student = save(family)
    wanted = load_tokenizer(str(student))(texts, add_special_tokens=False)["input_ids"]
    out = exported(student)
    assert onnx.token_ids(out, texts) == wanted
    assert load_tokenizer(str(out))(texts, add_special_tokens=False)["input_ids"] == wanted
    assert (out / "generation_config.json").is_file()


def test_the_runtime_cannot_read_a_list_of_words_and_is_given_ids(tmp_path):
    student = save_model(tmp_path / "words")
    out = exported(student)
    assert onnx.token_ids(out, ["3 + 4"]) is None
    assert ids_of(answered(opened(out))) == own_answers(student)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(save, monkeypatch):
    student = save("qwen3")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(SpecError, match=r"onnx_ir; pip install 'retort\[export\]'"):
        onnx.check(student, "int4")
