"""One model's turn, in a child process of its own: all examples together, then some one at a time,
then rising load.

The first round's answers are the ones that are scored. Later rounds answer the same again, so that
the rate is a median, and an answer that changed is noticed.
"""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retort import processes
from retort.engines import Engine, EngineModule, Request
from retort.events import Reporter
from retort.records import Response, write_lines
from retort.stages.evaluate import load_test
from retort.stages.evaluate.compared_models import (
    CHAMPION,
    GIVEN,
    asked_examples,
    check_template,
    engine_of,
    read_answers,
    requests_of,
    settings_of,
)
from retort.stages.stage import Stage, from_arguments
from retort.store import model_folder

WARM_UP_REQUESTS = 8


def measure(
    arguments: dict[str, Any], role: str, model: str, number: int, report: Reporter
) -> dict[str, Any]:
    """Returns what a model's turn in round `number` (from 1) measured; writes the first's answers.

    At an endpoint, which is paid for and is not this machine, all is answered once, and nothing is
    loaded to its limit.
    """
    stage = from_arguments(arguments, report)
    if role not in (*GIVEN, CHAMPION):
        check_template(stage, Path(model), role)
    module, requests = engine_of(stage.spec, role), requests_of(asked_examples(stage))
    report.progress(0, len(requests), "answers", "loading")
    started = time.monotonic()
    engine = module.open_engine(settings_of(stage.spec, model))
    measures = {
        **engine.facts,
        "process_id": os.getpid(),
        "load_seconds": None if module.REMOTE else time.monotonic() - started,
    }
    if not module.REMOTE:
        # The first answers pay for what is set up late.
        list(engine.generate(requests[:WARM_UP_REQUESTS]))
    if number == 1 or not module.REMOTE:
        measures |= _together(stage, (module, engine), role, requests)
    measures["latencies"] = load_test.alone(engine, requests[: stage.spec.evaluate.latency_samples])
    if number == 1 and not module.REMOTE:
        measures |= _under_load(stage, engine, requests, measures["latencies"]["whole"], role)
    return {**measures, **_size(module, model, role)}


def _together(
    stage: Stage, opened: tuple[EngineModule, Engine], role: str, requests: list[Request]
) -> dict[str, Any]:
    """Answers all requests at once. Writes the answers where none are stored; else compares."""
    module, engine = opened
    answers, seconds = load_test.saturated(engine, requests, stage.report)
    responses = [module.parse(request.id, answers[request.id].raw) for request in requests]
    num_tokens, num_changed = sum(r.num_tokens for r in responses), 0
    if stage.out.has(f"answers-{role}.jsonl"):
        earlier = read_answers(stage, role)
        num_changed = sum(_content(r) != _content(earlier[r.id]) for r in responses)
    else:
        stage.out.write(f"answers-{role}.jsonl", write_lines(responses))
    return {
        "requests_per_second": len(requests) / seconds,
        "tokens_per_second": num_tokens / seconds,
        "num_tokens": num_tokens,
        "num_prompt_tokens": sum(r.num_prompt_tokens for r in responses),
        "num_changed": num_changed,
    }


def _content(response: Response) -> tuple[Any, ...]:
    return response.text, response.token_ids, response.finish_reason, response.tool_calls


def _under_load(
    stage: Stage, engine: Engine, requests: list[Request], whole: list[float], role: str
) -> dict[str, Any]:
    """Returns the levels of load, and the highest rate within the bound; nothing without one."""
    bound = bound_seconds(stage, whole if role == "teacher" else None)
    if bound is None:
        return {"within_bound": None, "levels": []}
    levels = load_test.rates(
        engine, requests, whole, (bound, stage.spec.evaluate.runtime.max_num_seqs)
    )
    best = load_test.within(levels, bound)
    found = best and {
        "requests_per_second": best.requests_per_second,
        "concurrency": best.concurrency,
        "p95_seconds": best.p95_seconds,
    }
    return {"within_bound": found, "levels": [asdict(level) for level in levels]}


def bound_seconds(stage: Stage, teachers: list[float] | None = None) -> float | None:
    """Returns how long a whole answer may take: the spec's, else twice what 95% of the teacher's
    take alone in its first round, of which `teachers` are the samples; None where no teacher was
    measured."""
    if stage.spec.evaluate.latency_bound_seconds is not None:
        return stage.spec.evaluate.latency_bound_seconds
    if teachers is None and stage.out.has("measures-teacher-1.json"):
        teachers = stage.out.read_json("measures-teacher-1.json")["latencies"]["whole"]
    return None if teachers is None else 2 * float(np.quantile(teachers, 0.95))


def _size(module: EngineModule, model: str, role: str) -> dict[str, int | None]:
    """Returns what a model takes: unknown where it is behind a network."""
    names = ("parameters", "weights_bytes", "peak_memory_bytes", "peak_gpu_memory_bytes")
    if module.REMOTE:
        return dict.fromkeys(names)
    return {
        **model_folder.size(model_folder.locate(model, role)),
        "peak_memory_bytes": processes.peak_host_memory_bytes(),
        "peak_gpu_memory_bytes": processes.peak_gpu_memory_bytes(),
    }


def likelihood(
    arguments: dict[str, Any], folders: dict[str, str], report: Reporter
) -> dict[str, Any]:
    """The child's side: what `likelihood.likelihood` returns; torch is loaded there alone."""
    from retort.stages.evaluate import likelihood as measured

    return measured.likelihood(arguments, folders, report)
