"""compressed-tensors, which vLLM loads: smaller weights in the layout of Hugging Face.

The linear layers are quantized; the head and the embeddings stay as they are. `w8a8` has int8
weights with a scale an output channel, and activations quantized token by token as they come;
`fp8` is the same in float8; `w4a16` has int4 weights, packed, with a scale for each group of 32
input channels, found by a search that weighs the error of a channel by its importance.
"""

# N output channels, C input channels, G groups of them
import functools
import importlib.util
from pathlib import Path
from typing import Any

from retort.data import encoding
from retort.errors import SpecError
from retort.records import JsonObject, Message
from retort.stages.export.formats import Student
from retort.stages.export.formats._files import copy_small_files
from retort.stages.export.formats._scales import grouped, search
from retort.store import model_folder

QUANTIZATIONS = ("w8a8", "w4a16", "fp8")
WEIGHS = ("w4a16",)
ENGINE = "vllm"

GROUP = 32
# The largest number that a scale maps a group's largest weight to.
LARGEST = {"w8a8": 127.5, "w4a16": 7.5, "fp8": 448.0}
# What the scale that follows from the largest weight is multiplied by, in a search.
FACTORS = [1.0, *(1.08 - 0.04 * step for step in range(14))]
# Settings of compressed-tensors' QuantizationArgs.
WEIGHTS: dict[str, JsonObject] = {
    "w8a8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "w4a16": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
}
LAYOUTS = {"w8a8": "int-quantized", "w4a16": "pack-quantized", "fp8": "float-quantized"}
# Layers that vLLM joins into one, which has one scheme.
JOINED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}
# Keys of configurations that count the experts of a mixture.
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")


def check(student: Path, quantization: str) -> None:
    """Raises `SpecError` where the format cannot hold a model, or this machine cannot run it."""
    where = f"export compressed_tensors:{quantization}"
    for package in ("compressed_tensors", "vllm"):
        if importlib.util.find_spec(package) is None:
            raise SpecError(
                f"{where} needs {package}: vLLM answers, and brings both; install it, or leave "
                "this format out"
            )
    config = model_folder.text_config(student)
    family = (model_folder.read_config(student).get("architectures") or ["?"])[0]
    cause = None
    if config.get("model_type") == "gpt2":
        cause = "keeps its layers transposed (Conv1D), which the format has no layout for"
    elif any(config.get(key) for key in EXPERTS):
        cause = "is a mixture of experts, whose weights are no linear layers"
    elif quantization == "w4a16" and not _has_groups(config):
        cause = f"has no linear layer with inputs and outputs in multiples of {GROUP}"
    if cause:
        raise SpecError(f"{where}: {family} ({student}) {cause}; leave this format out")
    if quantization == "fp8" and not _has_float8():
        raise SpecError(
            f"{where}: float8 needs an NVIDIA GPU of compute capability 8.9 or higher, and vLLM "
            "cannot run it on a CPU; take w8a8 here"
        )


def _has_groups(config: JsonObject) -> bool:
    """Whether a model has layers for w4a16: those between its hidden state and a wider or narrower
    one, which are in multiples of a group both."""
    names = ("hidden_size", "num_attention_heads", "intermediate_size")
    if not all(config.get(name) for name in names):
        return False
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    attention = heads * (config.get("head_dim") or hidden // heads)
    return not hidden % GROUP and not (attention % GROUP and config["intermediate_size"] % GROUP)


def _has_float8() -> bool:
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))


def write(student: Student, quantization: str, out: Path) -> JsonObject:
    """Writes the weights, and config.json with how to read them.

    The facts name the layers that are left as they are, because their size is no multiple of a
    group, and the error that quantizing made: the mean over layers of the error of their outputs,
    as importance weighs it, relative to them. `plain` is that of scales by the largest weight.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student.folder, dtype="auto")
    if quantization == "w4a16" and model.dtype == torch.float32:
        model = model.bfloat16()  # vLLM has no kernel for float32
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    linear.pop("lm_head", None)
    left = _left_out(linear) if quantization == "w4a16" else []
    _prepare(model, quantization, ["lm_head", *left])
    errors = {
        name: _quantize(module, quantization, student.importance.get(name))
        for name, module in linear.items()
        if name not in left
    }
    _save(model, quantization, out)
    copy_small_files(student.folder, out, without=("config.json",))
    plain, chosen = (sum(parts) / len(errors) for parts in zip(*errors.values(), strict=True))
    error = {"plain": plain, "chosen": chosen}
    return {"num_layers": len(errors), "left": left, "relative_error": error}


def _left_out(linear: JsonObject) -> list[str]:
    """Returns the layers that vLLM could not run in groups, and those it joins them with."""
    odd = {_joined(n) for n, m in linear.items() if m.in_features % GROUP or m.out_features % GROUP}
    return [name for name in linear if _joined(name) in odd]


def _joined(name: str) -> str:
    """Returns the name of the layer that vLLM makes of a layer and its neighbours."""
    parent, _, last = name.rpartition(".")
    return f"{parent}.{JOINED.get(last, last)}"


def _prepare(model: Any, quantization: str, ignored: list[str]) -> None:
    """Gives each layer that is quantized the parameters of its scheme."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    weights = WEIGHTS[quantization]
    activations = None
    if quantization != "w4a16":
        activations = QuantizationArgs(**{**weights, "strategy": "token"}, dynamic=True)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**weights), input_activations=activations
    )
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=ignored,
        format=LAYOUTS[quantization],
        quantization_status="frozen",
    )
    apply_quantization_config(model, config)


def _quantize(module: Any, quantization: str, importance: Any) -> tuple[float, float]:
    """Sets a layer's scales; returns the relative error of the plain ones and of the chosen."""
    import torch

    weight_NC, scale = module.weight.data, module.weight_scale
    size = GROUP if quantization == "w4a16" else weight_NC.shape[1]
    groups = grouped(weight_NC, importance, size)
    largest_NG = groups[0].abs().amax(2).clamp(min=torch.finfo(scale.dtype).tiny)
    base_NG = (largest_NG / LARGEST[quantization]).to(scale.dtype)
    rounded = functools.partial(_rounded, quantization=quantization)
    chosen_NG, plain = search(groups, base_NG, [1.0], rounded)
    chosen = plain
    if quantization == "w4a16":
        chosen_NG, chosen = search(groups, base_NG, FACTORS, rounded)
    scale.data = chosen_NG.reshape(scale.shape)
    return plain, chosen


def _rounded(weights: Any, quantization: str) -> Any:
    """Returns weights, in units of their scale, as the format can hold them."""
    import torch

    if quantization == "fp8":
        return weights.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    bound = 1 << WEIGHTS[quantization]["num_bits"] - 1
    return weights.round().clamp(-bound, bound - 1)


def _save(model: Any, quantization: str, out: Path) -> None:
    """Packs the weights and writes the model."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationStatus

    for module in model.modules():
        if getattr(module, "quantization_scheme", None):
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)


def prompts(out: Path, chats: list[list[Message]]) -> list[str] | None:
    """Returns the chats as the folder's own template renders them, which is what vLLM uses."""
    return encoding.render_texts(encoding.load_tokenizer(str(out)), chats)


def token_ids(out: Path, texts: list[str]) -> list[list[int]] | None:
    """Returns the ids of the tokenizer that vLLM loads: that of transformers."""
    tokenizer = encoding.load_tokenizer(str(out))
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
