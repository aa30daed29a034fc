"""generate: the teacher answers every train and validation example; its signal is captured, too.

Answers go to the ledger as they finish and are never asked twice; the artifact is a view on it.
A dead engine is started again on what is missing, with half the sequences.
"""

import uuid
from collections.abc import Iterator

from retort import processes
from retort.engines.openai import MOST_LISTED
from retort.errors import EngineDiedError, StageError
from retort.records import JsonObject
from retort.stages import rounds
from retort.stages.budget import usage_note
from retort.stages.engine_settings import engine_of, on_cluster, teacher_runtime
from retort.stages.generate import capture, parity, union
from retort.stages.stage import Stage

MIN_TOP_K_MASS = 0.9


def generate(stage: Stage) -> JsonObject:
    """Writes responses and signals; returns counts, the engine's facts and what it cost.

    Raises `StageError` when too few responses were accepted, when the pilot or the budget stopped
    the run, or when a plain forward pass does not confirm the signal. Of several teachers each has
    such a capture of its own; then it unites them.
    """
    if rounds.ended(stage):
        return {"num_responses": 0, "num_tokens": 0, "states": {}}
    if union.is_union(stage):
        return union.unite(stage)
    facts = _answers(stage)
    _check_success(stage, facts)
    facts["parity"] = _parity(stage, facts)
    stage.report.metrics(_flat(facts), step=facts["num_responses"])
    for text in _signal_notes(stage, facts):
        stage.report.note(f"warning: {text}")
    if text := usage_note(facts["spending"]):
        stage.report.note(f"warning: {text}")
    stage.report.note(_outcome(facts))
    return facts


def _answers(stage: Stage) -> JsonObject:
    """Runs the capture in a child process, started again where its engine had died."""
    runtime = stage.spec.generate.runtime
    sequences, watched = runtime.max_num_seqs, teacher_runtime(stage.spec)
    if engine_of(stage.spec).REMOTE:
        watched.pop("stall_seconds")  # requests have time limits of their own
    run = uuid.uuid4().hex
    for attempt in range(runtime.max_restarts + 1):
        try:
            facts = processes.run(
                capture.capture,
                {"arguments": stage.arguments(), "run": run, "max_num_seqs": sequences},
                stage.report,
                stage.log,
                watched,
            )
            return {**facts, "num_restarts": attempt}
        except EngineDiedError as error:
            if attempt == runtime.max_restarts:
                raise
            sequences = max(1, sequences // 2)
            stage.report.note(
                f"{error}; starting it again on what is missing, {sequences} sequences at a time"
            )
    raise AssertionError("the last attempt returns or raises")


def _check_success(stage: Stage, facts: JsonObject) -> None:
    """Raises `StageError` when fewer responses were accepted than the spec asks for."""
    states, total = facts["states"], facts["num_responses"]
    accepted, least = states.get("accepted", 0), stage.spec.generate.min_success_ratio
    if accepted < least * total:
        counted = ", ".join(f"{n} {state}" for state, n in states.items() if state != "accepted")
        cause = facts["most_failed_for"]
        failed = f"; most failed for: {cause}" if cause else ""
        raise StageError(
            f"{accepted} of {total} responses are accepted, fewer than generate.min_success_ratio="
            f"{least:g} asks for ({counted}{failed}); `retort rows --state ...` shows them. What "
            "failed for a passing reason, such as a teacher that could not be reached, is asked "
            "again when the same command is run, other failures with --retry failed. Raise "
            "generate.max_tokens for truncated ones (only they are asked again), or lower the "
            "ratio. No accepted answer is paid for twice"
        )


def _parity(stage: Stage, facts: JsonObject) -> dict[str, float] | None:
    """Has a plain forward pass confirm some signals; returns the distances, None if none were."""
    runtime = stage.spec.generate.runtime
    if not (facts["num_signals"] and runtime.parity_samples) or engine_of(stage.spec).REMOTE:
        return None
    return processes.run(
        parity.parity,
        {"arguments": stage.arguments(), "dtype": facts["dtype"]},
        stage.report,
        stage.log,
        {**on_cluster(stage.spec, runtime), "stall_seconds": None},
    )


def _signal_notes(stage: Stage, facts: JsonObject) -> Iterator[str]:
    """Yields what people should know of the signal."""
    k, mass = stage.spec.generate.top_k, facts["top_k_mass"]
    is_most = engine_of(stage.spec).REMOTE and k >= MOST_LISTED
    if mass is not None and mass < MIN_TOP_K_MASS:
        yield (
            f"the teacher's top {MOST_LISTED if is_most else k} hold only {mass:.1%} of "
            f"its mass{'' if is_most else '; raise generate.top_k for a truer signal'}"
        )
    if number := facts.get("num_text_only"):
        yield (
            f"{number:,} of {number + facts['num_signals']:,} answers have no signal and are "
            f"learned from their text alone, most because: {facts['text_only_for']}"
        )


def _outcome(facts: JsonObject) -> str:
    """Returns in one line what the stage came to."""
    states = ", ".join(f"{count:,} {state}" for state, count in facts["states"].items())
    cost = facts["spending"]["cost"]
    money = f", {cost:,.2f} money" if cost else ""
    return (
        f"{facts['num_responses']:,} responses ({states}), {facts['num_tokens']:,} tokens, "
        f"{facts['num_asked']:,} requests in this run{money}"
    )


def _flat(facts: JsonObject) -> dict[str, float]:
    """Returns the facts that are numbers, for MLflow."""
    found = {f"responses.{state}": float(count) for state, count in facts["states"].items()}
    found |= {f"forecast.{name}": value for name, value in facts["forecast"].items()}
    found |= {f"parity.{name}": value for name, value in (facts["parity"] or {}).items()}
    if facts["top_k_mass"] is not None:
        found["top_k_mass"] = facts["top_k_mass"]
    return {**found, **facts["spending"]}
