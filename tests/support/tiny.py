"""Real tiny things: a tokenizer, Llama models of a few thousand parameters, and a whole job."""

import json
import random
import string
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
CHARACTERS = string.ascii_lowercase + string.digits + string.ascii_uppercase + " .?!#+-*/=,'$"
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, so that every text can be read back exactly."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = TEMPLATE
    return fast


def save_model(
    folder: Path, hidden: int = 64, layers: int = 2, seed: int = 0, vocabulary: int | None = None
) -> Path:
    """Writes a Llama with random weights and its tokenizer; `vocabulary` pads the embedding."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def write_rows(path: Path, n: int, seed: int) -> Path:
    """Writes sums to ask, with their answers."""
    chosen = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        for index in range(n):
            a, b = chosen.randint(1, 99), chosen.randint(1, 99)
            row = {"id": f"{path.stem}-{index}", "question": f"{a} + {b} = ?", "answer": str(a + b)}
            stream.write(json.dumps(row) + "\n")
    return path


def write_job(folder: Path, engine: str, **train: Any) -> Path:
    """Writes a whole job that runs in seconds; the models are random, so nothing is verified.

    With the engine `echo` no model answers, which saves four starts; one is trained nevertheless,
    on the text alone.
    """
    save_model(folder / "models/teacher", hidden=64, seed=1)
    save_model(folder / "models/base", hidden=32, layers=1, seed=2)
    for seed, (split, n) in enumerate({"train": 48, "validation": 8, "test": 16}.items()):
        write_rows(folder / f"data/{split}.jsonl", n, seed)
    job = {
        "name": "tiny",
        "prepare": {
            "task_type": "math",
            **{split: f"data/{split}.jsonl" for split in ("train", "validation", "test")},
        },
        "generate": {
            "teacher": "models/teacher",
            "engine": engine,
            "top_k": 0 if engine == "echo" else 16,
            "max_tokens": 12,
            "max_model_len": 128,
            "shard_size": 16,
            "min_success_ratio": 0.0,
            # The engine transformers is itself a plain forward pass.
            "runtime": {
                "max_num_seqs": 16,
                "num_threads": 1,
                "parity_samples": 4 if engine == "vllm" else 0,
            },
        },
        "curate": {"filters": ["non_empty"]},
        "train": {
            "student": "models/base",
            **({"losses": [{"name": "cross_entropy"}]} if engine == "echo" else {}),
            "batch_size": 8,
            "num_epochs": 2,
            "learning_rate": 1e-3,
            "runtime": {"num_threads": 1},
            **train,
        },
        "evaluate": {
            "engine": engine,
            "latency_samples": 4,
            # Each round, and the likelihoods, cost a start of every model: tested by themselves.
            "rounds": 1,
            "likelihood": False,
            "num_bootstrap": 200,
            "runtime": {"max_num_seqs": 16, "num_threads": 1},
        },
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path
