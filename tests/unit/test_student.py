"""Adapters: only they learn, whatever the family, and the saved student is the one that learned."""

import importlib.util
import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from retort.engines.transformers import end_ids
from retort.errors import SpecError
from retort.events import SILENT
from retort.losses import Target, cross_entropy
from retort.spec import Train, build
from retort.stages.stage import Stage
from retort.stages.train import checkpoint
from retort.stages.train.head import Term
from retort.stages.train.objective import Objective, trusted_head
from retort.stages.train.student import open_student, save_student
from retort.store import Folder, open_store
from tests.support.tiny import make_tokenizer
from tests.support.zoo import save_family

# Fused layers and a head of its own; fused layers and a tied head; a tied head; Conv1D; experts.
NAMES = ["phi-3.5-mini", "phi-4-mini", "qwen3", "gpt-2", "deepseek-v3"]
IDS = torch.arange(3, 51).reshape(4, 12)
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tiny models of the families, by name."""
    root = tmp_path_factory.mktemp("families")
    tokenizer = make_tokenizer()
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 72}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**shape, **ends, initializer_range=0.2)).save_pretrained(
        root / "gpt-2"
    )
    tokenizer.save_pretrained(root / "gpt-2")
    for name in set(NAMES) - {"gpt-2"}:
        save_family(name, root)
    return {name: root / name for name in NAMES}


def knobs_of(folder, lora: dict | None = None, **more) -> Train:
    return Train(student=str(folder), lora=lora, **more)


def stage_of(train: Train, out) -> Stage:
    raw = {
        "name": "tiny",
        "prepare": {"task_type": "math", "train": "a.jsonl", "test": "b.jsonl"},
        "generate": {"teacher": "teacher"},
        "train": train.model_dump(mode="json"),
    }
    store = open_store(str(out / "store"))
    return Stage("train", build(raw), store, {}, Folder(str(out)), SILENT, out / "log")


def trained(knobs: Train):
    """A student as it stands after training: its adapters do something."""
    model = open_student(knobs, "cpu")
    chosen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=chosen) * 0.1)
    return model.eval()


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits.float()


def loss_of(model, vocabulary: int, fused: bool = True) -> torch.Tensor:
    head = trusted_head(model, vocabulary, IDS, MASK)[0] if fused else None
    assert fused == (head is not None)
    rows, times = torch.arange(4).repeat_interleave(11), torch.arange(11).repeat(4)
    target = Target(labels_N=IDS[rows, times + 1])
    objective = Objective(model, head, [Term("cross_entropy", cross_entropy)], vocabulary)
    return objective(IDS, MASK, (rows, times), target).total_


def gradients_of(model, fused: bool = True) -> dict[str, torch.Tensor]:
    """The gradients of one training forward; dropout is drawn from the same seed each time."""
    torch.manual_seed(7)
    model.zero_grad()
    loss_of(model.train(), 70, fused).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_a_familys_saved_student_gives_what_the_model_with_adapters_gives(folders, name, tmp_path):
    knobs = knobs_of(folders[name], {"rank": 4})
    base = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    fresh = open_student(knobs, "cpu")
    assert torch.equal(logits_of(fresh.eval()), logits_of(base))  # an adapter begins as nothing
    linear = [n for n, m in fresh.named_modules() if isinstance(m, LoraLayer)]
    if name != "deepseek-v3":  # peft's choice of layers beside experts is its own
        assert len(linear) == len([n for n, p in base.named_parameters() if _adapted(n, p)])
    model = trained(knobs)
    before = {n: p.clone() for n, p in model.named_parameters()}
    save_student(stage_of(knobs, tmp_path), model, folders[name])
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert (logits_of(saved) - logits_of(base)).abs().max() > 1e-2
    # fp32's rounding of a router's weights: in float64 nothing is left of its gap either.
    most = logits_of(model).abs().max() * (1e-4 if name == "deepseek-v3" else 1e-5)
    assert (logits_of(saved) - logits_of(model)).abs().max() < most
    tied = saved.get_output_embeddings().weight is saved.get_input_embeddings().weight
    assert tied == (name in ("phi-4-mini", "qwen3", "gpt-2"))
    assert (tmp_path / "student/tokenizer.json").is_file()
    assert not list((tmp_path / "student").glob("adapter*"))

    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits_of(again), logits_of(model))
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert len(stored) == 2 * len(linear)


def _adapted(name: str, parameter: torch.Tensor) -> bool:
    """Whether it is a weight matrix of a block: what is left out is embeddings and the head."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe", "lm_"))


@pytest.mark.parametrize("name", NAMES)
def test_the_chunked_losses_give_adapters_and_nothing_else_the_gradient(folders, name):
    model = trained(knobs_of(folders[name], {"rank": 4}))
    fused, plain = gradients_of(model), gradients_of(model, fused=False)
    assert set(fused) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in n for n in fused)
    for key, gradient in plain.items():
        assert torch.allclose(fused[key], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max())


def test_a_wrapped_model_still_says_how_it_ends_and_what_it_is(folders):
    model = open_student(knobs_of(folders["gpt-2"], {}), "cpu")
    plain = AutoModelForCausalLM.from_pretrained(folders["gpt-2"])
    assert end_ids(model, make_tokenizer()) == end_ids(plain, make_tokenizer())
    assert model.config.vocab_size == 72
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("lora", [None, {"rank": 4, "dropout": 0.3}])
@pytest.mark.parametrize("name", ["phi-3.5-mini", "gpt-2"])
def test_gradient_checkpointing_computes_blocks_twice_and_changes_no_gradient(folders, name, lora):
    found, num_calls = [], []
    for wanted in (False, True):
        knobs = knobs_of(folders[name], lora, gradient_checkpointing=wanted)
        model = trained(knobs) if lora else open_student(knobs, "cpu")
        calls: list[int] = []
        block = next(m for n, m in model.named_modules() if n.endswith(("layers.1.mlp", "h.1.mlp")))
        torch.manual_seed(7)
        total_ = loss_of(model.train(), 70)
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        total_.backward()
        num_calls.append(len(calls))
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert num_calls == [0, 1]
    assert set(found[0]) == set(found[1])
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_adapters_beside_a_bfloat16_base_are_fp32_and_so_are_their_gradients(folders, tmp_path):
    knobs = knobs_of(folders["qwen3"], {"rank": 4}, dtype="bfloat16", save_dtype="float32")
    model = trained(knobs)
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients_of(model)
    exact = gradients_of(trained(knobs_of(folders["qwen3"], {"rank": 4})))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    one, other = (torch.cat([g[key].flatten() for key in exact]) for g in (found, exact))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99
    # The base's fp32 weights are what the adapters are merged into, not their bfloat16 copy.
    save_student(stage_of(knobs, tmp_path), model, folders["qwen3"])
    before = load_file(folders["qwen3"] / "model.safetensors")
    after = load_file(tmp_path / "student/model.safetensors")
    assert set(before) == set(after)
    layers = {n.split("base_model.model.")[1]: m for n, m in model.named_modules()
              if isinstance(m, LoraLayer)}  # fmt: skip
    for key, weight in before.items():
        layer = layers.get(key.removesuffix(".weight"))
        change = 0 if layer is None else layer.get_delta_weight("default").detach()
        assert torch.equal(after[key], weight + change), key


def test_the_student_is_saved_in_the_precision_that_the_spec_asks_for(folders, tmp_path):
    for save_dtype, lora in (("bfloat16", {"rank": 4}), ("float16", None)):
        knobs = knobs_of(folders["gpt-2"], lora, save_dtype=save_dtype)
        out = tmp_path / save_dtype
        save_student(stage_of(knobs, out), open_student(knobs, "cpu"), folders["gpt-2"])
        tensors = load_file(out / "student/model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, save_dtype)}
        assert json.loads((out / "student/config.json").read_text())["dtype"] == save_dtype
        assert (out / "adapter").is_dir() == (lora is not None)


def test_the_seed_decides_the_adapters(folders):
    def first(seed: int) -> torch.Tensor:
        model = open_student(knobs_of(folders["gpt-2"], {}, seed=seed), "cpu")
        return next(p for p in model.parameters() if p.requires_grad)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_only_the_named_layers_get_adapters_and_an_untied_head_may_be_one(folders, tmp_path):
    lora = {"target_modules": ["qkv_proj", "lm_head"]}
    knobs = knobs_of(folders["phi-3.5-mini"], lora)
    model = trained(knobs)
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert names == {"qkv_proj", "lm_head"}
    save_student(stage_of(knobs, tmp_path), model, folders["phi-3.5-mini"])
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    largest = logits_of(model).abs().max()
    assert (logits_of(saved) - logits_of(model)).abs().max() < 1e-5 * largest
    fused, plain = gradients_of(model), gradients_of(model, fused=False)
    assert all(torch.allclose(fused[key], plain[key], rtol=1e-4, atol=1e-4) for key in plain)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("q_porj", r"names no linear layer of the student \(did you mean 'q_proj'\?\); its layers"),
        ("mlp", "names no linear layer"),
        ("embed_tokens", "names no linear layer"),
        ("lm_head", "which shares its weights with the input embedding"),
    ],
)
def test_layers_that_cannot_have_an_adapter_are_refused(folders, target, says):
    knobs = knobs_of(folders["qwen3"], {"target_modules": [target]})
    with pytest.raises(SpecError, match=says):
        open_student(knobs, "cpu")


def test_dropout_that_fused_experts_cannot_have_is_refused(folders):
    with pytest.raises(SpecError, match=r"train.lora: peft cannot adapt .*deepseek-v3.*dropout"):
        open_student(knobs_of(folders["deepseek-v3"], {"dropout": 0.1}), "cpu")


def test_four_bits_are_refused_without_a_gpu_or_their_package(folders, monkeypatch):
    knobs = knobs_of(folders["gpt-2"], {"quantize": "nf4"})
    with pytest.raises(SpecError, match="needs a CUDA device, but the student trains on cpu"):
        open_student(knobs, "cpu")
    monkeypatch.setitem(importlib.util.sys.modules, "bitsandbytes", None)
    with pytest.raises(SpecError, match="pip install bitsandbytes"):
        open_student(knobs, "cuda:0")


def test_a_checkpoint_holds_the_adapters_alone_and_a_new_student_goes_on_from_it(folders, tmp_path):
    knobs = knobs_of(folders["qwen3"], {"rank": 4, "dropout": 0.3}, gradient_checkpointing=True)

    def step(model, optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        loss_of(model.train(), 70).backward()
        optimizer.step()

    def start() -> tuple:
        model = open_student(knobs, "cpu")
        wanted = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(wanted, lr=0.01, fused=True)

    whole, other = start(), start()
    step(*whole, 1)
    checkpoint.write(Folder(str(tmp_path)), 1, *whole)
    step(*whole, 2)
    file = next((tmp_path / "scratch").iterdir())
    assert all(".lora_" in name for name in load_file(file))
    assert checkpoint.resume(Folder(str(tmp_path)), *other) == 1
    step(*other, 2)
    reached = dict(other[0].named_parameters())
    assert all(torch.equal(p, reached[name]) for name, p in whole[0].named_parameters())


@pytest.mark.parametrize("name", ["qwen3", "deepseek-v3"])
def test_a_random_start_has_the_bases_shape_and_weights_of_its_initializer_by_the_seed(
    folders, name
):
    base = open_student(knobs_of(folders[name]), "cpu").state_dict()
    seeds = (3, 3, 4)
    starts = [open_student(knobs_of(folders[name], start="random", seed=s), "cpu") for s in seeds]
    first, again, other = (model.state_dict() for model in starts)
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in base.items()}
    key = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key]) and not torch.equal(first[key], base[key])
    assert first[key].std() == pytest.approx(0.1, rel=0.1)
    assert all(torch.equal(first[name], again[name]) for name in first)
