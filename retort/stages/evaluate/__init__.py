"""evaluate: teacher, base, student and controls on the same held-out examples, asked the same way.

Each turn of a model runs in a fresh process, so that the memory measured is its own; the models
take turns, round after round, so that what slows the machine for a while slows them alike. Raw
answers are kept.
"""

from contextlib import ExitStack
from typing import Any

from retort import processes
from retort.errors import EngineDiedError
from retort.metrics import Statistics
from retort.processes import machine
from retort.stages.evaluate import measure
from retort.stages.evaluate.compared_models import (
    asked_examples,
    check_template,
    engine_of,
    model_of,
    roles_of,
    settings_of,
)
from retort.stages.evaluate.judging import judged
from retort.stages.evaluate.scores import (
    differences_of,
    flat,
    models_of,
    retention_of,
    statistics_of,
    texts_of,
)
from retort.stages.stage import Stage, held_out_split

__all__ = ["check_template", "evaluate", "settings_of"]
LIKELIHOOD = "likelihood.json"


def evaluate(stage: Stage) -> dict[str, Any]:
    """Writes each model's answers, measures and statistics, then `scores.json`; returns the scores.

    A killed run continues with the turns that are missing.
    """
    _take_turns(stage)
    likelihood = _likelihood(stage)
    facts = _compared(stage, likelihood)
    stage.out.write_json("scores.json", facts)
    return facts


def _take_turns(stage: Stage) -> None:
    """Has every model measured in every round, the teacher first: the bound follows from it."""
    knobs, roles = stage.spec.evaluate, roles_of(stage)
    turns = [(number, role) for number in range(1, knobs.rounds + 1) for role in roles]
    for index, (number, role) in enumerate(turns):
        name = f"measures-{role}-{number}.json"
        if stage.out.has(name):
            stage.report.note(f"continuing: {role} is already measured in round {number}")
            continue
        with model_of(stage, role) as model:
            arguments = {"arguments": stage.arguments(), "role": role, "model": model}
            measures = processes.run(
                measure.measure,
                {**arguments, "number": number},
                stage.report.part(role, index, len(turns)),
                stage.log,
                knobs.runtime.model_dump(),
            )
        if measures.get("num_changed"):
            stage.report.note(
                f"warning: {role} answered {measures['num_changed']:,} examples otherwise in round "
                f"{number} than in the first, whose answers are scored"
            )
        stage.out.write_json(name, measures)


def _likelihood(stage: Stage) -> dict[str, Any]:
    """Returns what one more process measured of all models here: how probable given answers are.

    Nothing where it is not asked for, or no model here gives probabilities.
    """
    modules = {role: engine_of(stage.spec, role) for role in roles_of(stage)}
    here = [role for role, module in modules.items() if module.SCORES and not module.REMOTE]
    if not stage.spec.evaluate.likelihood or not here:
        return {}
    if not stage.out.has(LIKELIHOOD):
        with ExitStack() as copies:
            folders = {role: copies.enter_context(model_of(stage, role)) for role in here}
            try:
                found = processes.run(
                    measure.likelihood,
                    {"arguments": stage.arguments(), "folders": folders},
                    stage.report,
                    stage.log,
                    stage.spec.evaluate.runtime.model_dump(),
                )
            except EngineDiedError as error:
                way_out = "set evaluate.likelihood: false to do without perplexity and KL"
                raise EngineDiedError(f"{error}; {way_out}") from error
        for text in found["notes"]:
            stage.report.note(f"warning: {text}")
        stage.out.write_json(LIKELIHOOD, found)
    facts: dict[str, Any] = stage.out.read_json(LIKELIHOOD)
    return facts


def _compared(stage: Stage, likelihood: dict[str, Any]) -> dict[str, Any]:
    """Scores all answers and writes the statistics; returns the stage's facts."""
    knobs, texts, scores = stage.spec.evaluate, texts_of(stage), judged(stage)
    measured: dict[str, Statistics] = likelihood.get("statistics", {})
    further = {role: {"judge": scores.get(role, {}), **measured.get(role, {})} for role in texts}
    statistics = statistics_of(stage, texts, further)
    for role, found in statistics.items():
        stage.out.write_json(f"statistics-{role}.json", found)
    models, differences = models_of(stage, texts, statistics), differences_of(statistics, knobs)
    main = next(iter(statistics.get("teacher") or next(iter(statistics.values()))))
    stage.report.metrics(flat(models, differences, main), step=0)
    return {
        "split": held_out_split(stage.spec),
        "num_examples": len(asked_examples(stage)),
        "main_metric": main,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "latency_bound_seconds": measure.bound_seconds(stage),
        "perplexity_of": likelihood.get("perplexity_of"),
        "notes": likelihood.get("notes", []),
        "models": models,
        "differences": differences,
        "retention": retention_of(statistics, knobs),
    }
