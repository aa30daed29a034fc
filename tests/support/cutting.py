"""Tiny teachers of every family that can be cut, with random weights and several layers."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GraniteConfig,
    SmolLM3Config,
)

from retort.spec import JobSpec, build
from tests.support import zoo

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
WINDOW = {"sliding_window": 5}  # shorter than the tests' texts
# What the zoo's own families leave out.
MORE: dict[str, tuple[type, dict[str, Any]]] = {
    "gemma": (GemmaConfig, SMALL),
    "gemma-2": (Gemma2Config, {**SMALL, **WINDOW, "query_pre_attn_scalar": 16}),
    "granite": (GraniteConfig, {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "smollm3": (SmolLM3Config, {**SMALL, "no_rope_layers": [1, 0, 1, 1, 0]}),
}
CLASSES = {name: style[1:] for name, style in zoo.FAMILIES.items()} | MORE
NUM_LAYERS = 5


def save_teacher(family: str, folder: Path, **shape: Any) -> Path:
    """Writes a family's model of five layers, without a tokenizer, in float32."""
    config_class, own = CLASSES[family]
    window = WINDOW if "sliding_window" in own and "phi" not in family else {}
    if family == "qwen2.5":
        window = {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}
    config = config_class(
        **{"intermediate_size": 96, **own, **window, **shape},
        vocab_size=zoo.VOCABULARY,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("bias", "norm.weight")):  # zeros and ones would hide a mistake
            torch.nn.init.normal_(weight, mean=weight.mean().item(), std=0.1)
    model.save_pretrained(folder)
    return folder


def job_of(teacher: Path | str, knobs: dict[str, Any], **sections: Any) -> JobSpec:
    """The spec of a job whose student is cut from a teacher."""
    return build(
        {
            "name": "cut",
            "prepare": {"train": "rows.jsonl", "test": "rows.jsonl"},
            "generate": {"teacher": str(teacher), "engine": "transformers"},
            "train": {"student": {"from_teacher": knobs}},
            **sections,
        }
    )


def ids_of(seed: int = 0, rows: int = 3, length: int = 12) -> torch.Tensor:
    """Random token ids."""
    chosen = torch.Generator().manual_seed(seed)
    return torch.randint(3, zoo.NUM_TOKENS, (rows, length), generator=chosen)


@torch.inference_mode()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """A model's logits."""
    found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found
