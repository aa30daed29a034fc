"""The student: opened for training, with or without adapters, and saved as a plain model folder.

Adapters are merged in fp32 into a second copy of the base, never into the model that trains, so
that neither its precision in training nor 4-bit weights round the student.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retort.errors import SpecError, did_you_mean
from retort.spec import Lora, Train
from retort.stages.stage import Stage
from retort.stages.train.checkpoint import put
from retort.store import model_folder

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def open_student(knobs: Train, device: str) -> Any:
    """Returns the model to train, on the device; its trainable parameters are always fp32.

    With `start: random` they are drawn anew, by the initializer of the base's configuration. With
    `lora` those are the adapters alone, initialised by the seed on the CPU (beside 4 bits on
    the device), and the frozen weights are in `knobs.dtype`, or in 4 bits. In a mixture of experts
    the adapted layers are peft's own choice: experts and router, no dense MLP. Raises `SpecError`
    for target modules that the model does not have or that cannot be merged, and where 4 bits are
    not possible.
    """
    if knobs.start == "random":
        torch.manual_seed(knobs.seed)
        config = transformers.AutoConfig.from_pretrained(knobs.student)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model = model.to(device)
    elif knobs.lora is None:
        model = _load(knobs, torch.float32).to(device)
    else:
        model = _with_adapters(knobs, knobs.lora, device)
    if knobs.gradient_checkpointing:
        # Re-entrant checkpointing loses the gradient where a block's input is frozen. This comes
        # after peft, which would otherwise make the embedding's output require a gradient.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def save_student(
    stage: Stage, model: Any, base: Path, trained: dict[str, Tensor] | None = None
) -> None:
    """Writes `student/`, with the base's own tokenizer files, so the template cannot drift.

    With adapters `student/` is the merged model, because evaluation and release load a plain
    folder, and `adapter/` holds the adapters, unmerged and in fp32. Without adapters the model is
    cast in place to the precision in which it is saved: training ends here. `trained` are the
    weights of a sharded model, which a second one on the CPU loads.
    """
    knobs = stage.spec.train
    if trained is not None:
        model = open_student(knobs, "cpu")
        put(model, trained)
    stored = transformers.AutoConfig.from_pretrained(knobs.student).dtype or torch.float32
    dtype = stored if knobs.save_dtype == "base" else getattr(torch, knobs.save_dtype)
    plain = (
        model if knobs.lora is None else _merged(knobs, model, torch.promote_types(stored, dtype))
    )
    with tempfile.TemporaryDirectory(prefix="retort-") as scratch:
        plain.to(dtype).save_pretrained(scratch)
        model_folder.copy_tokenizer(base, Path(scratch))
        stage.out.put_tree(Path(scratch), "student")
    if knobs.lora is not None:
        with tempfile.TemporaryDirectory(prefix="retort-") as scratch:
            model.save_pretrained(scratch, save_embedding_layers=False)
            weights, config = (Path(scratch) / name for name in ADAPTER_FILES)  # no model card
            stage.out.write(f"adapter/{weights.name}", weights.read_bytes())
            # peft writes a set in any order; sorted, equal runs give equal files.
            settings = json.loads(config.read_bytes())
            if isinstance(settings["target_modules"], list):
                settings["target_modules"].sort()
            stage.out.write_json(f"adapter/{config.name}", settings)


def _load(knobs: Train, dtype: torch.dtype, **more: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(knobs.student, dtype=dtype, **more)


def _with_adapters(knobs: Train, lora: Lora, device: str) -> Any:
    from peft import LoraConfig, get_peft_model

    dtype = getattr(torch, knobs.dtype)
    more = {} if lora.quantize == "none" else _four_bits(dtype, device)
    model = _load(knobs, dtype, **more)
    _check_targets(model, lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        # GPT-2's layers store their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    torch.manual_seed(knobs.seed)
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)  # adapters in fp32
    except ValueError as error:  # fused experts take no dropout
        raise SpecError(f"train.lora: peft cannot adapt {knobs.student}: {error}") from error
    return adapted.to(device)


def _four_bits(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Returns how to load linear layers as NormalFloat4 (QLoRA, arXiv:2305.14314, section 3)."""
    where = "train.lora.quantize: nf4"
    if not device.startswith("cuda"):
        raise SpecError(
            f"{where} needs a CUDA device, but the student trains on {device}; "
            "set train.lora.quantize: none, or train on a machine with a GPU"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SpecError(
            f"{where} needs the package bitsandbytes, which is not installed; "
            "run `pip install bitsandbytes`, or set train.lora.quantize: none"
        )
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Raises `SpecError` unless each name is one of linear layers, and none that of a tied head."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    modules = dict(model.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    for target in targets:
        named = {name for name in modules if f".{name}".endswith(f".{target}")}
        if not named or named - linear:
            allowed = sorted({name.rpartition(".")[2] for name in linear})
            raise SpecError(
                f"train.lora.target_modules: '{target}' names no linear layer of the student"
                f"{did_you_mean(target, allowed)}; its layers are {', '.join(allowed)}"
            )
        if any(modules[name] is head for name in named) and head.weight is embedding.weight:
            raise SpecError(
                f"train.lora.target_modules: '{target}' is the student's head, which shares its "
                "weights with the input embedding, so an adapter on it cannot be merged; leave it "
                "out"
            )


@torch.no_grad()  # type: ignore[untyped-decorator]
def _merged(knobs: Train, model: Any, dtype: torch.dtype) -> Any:
    """Returns a copy of the base on the CPU with the adapters merged into it, in fp32.

    `dtype` must hold both the base's stored weights and the student's. 4-bit layers are replaced by
    their dequantized weights, because the adapters were trained beside those.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    trained, plain = model.get_base_model(), _load(knobs, dtype)
    for name, module in trained.named_modules():
        is_adapter = isinstance(module, LoraLayer)
        layer = module.get_base_layer() if is_adapter else module
        is_quantized = hasattr(getattr(layer, "weight", None), "quant_state")
        if is_quantized and not name.endswith(".base_layer"):
            plain.get_submodule(name).weight.copy_(dequantize_module_weight(layer))
        if is_adapter:
            # Fused experts have nested adapters, one for each of their parameters.
            inner = plain.get_submodule(name.replace(".base_layer", ""))
            weight = getattr(inner, getattr(module, "parameter_name", "weight"))
            delta: Tensor = module.get_delta_weight("default")
            weight.copy_(weight.float() + delta.float().cpu())
    return plain
