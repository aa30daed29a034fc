"""Makes the quickstart's problems, teacher and base from nothing, with fixed seeds.

`python examples/quickstart/make.py` takes about twenty minutes on two idle CPU cores and
overwrites data/ and models/ beside this file. The base is left under-trained on purpose: it knows
the language and the format of a solution, but hardly any arithmetic.
"""

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from learn import Recipe, accuracy, build_model, train
from tokenizer import make_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast
from world import Problem, problems, sample_texts

HERE = Path(__file__).resolve().parent
NUM_ROWS = {"train": 6_400, "validation": 200, "test": 500}
SEED = 20_260

TEACHER = Recipe(
    layers=4,
    hidden=192,
    heads=6,
    inner=576,
    num_problems=60_000,
    epochs=3,
    batch_size=64,
    learning_rate=1.5e-3,
    seed=1,
    autocast=True,
)
BASE = Recipe(
    layers=2,
    hidden=64,
    heads=2,
    inner=128,
    num_problems=9_000,
    epochs=6,
    batch_size=64,
    learning_rate=4e-3,
    seed=2,
    autocast=False,
)


def write_split(split: str, rows: list[Problem]) -> None:
    """One JSON object per line: id, question, answer."""
    path = HERE / "data" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, problem in enumerate(rows):
            row = {
                "id": f"{split}-{number:05d}",
                "question": problem.question,
                "answer": problem.answer,
            }
            file.write(json.dumps(row) + "\n")


def make_model(
    name: str,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    own: Iterator[Problem],
    validation: list[Problem],
) -> None:
    """Trains one model on its own problems and writes its folder, weights as bfloat16."""
    started = time.monotonic()
    model = build_model(recipe, tokenizer)
    print(f"{name}: {model.num_parameters():,} parameters", flush=True)
    train(model, tokenizer, list(islice(own, recipe.num_problems)), recipe)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = HERE / "models" / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(
        f"{name}: {accuracy(model, tokenizer, validation):.1%} of validation,"
        f" {time.monotonic() - started:.0f} s",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(2)  # sums are split by thread, so another count gives other last digits
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer(sample_texts())
    seen: set[str] = set()  # shared, so no question occurs twice anywhere in this world
    rows = {
        split: list(islice(problems(split, SEED, seen), count)) for split, count in NUM_ROWS.items()
    }
    for split, split_rows in rows.items():
        write_split(split, split_rows)
    print(f"data: {NUM_ROWS}, vocabulary of {len(tokenizer)} tokens", flush=True)
    for name, recipe in {"base": BASE, "teacher": TEACHER}.items():
        own = problems("train", SEED + recipe.seed, seen)
        make_model(name, recipe, tokenizer, own, rows["validation"])


if __name__ == "__main__":
    main()
