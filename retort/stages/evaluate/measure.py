"""One model in a process of its own: what it answers, how fast it is, and what it takes.

The first round's answers are the ones that are scored. Later rounds answer the same requests again,
so that the rate is a median and an answer that changed is noticed.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from retort import processes
from retort.engines import Request
from retort.events import Reporter
from retort.processes import libraries
from retort.records import JsonObject, Response, write_lines
from retort.spec import export_of
from retort.stages.engine_settings import open_engine
from retort.stages.evaluate import load_test
from retort.stages.evaluate.compared_models import (
    CHAMPION,
    GIVEN,
    answered_examples,
    asked_examples,
    check_template,
    engine_name,
    engine_of,
    exported,
    fitting_length,
    generated,
    home_of,
    imports_of,
    is_answered,
    model_of,
    read_answers,
    requests_of,
    rounds_of,
    settings_of,
)
from retort.stages.evaluate.endpoint_model import EndpointModel
from retort.stages.evaluate.load_test import Limits
from retort.stages.stage import Stage, from_arguments
from retort.store import model_folder

WARM_UP_REQUESTS = 8
TELL_SECONDS = 1.0
# The budget in seconds: this share of what generate took, and no less than so many.
BUDGET_SHARE, LEAST_BUDGET_SECONDS = 1 / 3, 30.0
# The files by which a process is told to begin a round, tells that it is done, and is told to end.
BEGIN, DONE, END = ".begin", ".done", "end"
LOOK_SECONDS = 0.05
Measures = JsonObject  # the JSON of one model's turn


def file_of(role: str, number: int) -> str:
    """Returns the name of the file with a model's measures of a round."""
    return f"measures-{role}-{number}.json"


def measure(
    arguments: JsonObject, role: str, model: str, number: int, report: Reporter
) -> Measures:
    """Returns what one turn of a model measures, in a process that it has for itself."""
    return _opened(from_arguments(arguments, report), role, model).measure(number)


def measure_turns(
    arguments: JsonObject, role: str, model: str, turns: str, report: Reporter
) -> None:
    """Measures a model in each round that the folder `turns` asks for, until it says to end; writes
    the measures to the artifact."""
    stage, folder = from_arguments(arguments, report), Path(turns)
    opened = None
    while (number := _next_round(folder)) is not None:
        with _ends_when_told(folder):
            opened = opened or _opened(stage, role, model)
            stage.out.write_json(file_of(role, number), opened.measure(number))
        (folder / f"{number}{DONE}").touch()


def _opened(stage: Stage, role: str, model: str) -> "EvaluatedModel | EndpointModel":
    if engine_of(stage, role).REMOTE:
        seconds = budget_seconds(stage) / rounds_of(stage)
        return EndpointModel(stage, role, model, seconds)
    return EvaluatedModel(stage, role, model)


def _next_round(folder: Path) -> int | None:
    """Returns the round that is to be measured, once there is one; None to end."""
    while not (folder / END).exists():
        for path in folder.glob(f"*{BEGIN}"):
            if not path.with_suffix(DONE).exists():
                return int(path.stem)
        time.sleep(LOOK_SECONDS)
    return None


@contextmanager
def _ends_when_told(folder: Path) -> Iterator[None]:
    """Interrupts the main thread when the process is told to end."""
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(LOOK_SECONDS):
            if (folder / END).exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


class EvaluatedModel:
    """A model opened in its engine, on this machine or on the job's cluster."""

    def __init__(self, stage: Stage, role: str, model: str):
        if role not in (*GIVEN, CHAMPION):
            check_template(stage, Path(model), role)
        self._stage, self._role, self._model = stage, role, model
        self._module = engine_of(stage, role)
        self._requests = requests_of(asked_examples(stage))
        self._told, self._num_turns = 0.0, 0
        stage.report.progress(0, len(self._requests), "answers", "loading")
        started = time.monotonic()
        settings = replace(settings_of(stage.spec, model), home=home_of(stage, role))
        name = engine_name(stage, role)
        with imports_of(stage, role):
            if role in exported(stage):
                settings = replace(settings, max_model_len=fitting_length(stage, model))
            self._engine = open_engine(stage.spec, name, settings, stage.report)
        # The libraries, too, which the process of which this one is a fork imported for all.
        self._load_seconds = libraries.inherited_seconds + time.monotonic() - started
        # The first answers pay for what engines set up late.
        list(self._engine.generate(self._requests[:WARM_UP_REQUESTS]))

    def measure(self, number: int) -> Measures:
        """Returns what the turn in round `number` (from 1) measured; writes the first's answers.

        Latency and load share the round's part of the budget; the first round's answers, which are
        scored, come on top. `cut_short` says what there was no time for.
        """
        knobs = self._stage.spec.evaluate
        measures: Measures = {**self._engine.facts, "process_id": os.getpid(), "cut_short": []}
        if self._num_turns == 0:
            measures["load_seconds"] = self._load_seconds
        self._num_turns += 1
        seconds = budget_seconds(self._stage) / rounds_of(self._stage)
        if number == 1:
            measures |= self._together(self._requests)
        deadline = time.monotonic() + seconds
        requests = requests_of(answered_examples(self._stage, self._role))
        if number > 1:
            measures |= self._again(requests, seconds / 2, measures["cut_short"])
        wanted = requests[: knobs.latency_samples]
        until = time.monotonic() + (deadline - time.monotonic()) / (2 if number == 1 else 1)
        latencies = load_test.alone(self._engine, wanted, until, self._tell)
        if (num_timed := len(latencies["whole"])) < len(wanted):
            measures["cut_short"].append(f"latency: {num_timed} of {len(wanted)} requests")
        measures["latencies"] = latencies
        if number == 1 and not exported(self._stage):
            measures |= self._under_load(requests, measures, deadline)
        return {**measures, **self._size()}

    def _together(self, requests: list[Request]) -> Measures:
        """Answers requests at once. Writes the answers where none are stored; else compares.

        Prompts that the model cannot take are neither in the rates nor in the counts of tokens.
        """
        total, name = len(self._requests), f"answers-{self._role}.jsonl"
        answers, seconds = load_test.saturated(
            self._engine, requests, lambda done: self._tell("", done, total)
        )
        responses = [self._module.parse(r.id, answers[r.id].raw) for r in requests]
        num_changed = 0
        if self._stage.out.has(name):
            earlier = read_answers(self._stage, self._role)
            num_changed = sum(_content(r) != _content(earlier[r.id]) for r in responses)
        else:
            self._stage.out.write(name, write_lines(responses))
        answered = [response for response in responses if is_answered(response)]
        num_tokens = sum(response.num_tokens for response in answered)
        return {
            "requests_per_second": len(answered) / seconds,
            "tokens_per_second": num_tokens / seconds,
            "num_tokens": num_tokens,
            "num_prompt_tokens": sum(response.num_prompt_tokens for response in answered),
            "num_changed": num_changed,
        }

    def _again(self, requests: list[Request], seconds: float, cut_short: list[str]) -> Measures:
        """Answers requests again: as many as the first round's rate answers in so many seconds, and
        enough to fill all places twice."""
        first = self._stage.out.read_json(file_of(self._role, 1))["requests_per_second"]
        fewest = 2 * self._stage.spec.evaluate.runtime.max_num_seqs
        some = requests[: max(fewest, int(first * seconds))]
        if len(some) < len(requests):
            cut_short.append(f"rate: {len(some):,} of {len(requests):,} requests")
        return self._together(some)

    def _under_load(self, requests: list[Request], measures: Measures, deadline: float) -> Measures:
        """Returns the levels of load, and the highest rate within the bound, where there is one."""
        whole = measures["latencies"]["whole"]
        bound = bound_seconds(self._stage, whole if self._role == "teacher" else None)
        if bound is None:
            return {"within_bound": None, "levels": []}
        most = self._stage.spec.evaluate.runtime.max_num_seqs
        limits = Limits(bound, most, deadline, measures["requests_per_second"])
        levels, cut = load_test.rates(self._engine, requests, whole, limits, self._tell)
        if cut:
            measures["cut_short"].append(f"load: no level of {cut:,} requests at once")
        best = load_test.within(levels, bound)
        found = best and {
            "requests_per_second": best.requests_per_second,
            "concurrency": best.concurrency,
            "p95_seconds": best.p95_seconds,
        }
        return {"within_bound": found, "levels": [asdict(level) for level in levels]}

    def _size(self) -> dict[str, int | None]:
        """Returns what a model takes."""
        of_host, of_gpu = getattr(self._engine, "peaks", processes.peaks)()
        if self._role in exported(self._stage):
            facts = self._stage.facts(export_of(self._role))
            size = {name: facts[name] for name in ("parameters", "weights_bytes")}
        else:
            size = model_folder.size(model_folder.locate(self._model, self._role))
        return {
            **size,
            "peak_memory_bytes": of_host,
            "peak_gpu_memory_bytes": of_gpu,
        }

    def _tell(self, note: str, done: int | None = None, total: int | None = None) -> None:
        """Reports progress in answers, or what is measured after them, once a second."""
        now, total = time.monotonic(), total or len(self._requests)
        if now - self._told >= TELL_SECONDS or done == total:
            self._told = now
            self._stage.report.progress(total if done is None else done, total, "answers", note)


def _content(response: Response) -> tuple[Any, ...]:
    return response.text, response.token_ids, response.finish_reason, response.tool_calls


def budget_seconds(stage: Stage) -> float:
    """Returns how long a model is measured for speed, in all rounds together: the spec's seconds,
    else a third of what generate took where that is known, and 30 at least."""
    if (wanted := stage.spec.evaluate.speed_seconds) is not None:
        return wanted
    seconds: float = generated(stage).get("seconds", 0.0)
    return max(LEAST_BUDGET_SECONDS, BUDGET_SHARE * seconds)


def bound_seconds(stage: Stage, teachers: list[float] | None = None) -> float | None:
    """Returns how long a whole answer may take: the spec's, else twice what 95% of the teacher's
    take alone in its first round, of which `teachers` are the samples; None where no teacher was
    measured."""
    if stage.spec.evaluate.latency_bound_seconds is not None:
        return stage.spec.evaluate.latency_bound_seconds
    if teachers is None and stage.out.has(file_of("teacher", 1)):
        teachers = stage.out.read_json(file_of("teacher", 1))["latencies"]["whole"]
    return None if teachers is None else 2 * float(np.quantile(teachers, 0.95))


def likelihood(arguments: JsonObject, roles: list[str], report: Reporter) -> JsonObject:
    """Returns what `likelihood.likelihood` returns of the roles' models. It runs in a child, which
    alone loads torch."""
    with libraries.lean_imports():
        from retort.stages.evaluate import likelihood as measured

    stage = from_arguments(arguments, report)
    with ExitStack() as copies:
        folders = {role: copies.enter_context(model_of(stage, role)) for role in roles}
        return measured.likelihood(arguments, folders, report)
