"""A second base for the quickstart: digits in pairs, words in pieces, the same training."""

import contextlib
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from benchmarks.world import module

PIECES = r"\d{1,2}| ?[A-Za-z]+| ?[^A-Za-z\d ]+| "
VOCABULARY, NUM_TEXTS = 480, 8_000


def make_tokenizer(texts: list[str], specials: list[str], template: str) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer that never joins three digits."""
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )


def make_base(folder: Path) -> None:
    """Writes the base: the quickstart's own recipe, on the same problems, with this tokenizer."""
    make, learn, world, words = map(module, ("make", "learn", "world", "tokenizer"))
    texts = world.sample_texts()[:NUM_TEXTS]
    tokenizer = make_tokenizer(texts, words.SPECIALS, words.CHAT_TEMPLATE)
    torch.set_num_threads(1)
    seen: set[str] = set()
    for split, count in make.NUM_ROWS.items():
        list(islice(world.problems(split, make.SEED, seen), count))
    own = world.problems("train", make.SEED + make.BASE.seed, seen)
    model = learn.build_model(make.BASE, tokenizer)
    with contextlib.redirect_stdout(sys.stderr):
        problems = list(islice(own, make.BASE.num_problems))
        learn.train(model, tokenizer, problems, make.BASE)
    save(model, tokenizer, folder)


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a model of the quickstart's kind as the quickstart's own are: weights as bfloat16."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
