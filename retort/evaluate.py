"""evaluate: teacher, base and student on the same held-out examples, prompts and decoding.

Each model runs in a fresh process, so that the memory measured is its own. Raw answers are kept.
"""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from retort import child, metrics, models, task_types
from retort.context import Stage, from_arguments, held_out_split, read_examples
from retort.engines import (
    Answer,
    Engine,
    EngineModule,
    Request,
    Settings,
    find_engine,
    resolve,
)
from retort.errors import DataError, StageError
from retort.events import Event, Reporter
from retort.records import Example, Response, read_lines, write_lines
from retort.spec import JobSpec

ROLES = ("teacher", "base", "student")


def evaluate(stage: Stage) -> dict[str, Any]:
    """Writes each model's answers and measures, then `scores.json`; returns the scores.

    A killed run continues with the models that are missing.
    """
    student = stage.input("train").local_copy("student")
    knobs = stage.spec.evaluate
    for index, role in enumerate(ROLES):
        if stage.out.has(f"measures-{role}.json"):
            stage.report.note(f"continuing: {role} is already measured")
            continue
        with student if role == "student" else nullcontext() as folder:
            model = str(folder) if folder else _address(stage.spec, role)
            measures = child.run(
                "retort.evaluate:measure",
                {"arguments": stage.arguments(), "role": role, "model": model},
                _scaled(stage.report, role, index),
                stage.log,
                knobs.runtime.model_dump(),
            )
        stage.out.write_json(f"measures-{role}.json", measures)
    scored = _scores(stage)
    stage.report.metrics(_flat(scored), step=0)
    facts = {
        "split": held_out_split(stage.spec),
        "num_examples": len(_test_examples(stage)),
        "models": scored,
    }
    stage.out.write_json("scores.json", facts)
    return facts


def measure(arguments: dict[str, Any], role: str, model: str, report: Reporter) -> dict[str, Any]:
    """The child's side: answers all examples together, then some one at a time, and measures."""
    stage = from_arguments(arguments, report)
    spec, examples = stage.spec, _test_examples(stage)
    if role == "student":
        check_template(stage, Path(model))
    module = _engine_of(spec, role)
    report.progress(0, len(examples), "answers", "loading")
    started = time.monotonic()
    engine = module.open_engine(settings_of(spec, model))
    load_seconds = time.monotonic() - started
    requests = [Request(e.id, e.messages, e.tools) for e in examples]
    if not module.REMOTE:
        list(engine.generate(requests[:8]))  # warm-up: the first answers pay for lazy set-up
    answers, seconds = _throughput(engine, requests, report)
    responses = [module.parse(request.id, answers[request.id].raw) for request in requests]
    latencies = _latencies(engine, requests[: spec.evaluate.latency_samples])
    tokens = sum(r.num_tokens for r in responses)
    stage.out.write(f"answers-{role}.jsonl", write_lines(responses))
    return {
        **engine.facts,
        **_size(module, model, role),
        "load_seconds": load_seconds,
        "latency_seconds": {
            "p50": float(np.quantile(latencies, 0.5)),
            "p95": float(np.quantile(latencies, 0.95)),
            "n": len(latencies),
        },
        "tokens_per_second": tokens / seconds,
        "num_tokens": tokens,
    }


def settings_of(spec: JobSpec, model: str) -> Settings:
    """Returns the engine settings of the comparison: greedy, and the same for all models."""
    knobs = spec.evaluate
    return Settings(
        model=model,
        temperature=0.0,
        top_p=1.0,
        max_tokens=knobs.max_tokens or spec.generate.max_tokens,
        max_model_len=knobs.max_model_len or spec.generate.max_model_len,
        top_k=0,
        dtype=knobs.dtype,
        seed=knobs.seed,
        runtime=knobs.runtime.model_dump(mode="json"),
        endpoint=spec.generate.endpoint,
        api_key_env=spec.generate.api_key_env,
    )


def check_template(stage: Stage, student: Path) -> None:
    """Raises `StageError` when the student would be asked in another form than it learned."""
    if models.template_sha256(student) != stage.facts("train")["template_sha256"]:
        raise StageError("the student's chat template is not the one it was trained with")


def peak_memory_bytes() -> int:
    """Returns the most memory this process has held: of the GPU where one is used, else resident.

    Bytes. On a machine without that figure, 0.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return int(torch.cuda.max_memory_reserved())
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _engine_of(spec: JobSpec, role: str) -> EngineModule:
    """Returns the engine that answers for a model: one for all, but a teacher behind an endpoint
    can only be asked there."""
    teachers = find_engine(resolve(spec.generate.engine, 0))
    if role == "teacher" and teachers.REMOTE:
        return teachers
    return find_engine(resolve(spec.evaluate.engine, 0))


def _size(module: EngineModule, model: str, role: str) -> dict[str, int | None]:
    """Returns what a model takes: unknown where it is behind a network."""
    if module.REMOTE:
        return dict.fromkeys(("parameters", "weights_bytes", "peak_memory_bytes"))
    return {
        **models.size(models.locate(model, role)),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _throughput(
    engine: Engine, requests: list[Request], report: Reporter
) -> tuple[dict[str, Answer], float]:
    """Returns the answers by request, and the seconds that all took."""
    found: dict[str, Answer] = {}
    started = time.monotonic()
    for answer in engine.generate(requests):
        found[answer.id] = answer
        if len(found) % 100 == 0:
            report.progress(len(found), len(requests), "answers")
    seconds = time.monotonic() - started
    if set(found) != {request.id for request in requests}:
        raise StageError(f"{len(requests) - len(found)} examples were left unanswered")
    report.progress(len(requests), len(requests), "answers")
    return found, seconds


def _latencies(engine: Engine, requests: list[Request]) -> list[float]:
    """Returns the seconds from request to whole answer, one request at a time."""
    seconds = []
    for request in requests:
        started = time.monotonic()
        list(engine.generate([request]))
        seconds.append(time.monotonic() - started)
    return seconds


def _test_examples(stage: Stage) -> list[Example]:
    """Returns the held-out examples that are asked."""
    examples = read_examples(stage.input("prepare"), held_out_split(stage.spec))
    return examples[: stage.spec.evaluate.limit]


def _address(spec: JobSpec, role: str) -> str:
    return spec.generate.teacher if role == "teacher" else spec.train.student


def _scaled(report: Reporter, role: str, index: int) -> Reporter:
    """Passes a model's events on as a part of the whole stage."""

    def emit(event: Event) -> None:
        if event["kind"] == "progress":
            total = event["total"] * len(ROLES)
            done = event["done"] + event["total"] * index
            event = {**event, "done": done, "total": total, "note": f"{role} {event['note']}"}
        report.emit(event)

    return Reporter(emit)


def _scores(stage: Stage) -> dict[str, Any]:
    """Returns the report's `models` part: what was measured, and metrics with intervals."""
    knobs, examples = stage.spec.evaluate, _test_examples(stage)
    task_type = task_types.load(stage.spec.prepare.task_type)
    texts = {
        role: {r.id: r.text for r in read_lines(Response, stage.out.read(f"answers-{role}.jsonl"))}
        for role in ROLES
    }
    for role, answers in texts.items():
        if set(answers) != {e.id for e in examples}:
            raise DataError(f"evaluate: the answers of {role} do not match the examples by id")
    found: dict[str, Any] = {}
    for role in ROLES:
        scores = metrics.scores(task_type, examples, texts[role], texts["teacher"])
        found[role] = {
            "model": _address(stage.spec, role) if role != "student" else stage.spec.name,
            **stage.out.read_json(f"measures-{role}.json"),
            "metrics": {
                name: metrics.interval(values, knobs.num_bootstrap, knobs.seed)
                for name, values in scores.items()
            },
        }
    return found


def _flat(found: dict[str, Any]) -> dict[str, float]:
    """Returns the scores as MLflow metrics, such as `student.accuracy`."""
    values: dict[str, float] = {}
    for role, facts in found.items():
        for name, metric in facts["metrics"].items():
            values |= {f"{role}.{name}": metric["value"]}
        for name in ("tokens_per_second", "peak_memory_bytes", "weights_bytes", "parameters"):
            if facts[name] is not None:
                values[f"{role}.{name}"] = float(facts[name])
        for quantile in ("p50", "p95"):
            values[f"{role}.latency_seconds_{quantile}"] = facts["latency_seconds"][quantile]
    return values
