"""evaluate: teacher, base, student and controls on the same held-out examples, asked the same way.

Each model runs in a process of its own, so that the memory measured is its own; the models take
turns, round after round, so that what slows the machine for a while slows them alike. The answers
are kept.
"""

from retort import processes
from retort.errors import EngineDiedError, StoreError
from retort.metrics import Statistics
from retort.metrics.comparison.formatting import score
from retort.metrics.comparison.shapes import Evaluated
from retort.processes import machine
from retort.records import JsonObject
from retort.spec import TRIAL, export_of
from retort.stages.budget import usage_note
from retort.stages.engine_settings import on_cluster
from retort.stages.evaluate import fidelity, measure, trial
from retort.stages.evaluate.compared_models import (
    asked_examples,
    check_template,
    engine_of,
    exported,
    roles_of,
    settings_of,
)
from retort.stages.evaluate.grading import deciding_first, graded
from retort.stages.evaluate.judging import judged
from retort.stages.evaluate.scores import (
    differences_of,
    flat,
    models_of,
    num_unreached,
    paid_facts,
    read_held_out,
    retention_of,
    statistics_of,
    unanswered_notes,
)
from retort.stages.evaluate.turns import take_turns
from retort.stages.stage import Stage, held_out_split

__all__ = ["check_template", "evaluate", "settings_of"]
LIKELIHOOD = "likelihood.json"


def evaluate(stage: Stage) -> JsonObject:
    """Writes each model's answers, measures and statistics, then `scores.json`; returns the scores.

    A killed run continues with the turns that are missing. An exported student that cannot be
    measured ends no job: the facts say why, and the next run tries again. Of the student of a
    trial only the validation examples are scored.
    """
    if TRIAL in stage.inputs:
        return trial.score(stage)
    if not (roles := exported(stage)):
        return _evaluate(stage)
    failed = stage.facts(export_of(roles[0])).get("failed")
    try:
        return {"failed": failed, "num_unreached": 1} if failed else _evaluate(stage)
    except StoreError:
        raise
    except Exception as error:  # of whatever kind its runtime raises
        stage.report.note(f"warning: {roles[0]} cannot be measured: {error}")
        return {"failed": f"it cannot be measured: {error}", "num_unreached": 1}


def _evaluate(stage: Stage) -> JsonObject:
    take_turns(stage)
    likelihood = _fidelity(stage) if exported(stage) else _likelihood(stage)
    facts = _compared(stage, likelihood)
    stage.out.write_json("scores.json", facts)
    if text := usage_note(facts.get("spending", {})):
        stage.report.note(f"warning: {text}")
    stage.report.note(_outcome(facts))
    return facts


def _fidelity(stage: Stage) -> JsonObject:
    """Returns how far an exported student's distributions are from the student's: one more process
    has the export answer, and another reads its answers with the student."""
    if stage.spec.evaluate.likelihood and not stage.out.has(LIKELIHOOD):
        (role,) = exported(stage)
        runtime = stage.spec.evaluate.runtime.model_dump()
        arguments = {"arguments": stage.arguments(), "role": role}
        processes.run(fidelity.answer, arguments, stage.report, stage.log, runtime)
        measured = processes.run(fidelity.measure, arguments, stage.report, stage.log, runtime)
        stage.out.write_json(LIKELIHOOD, measured)
    facts: JsonObject = stage.out.read_json(LIKELIHOOD) if stage.out.has(LIKELIHOOD) else {}
    return facts


def _likelihood(stage: Stage) -> JsonObject:
    """Returns how probable each local model finds given answers, measured in one more process.

    Nothing where the spec does not ask for it, or no model here gives probabilities.
    """
    modules = {role: engine_of(stage, role) for role in roles_of(stage)}
    local = [role for role, module in modules.items() if module.SCORES and not module.REMOTE]
    if not stage.spec.evaluate.likelihood or not local:
        return {}
    if not stage.out.has(LIKELIHOOD):
        try:
            measured = processes.run(
                measure.likelihood,
                {"arguments": stage.arguments(), "roles": local},
                stage.report,
                stage.log,
                on_cluster(stage.spec, stage.spec.evaluate.runtime),
            )
        except EngineDiedError as error:
            way_out = "set evaluate.likelihood: false to do without perplexity and KL"
            raise EngineDiedError(f"{error}; {way_out}") from error
        for text in measured["notes"]:
            stage.report.note(f"warning: {text}")
        stage.out.write_json(LIKELIHOOD, measured)
    facts: JsonObject = stage.out.read_json(LIKELIHOOD)
    return facts


def _compared(stage: Stage, likelihood: JsonObject) -> JsonObject:
    """Scores all answers and writes the statistics; returns the stage's facts."""
    knobs, held_out = stage.spec.evaluate, read_held_out(stage)
    ratings, num_unrated = judged(stage)
    grades, num_ungraded = graded(stage)
    unanswered = unanswered_notes(stage, held_out)
    for text in unanswered:
        stage.report.note(f"warning: {text}")
    measured: dict[str, Statistics] = likelihood.get("statistics", {})
    further = {
        role: {**grades.get(role, {}), "judge": ratings.get(role, {}), **measured.get(role, {})}
        for role in held_out.responses
    }
    statistics = deciding_first(stage, statistics_of(stage, held_out, further))
    for role, values in statistics.items():
        stage.out.write_json(f"statistics-{role}.json", values)
    main = next(iter(statistics.get("teacher") or next(iter(statistics.values()))), "agreement")
    evaluated = Evaluated(
        split=held_out_split(stage.spec),
        num_examples=len(held_out.examples),
        models=models_of(stage, held_out, statistics),
        differences=differences_of(statistics, knobs),
        retention=retention_of(statistics, knobs),
        latency_bound_seconds=measure.bound_seconds(stage),
        perplexity_of=likelihood.get("perplexity_of"),
        hardware=machine.hardware(),
        versions=machine.versions(),
        notes=[*unanswered, *likelihood.get("notes", [])],
    )
    stage.report.metrics(flat(evaluated.models, evaluated.differences, main), step=0)
    return {
        **evaluated.as_json(),
        "num_held_out": len(asked_examples(stage)),
        "num_unreached": num_unreached(stage) + num_unrated + num_ungraded,
        "main_metric": main,
        "speed_budget_seconds": measure.budget_seconds(stage),
        **paid_facts(stage),
    }


def _outcome(facts: JsonObject) -> str:
    """Returns a line with the models' scores, and whether anything was not measured in full."""
    main = facts["main_metric"]
    scores = ", ".join(
        f"{role} {score(model['metrics'][main]['value'], main)}"
        for role, model in facts["models"].items()
        if main in model["metrics"]
    )
    num_cut = sum(bool(model["cut_short"]) for model in facts["models"].values())
    cut = f"; speed cut short at {facts['speed_budget_seconds']:.0f} s a model" if num_cut else ""
    return f"{main} on {facts['num_examples']:,} {facts['split']} examples: {scores}{cut}"
