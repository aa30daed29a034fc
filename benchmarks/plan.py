"""How true the forecasts of `retort plan` are: what it says from a quarter of the data, and what
came with a half and with all of it.

`python -m benchmarks.plan [seeds]`. Three task types: the quickstart's problems, learned from its
teacher's distributions; sentences whose label is that of most of their words; questions whose
answer is a word's own. In the last two a student begins from random weights, and words are as
frequent as in a language, so that many are rare. Each seed draws rows and trainings anew. A plan is
made of the job with a quarter of its examples (`train.max_examples`), then students learn from two
and four times as many, and their validation score is compared with the plan's 80% band. Trainings
run in this process, so that the time is theirs and not that of starting processes.
"""

import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import Measure, show
from retort.events import SILENT
from retort.jobs import trials
from retort.jobs.plan import plan
from retort.jobs.plan.record import at
from retort.jobs.run import JobRun
from retort.spec import JobSpec, build
from retort.stages.evaluate import trial
from retort.stages.stage import Stage
from retort.stages.train import loop
from retort.store import Artifact, open_store

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
SEEDS, TASKS = (0, 1, 2, 3), ("math", "nli", "qa")
TRAIN, VALIDATION = {"math": 1280, "nli": 2048, "qa": 2048}, 500
EPOCHS = {"math": 12, "nli": 12, "qa": 12}
# The forecasts are for so many times the plan's own examples.
TIMES = (2, 4)
# What is claimed: the median error, the share of facts in their band, trainings that a plan takes.
MOST_ERROR, LEAST_HELD, MOST_COST = 0.02, 0.75, 1.5
WORDS, ZIPF, KNOWN = 1500, 1.6, 30
LABELS, ANSWERS = ("negative", "neutral", "positive"), 12
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '> ' + m.content }}"
    "{% if m.role == 'assistant' %} <eos>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def rows_of(task: str, seed: int, known: int = WORDS) -> Iterator[dict[str, str]]:
    """Yields rows of a task without end, of the most frequent words that are `known`. What words
    mean is the same for all seeds."""
    meaning, random_ = random.Random(task), random.Random(f"{task}-{seed}")
    weights = [(rank + 5) ** -ZIPF if rank < known else 0.0 for rank in range(WORDS)]
    means = [meaning.randrange(ANSWERS) for _ in range(WORDS)]
    names = [f"w{number}" for number in range(WORDS)]
    while True:
        chosen = random_.choices(range(WORDS), weights, k=3 if task == "nli" else 2)
        text = " ".join(names[word] for word in chosen)
        if task == "nli":
            total = sum(means[word] % 3 - 1 for word in chosen)
            label = LABELS[(total > 0) - (total < 0) + 1]
            yield {"prompt": text, "label": label}
        else:
            yield {"question": text, "answer": f"a{means[chosen[0]]}"}


def write_model(folder: Path, seed: int) -> str:
    """Writes a small model with random weights that knows the words as its tokens."""
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    words = [f"w{n}" for n in range(WORDS)] + [f"a{n}" for n in range(ANSWERS)] + [*LABELS]
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def spec_of(task: str, seed: int, folder: Path) -> JobSpec:
    """Returns the job of a task, whose rows and models it writes into a folder."""
    folder.mkdir(parents=True)
    knobs: dict[str, Any] = {}
    if task == "math":
        lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
        random.Random(seed).shuffle(lines)
        teacher, base = (str(QUICKSTART / "models" / name) for name in ("teacher", "base"))
        knobs = {"losses": [{"name": "forward_kl", "temperature": 2}], "adam_beta2": 0.98}
    else:
        made = rows_of(task, seed)
        lines = [json.dumps(next(made)) for _ in range(4 * (TRAIN[task] + VALIDATION))]
        lines = list(dict.fromkeys(lines))
        teacher = base = write_model(folder / "model", seed)
    held, rest = lines[:VALIDATION], lines[VALIDATION:][: TRAIN[task]]
    (folder / "validation.jsonl").write_text("\n".join(held) + "\n")
    (folder / "train.jsonl").write_text("\n".join(rest) + "\n")
    runtime = {"num_threads": 1, "max_num_seqs": 250}
    return build(
        {
            "name": f"{task}-{seed}",
            "prepare": {
                "task_type": task,
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "deduplicate": {"exact": False, "near": False},
                "decontaminate": {"enabled": False},
                **({"labels": list(LABELS)} if task == "nli" else {}),
            },
            "generate": {
                "teacher": teacher,
                "engine": "transformers",
                "mode": "score",
                "top_k": 16 if task == "math" else 0,
                "max_tokens": 96 if task == "math" else 4,
                "runtime": {**runtime, "parity_samples": 0},
            },
            "curate": {"filters": ["non_empty"]},
            "train": {
                "student": base,
                "learning_rate": 4e-3,
                "weight_decay": 0.01,
                "num_epochs": EPOCHS[task],
                "seed": seed,
                "runtime": {"num_threads": 1},
                **knobs,
            },
            "evaluate": {"engine": "transformers", "dtype": "float32", "runtime": runtime},
        }
    )


def made_here(job: JobRun, name: str, inputs: dict[str, Artifact]) -> Artifact:
    """Returns an artifact as a job makes it, a training and its answers in this process."""
    recipe = job.recipes[name]
    if (found := job.cached(name, inputs)) or recipe.stage not in ("train", "evaluate"):
        return found or job.make(name, inputs)
    out, started = job.store.artifact(recipe.stage, recipe.name), time.time()
    stage = Stage(recipe.stage, recipe.spec, job.store, inputs, out, SILENT, job.log)
    if recipe.stage == "train":
        facts = loop.fit(stage.arguments(), SILENT)
    else:
        trial.answer(stage.arguments(), f"{inputs['train-trial'].uri}/student", SILENT)
        facts = trial.score(stage)
    digests = {key: artifact.digest for key, artifact in inputs.items()}
    seconds = time.time() - started
    return out.commit({"facts": facts, "input_digests": digests, "seconds": seconds})


def forecast(folder: str, way: tuple[str, int]) -> dict[str, Any]:
    """Returns for a task and a seed what a plan of a quarter said, what came, and its cost."""
    torch.set_num_threads(1)
    task, seed = way
    whole = spec_of(task, seed, Path(folder) / f"{task}-{seed}")
    number = TRAIN[task] // max(TIMES)
    quarter = trials.varied(whole, max_examples=number)
    store = open_store(f"{folder}/{task}-{seed}/store")
    job = JobRun(quarter, store, [], lambda name, event: None)
    inputs: dict[str, Artifact] = {}
    for name in ("prepare", "generate", "curate"):
        inputs[name] = job.make(name, dict(inputs))
    found = plan(job, made_here)
    facts = []
    for times in TIMES:
        more = trials.varied(whole, max_examples=number * times)
        came = trials.run(job, f"times_{times}", more, inputs, made_here).value
        facts.append((times, at(found.curve, number * times), came))
    scores = [point.score.value for point in found.points]
    print(
        f"{task:6}{seed:3}  {' '.join(f'{score:6.1%}' for score in scores)}",
        *(
            f"  x{n}: {b.value:6.1%} ({b.low:.1%} to {b.high:.1%}) {came:6.1%}"
            for n, b, came in facts
        ),
        f"  cost {found.of_a_training:.2f}",
        flush=True,
    )
    return {"facts": facts, "cost": found.of_a_training}


def main() -> None:
    """Prints a line a task and seed, then one JSON line a measure."""
    seeds = range(int(sys.argv[1])) if len(sys.argv) > 1 else SEEDS
    ways = [(task, seed) for task in TASKS for seed in seeds]
    spawning = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="retort-bench-") as folder,
        ProcessPoolExecutor(2, mp_context=spawning) as pool,
    ):
        found = list(pool.map(partial(forecast, folder), ways))
    cases = [case for each in found for case in each["facts"]]
    error = median(abs(band.value - came) for _, band, came in cases)
    held = mean(band.low <= came <= band.high for _, band, came in cases)
    cost = max(each["cost"] for each in found)
    measures: list[Measure] = [
        ("plan.median_error", error, MOST_ERROR, error <= MOST_ERROR),
        (f"plan.held_of_{len(cases)}", held, LEAST_HELD, held >= LEAST_HELD and len(cases) >= 20),
        ("plan.trainings", cost, MOST_COST, cost <= MOST_COST),
    ]
    show(measures)


if __name__ == "__main__":
    main()
