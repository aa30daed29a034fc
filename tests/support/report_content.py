"""A report's content of realistic size, written by hand.

Four models answered 500 questions of two topics; the student is above plain fine-tuning, and of
long questions it keeps less.
"""

import random
from dataclasses import replace

from retort import metrics
from retort.metrics.comparison import compare
from retort.metrics.comparison.shapes import (
    ConfusionMatrix,
    DataContent,
    Difference,
    Estimate,
    Evaluated,
    Latency,
    Licence,
    LoadLimit,
    MeasuredModel,
    ReportContent,
    RunContent,
    TeacherCost,
    TrainingContent,
)
from retort.records import Example
from retort.spec import Evaluate, Gate
from retort.stages.curate.data_card import as_html
from retort.stages.curate.data_card.card import (
    DataCard,
    FunnelStep,
    GroupBalance,
    LengthCounts,
    LengthHistogram,
    Reasons,
)
from retort.stages.report import slices
from retort.stages.report.examples import side_by_side
from retort.stages.report.gate import judge
from retort.stages.report.measurements import Answered
from retort.stages.report.rendering import draw, page

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


def evaluated(found: Answered) -> Evaluated:
    """Evaluate's facts about these answers."""
    models = {role: _model(found, role) for role in found.texts}
    student, teacher = (found.vectors[role] for role in ("student", "teacher"))
    differences = {
        role: Difference.of(metrics.difference("accuracy", student, found.vectors[role], 200, 0))
        for role in models
        if role != "student"
    }
    return Evaluated(
        models=models,
        differences={
            role: {"accuracy": each, "agreement": each} for role, each in differences.items()
        },
        retention={"accuracy": Estimate.of(metrics.ratio("accuracy", student, teacher, 200, 0))},
        num_examples=len(found.examples),
    )


def content(found: Answered) -> ReportContent:
    """The report's content of these answers."""
    facts = evaluated(found)
    comparison = compare(facts, required_retention=0.9)
    return ReportContent(
        name="night-train",
        task_type="nli",
        models=facts.models,
        comparison=comparison,
        gate=judge(facts.models["student"], comparison, Gate(max_latency_seconds=2.0)),
        data=DataContent("test", facts.num_examples, card={"name": "night-train"}),
        ran=RAN,
        all_differences=facts.differences,
        latency_bound_seconds=0.9,
        slices=slices.slices(found, KNOBS),
        training=TrainingContent(curves={"student": _history(1.0), "fine_tuning": _history(1.3)}),
        warnings=["beware of the night"],
    )


def page_of(content: ReportContent, found: Answered) -> bytes:
    """The report's page, with pictures and the data card."""
    return page(content, side_by_side(found), {**draw(content), "card": [as_html(CARD)]})


def _model(found: Answered, role: str) -> MeasuredModel:
    chance, size = random.Random(role), SIZES.get(role, 124_000_000)
    middle = {"teacher": 0.42}.get(role, 0.06 + chance.random() / 100)
    whole = [middle * chance.lognormvariate(0, 0.25) for _ in range(64)]
    middle = sorted(whole)[32]
    latency = Latency(
        p50=middle,
        p95=sorted(whole)[60],
        low=middle * 0.96,
        high=middle * 1.05,
        p95_low=middle * 1.4,
        p95_high=middle * 1.9,
        n=64,
    )
    first_token = replace(
        latency, p50=middle / 9, p95=middle / 6, low=middle / 9.5, high=middle / 8.5
    )
    expected = {example.id: example.expected for example in found.examples}
    labels = [*LABELS]
    counts = [[0] * 4 for _ in labels]
    for name, text in found.texts[role].items():
        counts[labels.index(expected[name])][labels.index(text.rsplit(" ", 1)[1])] += 1
    accuracy = Estimate.of(metrics.interval("accuracy", found.vectors[role], 200, 0))
    return MeasuredModel(
        model=f"org/{role}",
        engine="vllm",
        engine_version="0.32.0",
        dtype="bfloat16",
        parameters=size,
        weights_bytes=2 * size,
        peak_memory_bytes=2_100_000_000 + size,
        load_seconds=9.5,
        latency_seconds=latency,
        first_token_seconds=first_token,
        latencies={"whole": whole, "first_token": [seconds / 9 for seconds in whole]},
        requests_per_second=4 / middle,
        tokens_per_second=160 / middle,
        within_bound=LoadLimit(3 / middle, 16, 0.8),
        num_tokens=20_000,
        num_prompt_tokens=30_000,
        metrics={
            "accuracy": accuracy,
            "agreement": accuracy,
            "perplexity": Estimate(3.2, 3.0, 3.4, 500),
        },
        confusion=ConfusionMatrix(labels, counts),
        cost_per_1000_requests=0.9 * middle,
    )


def _history(scale: float) -> list[dict[str, float | None]]:
    chance = random.Random(str(scale))
    records: list[dict[str, float | None]] = []
    for step in range(20, 1001, 20):
        loss = scale * (0.05 + 2 * 0.995**step) * chance.uniform(0.9, 1.1)
        record: dict[str, float | None] = {
            "step": step,
            "loss": loss,
            "cross_entropy": loss * 1.2,
            "learning_rate": 1e-4,
        }
        record |= {"forward_kl": loss * 0.7} if scale == 1.0 else {}
        if step % 200 == 0:
            record |= {"validation_loss": loss * 1.15, "validation_cross_entropy": loss * 1.3}
        records.append(record)
    return records


_LENGTHS = LengthHistogram(
    "tokens",
    edges=list(range(10, 22)),
    before=LengthCounts(66, 10, 16, 20, 21, list(range(11))),
    after=LengthCounts(55, 11, 16, 20, 21, [0, *range(10)]),
)
CARD = DataCard(
    name="night-train",
    task_type="nli",
    funnel=[
        FunnelStep("rows in", 12_700),
        FunnelStep("quarantined", 12_688, 12, "bad rows"),
        FunnelStep("examples asked", 12_188, 500, "test rows"),
        FunnelStep("responses accepted", 12_001, 187, "187 truncated"),
        FunnelStep("kept", 11_401, 600, "rejected by the filters"),
        FunnelStep("learned from", 11_201, 200, "validation"),
    ],
    reasons=Reasons({"verified: wrong answer": 600}, {"not JSON": 12}),
    recognised={"nli": 12_688},
    splits={},
    balance=GroupBalance(
        "label",
        before={"entailment": 5000, "neutral": 4000, "contradiction": 3188},
        after={"entailment": 4700, "neutral": 3700, "contradiction": 2801},
        weighted={},
    ),
    lengths={"prompts": _LENGTHS, "answers": _LENGTHS},
    sources={},
)
_LICENCE = Licence("apache-2.0", "card of the model", "allowed", "As far as known; check it.")
RAN = RunContent(
    spec={
        "name": "night-train",
        "generate": {"teacher": "org/teacher"},
        "train": {"student": "org/base"},
    },
    versions={"retort": "0.1.0", "vllm": "0.32.0"},
    hardware={"cpu": "Xeon", "cores": 2, "memory_bytes": 25_276_502_016, "gpus": []},
    licences={
        "teacher": _LICENCE,
        "base": replace(_LICENCE, license=None, distillation="unknown"),
    },
    money=TeacherCost(410_000, 350_000, 431.0, None),
    seconds={"prepare": 1.2, "generate": 440.0, "train": 122.9, "evaluate": 88.0},
)
