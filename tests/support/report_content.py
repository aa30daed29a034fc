"""A report's content of realistic size, written by hand after the shapes that stages give it.

Four models answered 500 questions of two topics; the student is above plain fine-tuning, and of
long questions it keeps less.
"""

import random
from typing import Any

from retort import metrics
from retort.metrics.comparison import compare
from retort.records import Example
from retort.spec import Evaluate, Gate
from retort.stages.report import slices
from retort.stages.report.answers import Answered
from retort.stages.report.examples import side_by_side
from retort.stages.report.gate import judge

RATES = {"teacher": 0.97, "base": 0.41, "student": 0.93, "fine_tuning": 0.87}
SIZES = {"teacher": 1_540_000_000, "base": 124_000_000, "student": 124_000_000}
LABELS = {label: label for label in ("entailment", "neutral", "contradiction")}
WORDS = ("the", "night", "train", "left", "a", "town", "before", "seven", "and", "nobody", "knew")
KNOBS = Evaluate(num_bootstrap=200)


def answered(num: int = 500, words: int = 30, seed: int = 0) -> Answered:
    """Answers of all four models to `num` questions, with texts of about so many words."""
    chance = random.Random(seed)
    examples, texts, vectors = [], {r: {} for r in RATES}, {r: {} for r in RATES}
    for at in range(num):
        topic = chance.choice(["weather", "weather", "trains"])
        length = chance.choice(["short", "short", "long"])
        asked = " ".join(chance.choices(WORDS, k=words))
        wanted = chance.choice([*LABELS])
        examples.append(
            Example(
                f"row-{at}",
                "test",
                [{"role": "user", "content": f"{at}: {asked}?"}],
                wanted,
                metadata={"topic": topic, "length": length},
                options=LABELS,
            )
        )
        luck = chance.random()
        for role, rate in RATES.items():
            hard = 0.25 if length == "long" and role == "student" else 0.0
            right = 0.7 * luck + 0.3 * chance.random() < rate - hard
            said = (
                wanted if right else chance.choice([label for label in LABELS if label != wanted])
            )
            texts[role][f"row-{at}"] = f"{' '.join(chance.choices(WORDS, k=words))}. Answer: {said}"
            vectors[role][f"row-{at}"] = [float(right), 1.0]
    return Answered("accuracy", examples, texts, vectors, ("topic", "length"))


def content(found: Answered, **changed: Any) -> dict[str, Any]:
    """The report's content of these answers; `changed` replaces parts of evaluate's facts."""
    models = {role: _model(found, role) for role in found.texts}
    pairs = {
        role: metrics.difference("accuracy", found.vectors["student"], found.vectors[role], 200, 0)
        for role in models
        if role != "student"
    }
    evaluated = {
        "models": models,
        "differences": {
            role: {"accuracy": each, "agreement": each} for role, each in pairs.items()
        },
        "retention": {
            "accuracy": metrics.ratio(
                "accuracy", found.vectors["student"], found.vectors["teacher"], 200, 0
            )
        },
        **changed,
    }
    made = {
        "name": "night-train",
        "task_type": "nli",
        "models": evaluated["models"],
        "latency_bound_seconds": 0.9,
        "perplexity_of": None,
        "comparison": compare(evaluated) | {"required_retention": 0.9},
        "all_differences": evaluated["differences"],
        "slices": slices.slices(found, KNOBS),
        "training": {
            "warnings": [],
            "controls": {},
            "curves": {"student": _history(1.0), "fine_tuning": _history(1.3)},
        },
        "data": {"split": "test", "num_examples": len(found.examples), "card": CARD},
        "ran": RAN,
        "warnings": ["beware of the night"],
    }
    return {**made, "gate": judge(made, Gate(max_latency_seconds=2.0))}


def examples(found: Answered) -> dict[str, Any]:
    """The answers side by side."""
    return side_by_side(found)


def _model(found: Answered, role: str) -> dict[str, Any]:
    chance, size = random.Random(role), SIZES.get(role, 124_000_000)
    middle = {"teacher": 0.42}.get(role, 0.06 + chance.random() / 100)
    whole = [middle * chance.lognormvariate(0, 0.25) for _ in range(64)]
    middle = sorted(whole)[32]
    latency = {
        "p50": middle,
        "p95": sorted(whole)[60],
        "low": middle * 0.96,
        "high": middle * 1.05,
        "p95_low": middle * 1.4,
        "p95_high": middle * 1.9,
        "n": 64,
    }
    expected = {example.id: example.expected for example in found.examples}
    labels = [*LABELS]
    counts = [[0] * 4 for _ in labels]
    for name, text in found.texts[role].items():
        counts[labels.index(expected[name])][labels.index(text.rsplit(" ", 1)[1])] += 1
    accuracy = metrics.interval("accuracy", found.vectors[role], 200, 0)
    return {
        "model": f"org/{role}",
        "engine": "vllm",
        "engine_version": "0.32.0",
        "dtype": "bfloat16",
        "parameters": size,
        "weights_bytes": 2 * size,
        "peak_memory_bytes": 2_100_000_000 + size,
        "peak_gpu_memory_bytes": None,
        "load_seconds": 9.5,
        "latency_seconds": latency,
        "first_token_seconds": {
            **latency,
            "p50": middle / 9,
            "p95": middle / 6,
            "low": middle / 9.5,
            "high": middle / 8.5,
        },
        "latencies": {"whole": whole, "first_token": [seconds / 9 for seconds in whole]},
        "requests_per_second": 4 / middle,
        "tokens_per_second": 160 / middle,
        "within_bound": {"requests_per_second": 3 / middle, "concurrency": 16, "p95_seconds": 0.8},
        "num_tokens": 20_000,
        "num_prompt_tokens": 30_000,
        "num_rounds": 2,
        "metrics": {
            "accuracy": accuracy,
            "agreement": accuracy,
            "perplexity": {"value": 3.2, "low": 3.0, "high": 3.4, "n": 500},
        },
        "confusion": {"labels": labels, "counts": counts},
        "cost_per_1000_requests": 0.9 * middle,
    }


def _history(scale: float) -> list[dict[str, float]]:
    chance = random.Random(str(scale))
    records: list[dict[str, float]] = []
    for step in range(20, 1001, 20):
        loss = scale * (0.05 + 2 * 0.995**step) * chance.uniform(0.9, 1.1)
        record = {"step": step, "loss": loss, "cross_entropy": loss * 1.2, "learning_rate": 1e-4}
        record |= {"forward_kl": loss * 0.7} if scale == 1.0 else {}
        if step % 200 == 0:
            record |= {"validation_loss": loss * 1.15, "validation_cross_entropy": loss * 1.3}
        records.append(record)
    return records


_LENGTHS = {
    "unit": "tokens",
    "edges": list(range(10, 22)),
    "before": {"num": 66, "counts": list(range(11)), "min": 10, "median": 16, "p95": 20, "max": 21},
    "after": {"num": 55, "counts": [0, *range(10)], "min": 11, "median": 16, "p95": 20, "max": 21},
}
CARD: dict[str, Any] = {
    "name": "night-train",
    "task_type": "nli",
    "funnel": [
        {"step": "rows in", "count": 12_700, "removed": 0, "why": ""},
        {"step": "quarantined", "count": 12_688, "removed": 12, "why": "bad rows"},
        {"step": "examples asked", "count": 12_188, "removed": 500, "why": "test rows"},
        {"step": "responses accepted", "count": 12_001, "removed": 187, "why": "187 truncated"},
        {"step": "kept", "count": 11_401, "removed": 600, "why": "rejected by the filters"},
        {"step": "learned from", "count": 11_201, "removed": 200, "why": "validation"},
    ],
    "reasons": {"rejected": {"verified: wrong answer": 600}, "quarantined": {"not JSON": 12}},
    "recognised": {"nli": 12_688},
    "splits": {},
    "balance": {
        "by": "label",
        "before": {"entailment": 5000, "neutral": 4000, "contradiction": 3188},
        "after": {"entailment": 4700, "neutral": 3700, "contradiction": 2801},
        "weighted": {},
        "num_sampled": None,
    },
    "lengths": {"prompts": _LENGTHS, "answers": _LENGTHS},
    "sources": {},
}
_LICENCE = {
    "license": "apache-2.0",
    "source": "card of the model",
    "distillation": "allowed",
    "note": "As far as known; check it.",
}
RAN: dict[str, Any] = {
    "spec": {
        "name": "night-train",
        "generate": {"teacher": "org/teacher"},
        "train": {"student": "org/base"},
    },
    "versions": {"retort": "0.1.0", "vllm": "0.32.0"},
    "hardware": {"cpu": "Xeon", "cores": 2, "memory_bytes": 25_276_502_016, "gpus": []},
    "licences": {
        "teacher": _LICENCE,
        "base": {**_LICENCE, "license": None, "distillation": "unknown"},
    },
    "money": {
        "input_tokens": 410_000,
        "output_tokens": 350_000,
        "engine_seconds": 431.0,
        "cost": None,
    },
    "seconds": {"prepare": 1.2, "generate": 440.0, "train": 122.9, "evaluate": 88.0},
    "energy_joules": None,
}
