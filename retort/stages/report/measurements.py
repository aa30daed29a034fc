"""What was measured of all models and what each answered, joined by the examples' ids.

Evaluate's facts, the champion's beside them, and the costs.
"""

from dataclasses import dataclass, replace
from typing import Any

import orjson

from retort import metrics
from retort.data import task_types
from retort.errors import DataError
from retort.metrics import Statistics
from retort.metrics.comparison import main_metric, shapes
from retort.records import Example, Response, read_lines
from retort.spec import JobSpec, Price, evaluation_of, export_of
from retort.spec.fingerprint import CHAMPION, EVALUATE_CHAMPION
from retort.stages.report.gate import judge_export
from retort.stages.stage import Stage, held_out_split, read_examples
from retort.store import Folder

Vectors = dict[str, list[float]]  # one metric's statistics by example's id
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Answered:
    """The examples that all models were asked, and by role each one's answers and statistics.

    `vectors` are the statistics of `metric`, the main one; an example that it says nothing about
    has none. `columns` are the metadata columns that the job is sliced by.
    """

    metric: str
    examples: list[Example]
    texts: dict[str, dict[str, str]]
    vectors: dict[str, Vectors]
    columns: tuple[str, ...]

    def score(self, role: str, example: Example) -> float | None:
        """Returns the main metric of one answer; None where it says nothing about it."""
        vector = self.vectors[role].get(example.id)
        return None if vector is None else metrics.value(self.metric, vector)

    def slices_of(self, example: Example) -> dict[str, str]:
        """Returns an example's value in each column, as text."""
        return {column: _text(example.metadata.get(column)) for column in self.columns}


def measured(stage: Stage) -> shapes.Evaluated:
    """Returns evaluate's facts, with the champion where it was measured, and each model's cost."""
    evaluated = shapes.read_evaluated(stage.facts("evaluate"))
    if EVALUATE_CHAMPION in stage.inputs:
        evaluated = _with_champion(stage, evaluated)
    models = {
        role: replace(
            model,
            cost_per_1000_requests=per_1000_requests(
                model, price_of(stage.spec, role), evaluated.num_examples
            ),
        )
        for role, model in evaluated.models.items()
    }
    return replace(evaluated, models=models)


def answers_of(stage: Stage, role: str) -> dict[str, str]:
    """Returns the texts of a model's answers by the examples' ids."""
    lines = _folder(stage, role).read(f"answers-{role}.jsonl")
    return {response.id: response.text for response in read_lines(Response, lines)}


def statistics_of(stage: Stage, role: str) -> Statistics:
    """Returns the statistics of a model's answers; champion and exported students were evaluated
    without the teacher, so that their agreement is computed here."""
    statistics: Statistics = _folder(stage, role).read_json(f"statistics-{role}.json")
    if role == CHAMPION or role in stage.spec.exports:
        task_type = task_types.load(stage.spec.prepare.task_type)
        own, teachers = answers_of(stage, role), answers_of(stage, "teacher")
        held_out = read_examples(stage.input("prepare"), held_out_split(stage.spec))
        both = [example for example in held_out if example.id in own and example.id in teachers]
        statistics["agreement"] = metrics.statistics(task_type, both, own, teachers)["agreement"]
    return statistics


def _folder(stage: Stage, role: str) -> Folder:
    if role in stage.spec.exports:
        return stage.input(evaluation_of(role))
    return stage.input(EVALUATE_CHAMPION if role == CHAMPION else "evaluate")


def _with_champion(stage: Stage, evaluated: shapes.Evaluated) -> shapes.Evaluated:
    """Returns the facts with the champion among the models, and the student's differences to it."""
    resampling = (stage.spec.evaluate.num_bootstrap, stage.spec.evaluate.seed)
    own, champions = (statistics_of(stage, role) for role in ("student", CHAMPION))
    champion = shapes.read_evaluated(stage.facts(EVALUATE_CHAMPION)).models[CHAMPION]
    scores = {
        name: champion.metrics.get(name)
        or shapes.Estimate.of(metrics.interval(name, statistics, *resampling))
        for name, statistics in champions.items()
    }
    differences = {
        name: shapes.Difference.of(
            metrics.difference(name, own[name], champions[name], *resampling)
        )
        for name in own
        if own[name].keys() & champions.get(name, {}).keys()
    }
    return replace(
        evaluated,
        models={**evaluated.models, CHAMPION: replace(champion, metrics=scores)},
        differences={**evaluated.differences, CHAMPION: differences},
    )


def exported(stage: Stage, metric: str) -> dict[str, shapes.ExportedStudent]:
    """Returns the exported students by role, each against student and teacher."""
    knobs, found = stage.spec.evaluate, dict[str, shapes.ExportedStudent]()
    if not stage.spec.exports:
        return found
    others = {role: statistics_of(stage, role).get(metric, {}) for role in ("student", "teacher")}
    own_facts = stage.facts("evaluate")["models"]["student"]
    num_unanswered = own_facts.get("num_unanswered", 0)
    for role, name in stage.spec.exports.items():
        facts = stage.facts(export_of(role))
        if failed := stage.facts(evaluation_of(role)).get("failed"):
            nothing = shapes.MeasuredModel(name, str(facts.get("engine", "none")), {})
            check = shapes.GateCheck("failed", "an answer", None, passed=False, reason=failed)
            found[role] = shapes.ExportedStudent(name, nothing, check, facts=facts)
            continue
        own = statistics_of(stage, role).get(metric, {})
        against = {
            other: shapes.Difference.of(
                metrics.difference(metric, own, values, knobs.num_bootstrap, knobs.seed)
            )
            for other, values in others.items()
            if own.keys() & values.keys()
        }
        measured = shapes.read_evaluated(stage.facts(evaluation_of(role))).models[role]
        gate, kl = stage.spec.report.gate.export, measured.metrics.get("kl_to_student")
        if (missed := measured.others.get("num_unanswered", 0)) > num_unanswered:
            text = f"it leaves {missed:,} prompts unanswered, and the student {num_unanswered:,}"
            facts = {**facts, "answers": {"difference": text}}
        check = judge_export(against.get("student"), kl, gate, metric, facts)
        found[role] = shapes.ExportedStudent(name, measured, check, against, facts)
    return found


def price_of(spec: JobSpec, role: str) -> Price | None:
    """Returns a model's price; the student's is also its base's and the controls'."""
    if role != "teacher":
        return spec.report.prices.student
    if spec.report.prices.teacher is not None:
        return spec.report.prices.teacher
    spending = spec.generate.spending
    return Price(**{name: getattr(spending, name) for name in Price.model_fields})


def per_1000_requests(model: shapes.MeasuredModel, price: Price | None, num: int) -> float | None:
    """Returns the money for 1,000 requests; None where no price is given or a number is unknown.

    By the hour: at the measured requests a second. By the token: as many a request as the `num`
    test examples took on average, prompts and answers.
    """
    if price is None or not any(price.model_dump().values()):
        return None
    cost = 0.0
    if price.price_per_hour:
        if not model.requests_per_second:
            return None
        cost += price.price_per_hour / (model.requests_per_second * 3600) * 1000
    for tokens, per_million in (
        (model.num_prompt_tokens, price.price_per_million_input_tokens),
        (model.num_tokens, price.price_per_million_output_tokens),
    ):
        if per_million:
            if not tokens or not num:
                return None
            cost += per_million / 1e6 * tokens / num * 1000
    return cost


def read_answered(stage: Stage, models: shapes.ModelsByRole) -> Answered:
    """Returns what the `models` of the report were asked, and what each answered.

    Raises `DataError` where answers of the student belong to no held-out example.
    """
    metric = main_metric(models)
    texts = {role: answers_of(stage, role) for role in models}
    vectors = {role: statistics_of(stage, role).get(metric, {}) for role in models}
    held_out = read_examples(stage.input("prepare"), held_out_split(stage.spec))
    examples = [example for example in held_out if example.id in texts["student"]]
    if lost := len(texts["student"]) - len(examples):
        raise DataError(
            f"report: {lost:,} answers of the student belong to no held-out example; prepare was "
            "made again since: use --force evaluate"
        )
    return Answered(metric, examples, texts, vectors, stage.spec.report.slices)


def _text(value: Any) -> str:
    if value is None:
        return NO_VALUE
    return value if isinstance(value, str) else orjson.dumps(value).decode()
