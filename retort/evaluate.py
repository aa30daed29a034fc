"""evaluate: teacher, base, student and controls on the same held-out examples, asked the same way.

Each model runs in a fresh process, so that the memory measured is its own. Raw answers are kept.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from retort import child, metrics, models, task_types
from retort.comparison import flat_differences, main_metric
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
from retort.spec import JobSpec, training_of

Scores = dict[str, dict[str, dict[str, float]]]  # by role, metric and example's id
# The models that no stage of this job has made.
GIVEN = ("teacher", "base")


def evaluate(stage: Stage) -> dict[str, Any]:
    """Writes each model's answers and measures, then `scores.json`; returns the scores.

    A killed run continues with the models that are missing.
    """
    knobs, roles = stage.spec.evaluate, stage.spec.roles
    for index, role in enumerate(roles):
        if stage.out.has(f"measures-{role}.json"):
            stage.report.note(f"continuing: {role} is already measured")
            continue
        with _model(stage, role) as model:
            measures = child.run(
                "retort.evaluate:measure",
                {"arguments": stage.arguments(), "role": role, "model": model},
                _part(stage.report, role, (index, len(roles))),
                stage.log,
                knobs.runtime.model_dump(),
            )
        stage.out.write_json(f"measures-{role}.json", measures)
    scores = _scores(stage)
    found = _models(stage, scores)
    differences = _differences(stage.spec, scores, main_metric(found))
    stage.report.metrics({**_flat(found), **flat_differences(differences)}, step=0)
    facts = {
        "split": held_out_split(stage.spec),
        "num_examples": len(_test_examples(stage)),
        "models": found,
        "differences": differences,
    }
    stage.out.write_json("scores.json", facts)
    return facts


def measure(arguments: dict[str, Any], role: str, model: str, report: Reporter) -> dict[str, Any]:
    """The child's side: answers all examples together, then some one at a time, and measures."""
    stage = from_arguments(arguments, report)
    spec, examples = stage.spec, _test_examples(stage)
    if role not in GIVEN:
        check_template(stage, Path(model), role)
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


def check_template(stage: Stage, student: Path, role: str = "student") -> None:
    """Raises `StageError` when the student would be asked in another form than it learned."""
    if models.template_sha256(student) != stage.facts(training_of(role))["template_sha256"]:
        raise StageError(f"the {role}'s chat template is not the one it was trained with")


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
        "peak_memory_bytes": child.peak_memory_bytes(),
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


def _title(spec: JobSpec, role: str) -> str:
    """Returns what a role's model is called in the report."""
    if role in GIVEN:
        return _address(spec, role)
    return spec.name if role == "student" else f"{spec.name}, {role}"


@contextmanager
def _model(stage: Stage, role: str) -> Iterator[str]:
    """Gives where a role's model is: a hub id, a name at the endpoint, or a folder here."""
    if role in GIVEN:
        yield _address(stage.spec, role)
        return
    with stage.input(training_of(role)).local_copy("student") as folder:
        yield str(folder)


def _part(report: Reporter, role: str, place: tuple[int, int]) -> Reporter:
    """Passes a model's events on as a part of the whole stage: which one, of how many."""
    index, number = place

    def emit(event: Event) -> None:
        if event["kind"] == "progress":
            total = event["total"] * number
            done = event["done"] + event["total"] * index
            event = {**event, "done": done, "total": total, "note": f"{role} {event['note']}"}
        report.emit(event)

    return Reporter(emit)


def _scores(stage: Stage) -> Scores:
    """Returns the scores of all answers by role, metric and example."""
    examples, task_type = _test_examples(stage), task_types.load(stage.spec.prepare.task_type)
    texts = {
        role: {r.id: r.text for r in read_lines(Response, stage.out.read(f"answers-{role}.jsonl"))}
        for role in stage.spec.roles
    }
    for role, answers in texts.items():
        if set(answers) != {e.id for e in examples}:
            raise DataError(f"evaluate: the answers of {role} do not match the examples by id")
    return {
        role: metrics.scores(task_type, examples, answers, texts["teacher"])
        for role, answers in texts.items()
    }


def _models(stage: Stage, scores: Scores) -> dict[str, Any]:
    """Returns the report's `models` part: what was measured, and metrics with intervals."""
    knobs = stage.spec.evaluate
    return {
        role: {
            "model": _title(stage.spec, role),
            **stage.out.read_json(f"measures-{role}.json"),
            "metrics": {
                metric: metrics.interval([*values.values()], knobs.num_bootstrap, knobs.seed)
                for metric, values in found.items()
            },
        }
        for role, found in scores.items()
    }


def _differences(spec: JobSpec, scores: Scores, metric: str) -> dict[str, dict[str, float]]:
    """Returns student minus each other model, on the examples on which both have a score."""
    own, found = scores["student"][metric], {}
    for role in (role for role in spec.roles if role != "student"):
        other = scores[role][metric]
        both = [key for key in own if key in other]
        pairs = [own[key] for key in both], [other[key] for key in both]
        knobs = spec.evaluate
        found[role] = metrics.difference(*pairs, knobs.num_bootstrap, knobs.seed)
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
