"""The zoo: tiny models of the families that people distil, random weights, real tokenizers.

`python -m tests.support.zoo FOLDER` writes them all. Each keeps what makes its family hard: head
sizes, rotary embeddings, attention and experts are of the real shape; only width and depth are
small.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

TEXTS = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "data" / "train.jsonl"
VOCABULARY = 640  # of the embedding: as in the real models, more than the tokenizer's
NUM_TOKENS = 600


class Style(NamedTuple):
    """How a family writes a chat: its special tokens, and a template."""

    bos: str | None
    eos: str
    pad: str
    marks: list[str]
    template: str


DEEPSEEK = Style(
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    ["<｜User｜>", "<｜Assistant｜>"],
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
)
GEMMA = Style(
    "<bos>",
    "<end_of_turn>",
    "<pad>",
    ["<start_of_turn>"],
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else "
    "m.role %}{{ '<start_of_turn>' + role + '\n' + m.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
)
# GPT-2 has one special token, which begins and ends; people take it for padding too.
GPT2 = Style(
    "<|endoftext|>",
    "<|endoftext|>",
    "<|endoftext|>",
    [],
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
)
LLAMA = Style(
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    ["<|start_header_id|>", "<|end_header_id|>"],
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}",
)
MISTRAL = Style(
    "<s>",
    "</s>",
    "<pad>",
    ["[INST]", "[/INST]"],
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}"
    "{% endfor %}",
)
PHI3 = Style(
    "<s>",
    "<|end|>",
    "<|endoftext|>",
    ["<|system|>", "<|user|>", "<|assistant|>"],
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
)
PHI4 = PHI3._replace(bos=None, template=PHI3.template.replace("\n", ""))
QWEN = Style(
    None,
    "<|im_end|>",
    "<|endoftext|>",
    ["<|im_start|>"],
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)

# Heads have the real size: 64 in GPT-2, 96 in Phi-3 and 3.5, 192 (128 + 64) in DeepSeek, 256 in
# Gemma, else 128.
PHI3_SHAPE = {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2}


def phi(short: float, long: float, **more: Any) -> dict[str, Any]:
    """Phi's shape from 128k on: 48 factors stretch the 96 dimensions of a head that are rotated,
    the long ones in a context of more than 4096 tokens."""
    return {
        **PHI3_SHAPE,
        "max_position_embeddings": 131072,
        "sliding_window": 262144,
        **more,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1 + short * i / 48 for i in range(48)],
            "long_factor": [1 + long * i / 48 for i in range(48)],
            "original_max_position_embeddings": 4096,
            **more.get("rope_parameters", {}),
        },
    }


FAMILIES: dict[str, tuple[Style, type, dict[str, Any]]] = {
    "deepseek-v3": (
        DEEPSEEK,
        DeepseekV3Config,
        {
            "num_hidden_layers": 3,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": 96,
            "moe_intermediate_size": 64,
            "n_routed_experts": 16,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "first_k_dense_replace": 1,
            "num_mtp_layers": 0,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "max_position_embeddings": 163840,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 40.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "gemma-3": (
        GEMMA,
        Gemma3TextConfig,
        {
            "num_hidden_layers": 6,  # the last one attends to all, the others to a window
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        },
    ),
    "gpt-2": (GPT2, GPT2Config, {"hidden_size": 128, "num_attention_heads": 2}),
    "llama-3.1": (
        LLAMA,
        LlamaConfig,
        {
            "hidden_size": 512,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "mistral": (
        MISTRAL,
        MistralConfig,
        {
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "sliding_window": 4096,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phi-3-mini-4k": (
        PHI3,
        Phi3Config,
        {**PHI3_SHAPE, "max_position_embeddings": 4096, "sliding_window": 2047},
    ),
    "phi-3-mini-128k": (PHI3, Phi3Config, phi(1.0, 60.0)),
    "phi-3.5-mini": (PHI3, Phi3Config, phi(1.8, 63.8)),
    "phi-4-mini": (
        PHI4,
        Phi3Config,
        phi(
            0.0,
            46.0,
            hidden_size=384,
            num_attention_heads=3,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters={"partial_rotary_factor": 0.75},
        ),
    ),
    "qwen2.5": (
        QWEN,
        Qwen2Config,
        {
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3": (
        QWEN,
        Qwen3Config,
        {
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
}


def train_tokenizer(style: Style) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the quickstart's questions."""
    texts = [json.loads(line)["question"] for line in TEXTS.read_text().splitlines()[:2000]]
    specials = [token for token in (style.bos, style.eos, style.pad, *style.marks) if token]
    specials = list(dict.fromkeys(specials))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=style.bos,
        eos_token=style.eos,
        pad_token=style.pad,
        additional_special_tokens=style.marks,
        chat_template=style.template,
        clean_up_tokenization_spaces=False,
    )


def save_family(name: str, folder: Path, seed: int = 0) -> Path:
    """Writes a family's model and tokenizer; returns their folder."""
    style, config_class, shape = FAMILIES[name]
    tokenizer = train_tokenizer(style)
    config = config_class(
        **{"num_hidden_layers": 2, "intermediate_size": 256, **shape},
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for key, buffer in model.named_buffers():
        # Experts are chosen with this bias and weighed without it: zero would hide a mistake.
        if key.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    for key, parameter in model.named_parameters():
        # Likewise the biases of queries, keys and values.
        if key.endswith("_proj.bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


if __name__ == "__main__":
    for family in FAMILIES:
        print(save_family(family, Path(sys.argv[1])))
