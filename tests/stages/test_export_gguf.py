"""GGUF files answer as the models they were made of, in every family, and read texts as they do."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

pytest.importorskip("xllamacpp")


from retort.data import encoding
from retort.engines import Request, Settings, find_engine
from retort.engines._local import parse_local
from retort.errors import SpecError
from retort.stages.export import texts
from retort.stages.export.formats import Student, find_format
from retort.stages.export.formats import _gguf_vocabulary as vocabulary
from tests.support import zoo
from tests.support.tiny import save_model

SENTENCES = [*texts.pieces()["sentences"], *texts.pieces()["code"]]
RUNTIME = {"max_num_seqs": 3, "kv_cache_gib": 1, "num_threads": 1, "device": "cpu"}
QUESTIONS = ["Hi", "Leo has 7 books and buys 5. How many?", "Ben has 9. " * 12, "Wer? 你好 🙂"]
MAX_TOKENS = 16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SMALL = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
# What the zoo's own families leave out: soft caps, biases where llama.cpp turns rows, other ropes.
MORE = {
    "gemma-2": (
        zoo.GEMMA,
        Gemma2Config,
        {**SMALL, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16},
    ),
    "llama-yarn": (
        zoo.LLAMA,
        LlamaConfig,
        {**SMALL, "attention_bias": True, "rope_parameters": {**YARN, "rope_theta": 5e3}},
    ),
    "qwen2-linear": (
        zoo.QWEN,
        Qwen2Config,
        {**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
}
FAMILIES = [name for name in zoo.FAMILIES if name != "deepseek-v3"]


def made(family: str, folder: Path) -> Path:
    """A family's model whose norms differ from one, so that a misplaced one shows."""
    model = zoo.save_family(family, folder)
    tensors, random = load_file(model / "model.safetensors"), torch.Generator().manual_seed(1)
    for name, values in tensors.items():
        if values.ndim == 1 and "proj" not in name:
            tensors[name] = values + 0.2 * torch.randn(values.shape, generator=random)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def exported(model: Path, quantization: str, out: Path, **importance) -> dict:
    module, name = find_format(f"gguf:{quantization}")
    module.check(model, name)
    out.mkdir(exist_ok=True)
    return module.write(Student(model, **importance), name, out)


def opened(engine: str, model: Path, **knobs):
    settings = {
        **{"model": str(model), "temperature": 0.0, "top_p": 1.0, "max_tokens": MAX_TOKENS},
        **{"max_model_len": 512, "top_k": 0, "dtype": "float32", "seed": 0, "runtime": RUNTIME},
    }
    return find_engine(engine).open_engine(Settings(**{**settings, **knobs}))


def asked(texts=QUESTIONS) -> list[Request]:
    return [Request(str(i), [{"role": "user", "content": t}]) for i, t in enumerate(texts)]


def answered(engine, requests=None) -> dict:
    return {answer.id: answer for answer in engine.generate(requests or asked())}


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_a_familys_file_gives_the_answers_and_the_probabilities_of_its_model(
    family, tmp_path, monkeypatch
):
    monkeypatch.setattr(zoo, "FAMILIES", {**zoo.FAMILIES, **MORE})
    model = made(family, tmp_path)
    exported(model, "f32", tmp_path / "out")
    found = answered(opened("llamacpp", tmp_path / "out", top_k=zoo.VOCABULARY))
    plain = answered(opened("transformers", model))
    torch_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = encoding.load_tokenizer(str(model))
    for request in asked():
        ids, signal = found[request.id].raw["token_ids"], found[request.id].signal
        assert found[request.id].raw == plain[request.id].raw
        prompt = encoding.render_one(tokenizer, request.messages)
        with torch.inference_mode():
            logits = torch_model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits.double(), -1).numpy()
        given = np.zeros_like(wanted)
        np.put_along_axis(given, signal.ids_TK.astype(int), signal.logprobs_TK, axis=1)
        assert (np.exp(wanted) * (wanted - given)).sum(1).mean() < 1e-6
        assert np.array_equal(signal.target_logprobs_T, given[range(len(ids)), ids].astype("f"))


def test_a_window_that_llama_cpp_has_not_bounds_the_context(tmp_path, monkeypatch):
    style, config, shape = zoo.FAMILIES["mistral"]
    monkeypatch.setitem(zoo.FAMILIES, "mistral", (style, config, {**shape, "sliding_window": 64}))
    model = made("mistral", tmp_path)
    assert exported(model, "f32", tmp_path / "out")["context"] == 64
    engine = opened("llamacpp", tmp_path / "out")
    assert engine.facts["max_model_len"] == 64
    found = answered(engine, asked(["Leo has 7 books.", "Ben has 9. " * 30]))
    plain = answered(opened("transformers", model), asked(["Leo has 7 books."]))
    assert found["0"].raw == plain["0"].raw
    refused = parse_local("1", found["1"].raw)
    assert (refused.state, refused.token_ids) == ("too_long", [])


def test_two_sets_of_rotary_factors_bound_the_context_to_the_short_one(tmp_path):
    facts = exported(made("phi-3-mini-128k", tmp_path), "f32", tmp_path / "out")
    assert facts["context"] == 4096
    engine = opened("llamacpp", tmp_path / "out", max_model_len=8192)
    plain = answered(opened("transformers", tmp_path / "phi-3-mini-128k", max_model_len=8192))
    assert engine.facts["max_model_len"] == 4096
    assert {k: a.raw for k, a in answered(engine).items()} == {k: a.raw for k, a in plain.items()}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A word-level student as the quickstart's, and its file in single precision."""
    folder = tmp_path_factory.mktemp("quick")
    return save_model(folder / "model", layers=3), exported(folder / "model", "f32", folder / "out")


def test_ids_are_handed_over_where_llama_cpp_has_no_such_tokenizer(quick):
    model, facts = quick
    out = model.parent / "out"
    assert facts["reads_text"] is False
    assert find_format("gguf:f32")[0].token_ids(out, ["a b"]) is None
    texts = [f"What is {i} + {i * i}?" for i in range(9)]
    found = answered(opened("llamacpp", out, max_model_len=None), asked(texts))
    plain = answered(opened("transformers", model, max_model_len=256), asked(texts))
    assert {i: a.raw for i, a in found.items()} == {i: a.raw for i, a in plain.items()}


def test_the_engine_takes_more_while_answers_are_outstanding_and_times_one(quick):
    engine = opened("llamacpp", quick[0].parent / "out", top_k=4, max_model_len=64)
    requests, long = asked([f"{i} plus {i}" for i in range(8)]), asked(["a" * 100])[0]

    def stream():
        yield from requests[:2]
        yield None
        yield Request("long", long.messages)
        yield from requests[2:]

    found = answered(engine, stream())
    assert set(found) == {*"01234567", "long"}
    assert found["long"].raw["finish_reason"] == "prompt_too_long"
    plain = answered(opened("transformers", quick[0], top_k=4, max_model_len=64), requests)
    for key, answer in plain.items():
        ours, theirs = found[key].signal, answer.signal
        assert found[key].raw == answer.raw
        assert np.allclose(ours.logprobs_TK, theirs.logprobs_TK, atol=1e-4)
        assert np.allclose(ours.tail_T, theirs.tail_T, atol=1e-3)
    timing = engine.timed(requests[0])
    assert 0 < timing.first_token_seconds < timing.whole_seconds
    assert engine.timed(Request("long", long.messages)).first_token_seconds is None
    engine.forget()
    assert answered(engine, requests[:1])["0"].raw == found["0"].raw
    assert engine.facts["dtype"] == "f32" and engine.facts["vocabulary"] == len(
        encoding.load_tokenizer(str(quick[0]))
    )


def test_only_the_models_own_end_ends_an_answer(quick, tmp_path):
    """llama.cpp ends at a token of this name, whatever the model's configuration says."""
    plain = answered(opened("transformers", quick[0], max_model_len=256))
    token = next(a.raw["token_ids"][2] for a in plain.values() if len(a.raw["token_ids"]) > 4)
    for path in quick[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = {index: text for text, index in raw["model"]["vocab"].items()} | {
        token: "<|endoftext|>"
    }
    raw["model"]["vocab"] = {text: index for index, text in vocab.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    exported(tmp_path, "f32", tmp_path / "out")
    wanted = answered(opened("transformers", tmp_path, top_k=3, max_model_len=256))
    found = answered(opened("llamacpp", tmp_path / "out", top_k=3, max_model_len=256))
    assert any(token in a.raw["token_ids"][:-1] for a in wanted.values())
    for key, answer in wanted.items():
        assert found[key].raw == answer.raw
        assert np.allclose(found[key].signal.tail_T, answer.signal.tail_T, atol=1e-3)


def test_sampling_follows_the_seed_and_a_text_may_end_an_answer(quick):
    out = quick[0].parent / "out"
    texts = {key: a.raw["text"] for key, a in answered(opened("llamacpp", out)).items()}
    stop = next(text for text in texts.values() if len(text) > 3)[2]
    cut = answered(opened("llamacpp", out, stop=(stop,)))
    assert {k: a.raw["text"] for k, a in cut.items()} == {
        key: text.split(stop)[0] for key, text in texts.items()
    }
    drawn = [
        [a.raw["token_ids"] for _, a in sorted(answered(engine).items())]
        for engine in (opened("llamacpp", out, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_an_engine_cannot_open_is_said(quick):
    with pytest.raises(SpecError, match=r"has no model\.gguf"):
        opened("llamacpp", quick[0])
    small = {**RUNTIME, "kv_cache_gib": 0}
    with pytest.raises(SpecError, match=r"of 256 tokens take 0\.0 GiB.*kv_cache_gib"):
        opened("llamacpp", quick[0].parent / "out", max_model_len=256, runtime=small)


def test_importance_is_used_where_four_bits_are_written(tmp_path):
    model = made("qwen3", tmp_path)
    random, importance = np.random.default_rng(0), {}
    for name, values in load_file(model / "model.safetensors").items():
        if name.endswith("proj.weight"):
            width = values.shape[1]
            importance[name.removesuffix(".weight")] = random.gamma(0.3, 1, width).astype("f")
    plain = exported(model, "q4_0", tmp_path / "plain")
    found = exported(model, "q4_0", tmp_path / "found", importance=importance)
    assert found["error"] < 0.9 * found["error_without_importance"] and "error" not in plain
    assert found["bytes"] == plain["bytes"] and found["tensors"]["Q4_0"] == 14
    assert (tmp_path / "found/model.gguf").read_bytes() != (
        tmp_path / "plain/model.gguf"
    ).read_bytes()


def split(*patterns: str, use_regex: bool = False) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*steps, level])


BYTE_LEVEL = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "dbrx": split(vocabulary.LLAMA3),
    "qwen2": split(vocabulary.QWEN2),
    "gpt-4o": split(vocabulary.GPT4O),
    "deepseek-v3": split(*vocabulary.DEEPSEEK3),
}
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]"]


def saved(tokenizer: Tokenizer, folder: Path, strips: bool = False) -> Path:
    """A tiny Llama with a tokenizer; `strips`: its special tokens take the space behind them."""
    tokenizer.add_special_tokens(["<s>", "<|endoftext|>"])
    tokenizer.add_special_tokens([AddedToken(text, rstrip=strips) for text in SPECIALS[1:]])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, rstrip=strips)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": False},
        chat_template=zoo.QWEN.template,
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(vocab_size=len(fast), intermediate_size=64, num_hidden_layers=1, **SMALL)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["q4_k_m", "iq4_nl"])
def test_llama_cpp_itself_writes_what_we_do_not(quantization, tmp_path):
    pytest.importorskip("llama_cpp")
    model = made("llama-3.1", tmp_path)
    layers = ("mlp.up_proj", 512), ("mlp.down_proj", 256)
    random = np.random.default_rng(0)
    importance = {
        f"model.layers.{layer}.{name}": random.gamma(0.3, 1, width).astype("f")
        for layer in (0, 1)
        for name, width in layers
    }
    facts = exported(model, quantization, tmp_path / "found", importance=importance)
    plain = exported(model, quantization, tmp_path / "plain")
    assert facts["bytes"] < 0.3 * exported(model, "f32", tmp_path / "whole")["bytes"]
    assert quantization[:5].removesuffix("_").upper() in str(facts["tensors"])
    both = [(tmp_path / name / "model.gguf").read_bytes() for name in ("found", "plain")]
    assert both[0] != both[1] and facts["tensors"] and plain["tensors"]
    engine = opened("llamacpp", tmp_path / "found")
    assert engine.facts["dtype"] == quantization
    assert all(a.raw["token_ids"] for a in answered(engine).values())


def differing(model: Path, out: Path, count: int = 300) -> list[str]:
    """The texts that llama.cpp reads otherwise than the tokenizer."""
    exported(model, "f16", out)
    some = texts.of_all_kinds((), [*SPECIALS, "<tool>"], count)
    wanted = encoding.load_tokenizer(str(model))(some, add_special_tokens=False)["input_ids"]
    found = find_format("gguf:f16")[0].token_ids(out, some)
    return [t for t, a, b in zip(some, wanted, found, strict=True) if a != b]


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_llama_cpp_reads_texts_as_the_tokenizer_does(name, tmp_path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = BYTE_LEVEL[name], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    model = saved(tokenizer, tmp_path)
    assert vocabulary.read_vocabulary(model).pre == name
    found = differing(model, tmp_path / "out")
    if name == "gpt-4o":
        # llama.cpp takes letters beyond ASCII for capitals and small ones alike, and for no marks.
        assert 0 < len(found) < 150
        found = [text for text in found if text.isascii()]
    assert found == []


def sentence_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary that SentencePiece trained, with bytes for what it lacks, and its merges: all
    pairs that make a piece, in the order of the pieces' scores, as transformers converts them."""
    spm, written = pytest.importorskip("sentencepiece"), io.BytesIO()
    lines = [line for text in SENTENCES * 3 for line in text.splitlines() if line]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=1500,
        **{"model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False},
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        minloglevel=3,
    )
    pieces = spm.SentencePieceProcessor(model_proto=written.getvalue())
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    merges = [
        (piece[:place], piece[place:])
        for piece in sorted(vocab, key=lambda piece: -pieces.get_score(vocab[piece]))
        for place in range(1, len(piece))
        if piece[:place] in vocab and piece[place:] in vocab
    ]
    return vocab, merges


SPACED = normalizers.Replace(" ", vocabulary.SPACE)
PREFIXED = normalizers.Sequence([normalizers.Prepend(vocabulary.SPACE), SPACED])
PIECES = {
    "llama-2": (PREFIXED, None),
    "gemma": (SPACED, pre_tokenizers.Split(" ", "merged_with_previous")),
    "never": (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    "first": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "phi-3": (PREFIXED, None),
}


@pytest.mark.parametrize("name", PIECES)
def test_llama_cpp_reads_texts_as_sentence_piece_does(name, tmp_path):
    vocab, merges = sentence_pieces()
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    normalizer, pre_tokenizer = PIECES[name]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    model = saved(tokenizer, tmp_path, strips=name == "phi-3")
    if name == "first":  # llama.cpp would put its space behind special tokens, too
        assert not vocabulary.read_vocabulary(model).readable
        return
    found = differing(model, tmp_path / "out")
    if name == "phi-3":  # llama.cpp drops no white space but ASCII's
        assert "white space" in vocabulary.read_vocabulary(model).unlike
        found = [text for text in found if text.isascii()]
    assert found == []
