"""How true the forecasts of `retort plan` are: what it says from a quarter of the data, and what
came with a half and with all of it.

`python -m benchmarks.plan [first seed]`. Three task types: the quickstart's problems, learned from
its teacher's distributions; sentences whose label is that of most of their words; questions whose
answer is a word's own. The base of each has learned before: from other problems, so that it answers
more than half of these rightly, or the most frequent words; words are as frequent as in a language,
so that many are rare, without an end. Of students that began with nothing the curve is none: those
of the problems answer none rightly until they have a thousand, and plans warn of such curves. Nor
is it where most words are known and those that are left are learned all at once. Each seed draws
rows and trainings anew; with seeds below 10 the curve's priors were chosen. A plan is made of the
job with a quarter of its examples (`train.max_examples`), then students learn from two and four
times as many, and their validation score is compared with the plan's 80% band. Trainings run in
this process, so that the time is theirs and not that of starting processes.
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
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import Measure, show
from benchmarks.world import HERE, module
from retort.events import SILENT
from retort.jobs import trials
from retort.jobs.plan import Plan, plan
from retort.jobs.plan.record import at
from retort.jobs.run import JobRun
from retort.metrics.learning_curve import Band
from retort.spec import JobSpec, build
from retort.stages.evaluate import trial
from retort.stages.stage import Stage
from retort.stages.train import loop
from retort.store import Artifact, open_store

Fact = tuple[int, Band, float]  # how many times the examples, the forecast, what came
FIRST_SEED, NUM_SEEDS = 10, {"math": 2, "nli": 4, "qa": 4}
TRAIN = {"math": 3600, "nli": 8192, "qa": 8192, "base": 2800}
VALIDATION = {"math": 400, "nli": 800, "qa": 800}
EPOCHS = {"math": 8, "nli": 4, "qa": 5, "base": 14}
# The forecasts are for so many times the plan's own examples.
TIMES = (2, 4)
# What is claimed: the median error, the share of facts in their band, trainings that a plan takes.
MOST_ERROR, LEAST_HELD, MOST_COST = 0.02, 0.75, 1.5
WORDS, ZIPF, KNOWN = 6000, 1.6, 40
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


def spec_of(task: str, seed: int, folder: Path, base: str | None = None) -> JobSpec:
    """Returns the job of a task, whose rows it writes into a folder; without a base, the job of
    which one comes."""
    folder.mkdir(parents=True)
    size = "base" if base is None else task
    knobs: dict[str, Any] = {"batch_size": 16, "learning_rate": 2e-3}
    if task == "math":
        problems = module("world").problems("train", 1000 + seed, set())
        drawn = islice(problems, TRAIN[size] + VALIDATION[task])
        lines = [json.dumps({"question": each.question, "answer": each.answer}) for each in drawn]
        teacher = str(HERE / "models/teacher")
        base = base or str(HERE / "models/base")
        knobs = {"losses": [{"name": "forward_kl", "temperature": 2}], "adam_beta2": 0.98}
        # Less than the base learned with, or a few examples make it forget the others.
        knobs["learning_rate"] = 1e-3 if size == task else 4e-3
    else:
        made = rows_of(task, seed, WORDS if base else KNOWN)
        number = 4 * (TRAIN[size] + VALIDATION[task])
        lines = list(dict.fromkeys(json.dumps(next(made)) for _ in range(number)))
        teacher = base = base or write_model(folder / "model", seed)
    held, rest = lines[: VALIDATION[task]], lines[VALIDATION[task] :][: TRAIN[size]]
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
                "mode": "answer" if task == "math" else "score",
                "top_k": 16 if task == "math" else 0,
                "max_tokens": 96 if task == "math" else 4,
                "runtime": {**runtime, "parity_samples": 0},
            },
            "curate": {"filters": ["non_empty"]},
            "train": {
                "student": base,
                "learning_rate": 4e-3,
                "weight_decay": 0.01,
                "num_epochs": EPOCHS[size],
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
    # Of this one thread's processor: another process must not make a training longer.
    out, started = job.store.artifact(recipe.stage, recipe.name), time.process_time()
    stage = Stage(recipe.stage, recipe.spec, job.store, inputs, out, SILENT, job.log)
    if recipe.stage == "train":
        facts = loop.fit(stage.arguments(), SILENT)
    else:
        trial.answer(stage.arguments(), f"{inputs['train-trial'].uri}/student", SILENT)
        facts = trial.score(stage)
    digests = {key: artifact.digest for key, artifact in inputs.items()}
    seconds = time.process_time() - started
    return out.commit({"facts": facts, "input_digests": digests, "seconds": seconds})


def stored(spec: JobSpec, folder: Path) -> tuple[JobRun, dict[str, Artifact]]:
    """Returns a job and what its trainings read, made in a store of its own."""
    job = JobRun(spec, open_store(str(folder / "store")), [], lambda name, event: None)
    inputs: dict[str, Artifact] = {}
    for name in ("prepare", "generate", "curate"):
        inputs[name] = job.make(name, dict(inputs))
    return job, inputs


def base_of(folder: str, task: str) -> str:
    """Returns a model that knows the most frequent words of a task, or some of its problems."""
    torch.set_num_threads(1)
    own = Path(folder) / f"base-{task}"
    job, inputs = stored(spec_of(task, len(task), own), own)
    learned = trials.run(job, "base", trials.varied(job.spec), inputs, made_here)
    print(f"base of {task}: {learned.value:.1%} of its own words", flush=True)
    return f"{learned.train.uri}/student"


def forecast(folder: str, way: tuple[str, int, str]) -> dict[str, Any]:
    """Returns for a task, a seed and a base what a plan of a quarter said, what came with more, and
    what a plan of the whole takes."""
    torch.set_num_threads(1)
    task, seed, base = way
    own = Path(folder) / f"{task}-{seed}"
    whole = spec_of(task, seed, own, base)
    number = TRAIN[task] // max(TIMES)
    job, inputs = stored(trials.varied(whole, max_examples=number), own)
    found = plan(job, made_here)
    facts = []
    for times in TIMES:
        size = None if times == max(TIMES) else number * times
        more = trials.varied(whole, max_examples=size)
        came = trials.run(job, f"times_{times}", more, inputs, made_here).value
        facts.append((times, at(found.curve, number * times), came))
    # Its subsets are those above, and each is told by the seconds that it took then.
    of_all = plan(JobRun(trials.varied(whole), job.store, [], job.listen), made_here)
    print(told(task, seed, found, facts), f"  cost {of_all.of_a_training:.2f}", flush=True)
    return {"facts": facts, "cost": of_all.of_a_training}


def told(task: str, seed: int, found: Plan, facts: list[Fact]) -> str:
    """Returns a line of the table."""
    scores = " ".join(f"{point.score.value:6.1%}" for point in found.points)
    came = "".join(
        f"   x{times}: {band.value:.1%} ({band.low:.1%} to {band.high:.1%}), {value:.1%}"
        for times, band, value in facts
    )
    return f"{task:5}{seed:3}  {scores}{came}"


def main() -> None:
    """Prints a line a task and seed, then one JSON line a measure."""
    first = int(sys.argv[1]) if len(sys.argv) > 1 else FIRST_SEED
    spawning = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="retort-bench-") as folder,
        ProcessPoolExecutor(2, mp_context=spawning) as pool,
    ):
        learned = pool.map(partial(base_of, folder), NUM_SEEDS)
        bases = dict(zip(NUM_SEEDS, learned, strict=True))
        ways = [(t, first + n, bases[t]) for t, number in NUM_SEEDS.items() for n in range(number)]
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
