"""A tiny model that writes word problems of the quickstart's kind: it continues a list of them.

Its chat template shows it the last problems of a request's list and leaves the instructions out,
which a model of this size could not follow.
"""

import contextlib
import random
import sys
from itertools import islice
from pathlib import Path

import torch
from transformers import GenerationConfig

from benchmarks.world import module
from retort.stages.expand.ways import SELF_INSTRUCT

NUM_SHOWN, NUM_LISTED, NUM_WRITTEN, NUM_LISTS, SEED = 3, 8, 4, 6_000, 7
TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set lines = message['content'].split('\n\n')[1].split('\n') %}"
    f"{{{{ '<user>' + (lines[-{NUM_SHOWN}:] | join('\n')) }}}}"
    "{% else %}{{ '<assistant>' + message['content'] + '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def listed(questions: list[str]) -> str:
    """A numbered list, as requests and replies have it."""
    return "\n".join(f"{place}. {text}" for place, text in enumerate(questions, start=1))


def make_writer(folder: Path) -> None:
    """Trains the model on lists of training problems of the quickstart's world and writes it."""
    make, learn, world, words = map(module, ("make", "learn", "world", "tokenizer"))
    seen: set[str] = set()
    for split, count in make.NUM_ROWS.items():
        list(islice(world.problems(split, make.SEED, seen), count))
    own = world.problems("train", make.SEED + SEED, seen)
    pool = [problem.question for problem in islice(own, 4 * NUM_LISTS)]
    tokenizer = words.make_tokenizer([*world.sample_texts(), listed(pool)])
    tokenizer.chat_template = TEMPLATE
    chosen, lists = random.Random(SEED), []
    for _ in range(NUM_LISTS):
        drawn = chosen.sample(pool, NUM_LISTED + NUM_WRITTEN)
        asked = SELF_INSTRUCT.format(examples=listed(drawn[:NUM_LISTED]), count=NUM_WRITTEN)
        lists.append(world.Problem(asked, listed(drawn[NUM_LISTED:]), "", "list", ()))
    recipe = learn.Recipe(
        layers=2,
        hidden=96,
        heads=3,
        inner=256,
        num_problems=NUM_LISTS,
        epochs=1,
        batch_size=32,
        learning_rate=5e-3,
        seed=SEED,
        autocast=False,
    )
    torch.set_num_threads(1)
    model = learn.build_model(recipe, tokenizer)
    with contextlib.redirect_stdout(sys.stderr):
        learn.train(model, tokenizer, lists, recipe)
    model.config.max_position_embeddings = 512
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
