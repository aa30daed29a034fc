"""The student of a trial, scored on the validation examples: one engine answers them once.

The held-out test examples are not read, and no teacher is asked: its stored answers are scored
beside the student's.
"""

from dataclasses import replace

from retort import metrics, processes
from retort.data import task_types
from retort.engines import find_engine, libraries_of, resolve
from retort.errors import DataError
from retort.events import Reporter
from retort.records import Example, JsonObject, Response, read_lines, write_lines
from retort.spec import TRIAL
from retort.stages.engine_settings import on_cluster, open_engine
from retort.stages.evaluate.compared_models import is_answered, requests_of, settings_of
from retort.stages.stage import Stage, from_arguments, read_examples, read_responses

ANSWERS, STATISTICS = "answers-trial.jsonl", "statistics-trial.json"


def score(stage: Stage) -> JsonObject:
    """Writes the student's answers, and its statistics beside those of the teacher's stored answers
    in the metric that decides; returns the two values.

    An answer that the student could not give counts as an empty one. Raises `DataError` where the
    teacher answered no validation example.
    """
    if not stage.out.has(ANSWERS):
        with stage.input(TRIAL).local_copy("student") as folder:
            arguments = {"arguments": stage.arguments(), "model": str(folder)}
            engine = find_engine(resolve(stage.spec.evaluate.engine, 0))
            runtime = on_cluster(stage.spec, stage.spec.evaluate.runtime)
            runtime["libraries"] = libraries_of(engine)
            processes.run(answer, arguments, stage.report, stage.log, runtime)
    asked, teacher = _asked(stage)
    answers = {r.id: r.text for r in read_lines(Response, stage.out.read(ANSWERS))}
    kind = task_types.load(stage.spec.prepare.task_type)
    metric, student = metrics.decided(kind, asked, answers, teacher)
    statistics = {
        "student": student,
        "teacher": metrics.scored(metric, kind, asked, teacher, teacher),
    }
    stage.out.write_json(STATISTICS, {"metric": metric, **statistics})
    means = {
        role: metrics.interval(metric, own, 100, seed=0)["value"]
        for role, own in statistics.items()
    }
    stage.report.metrics({f"{role}.{metric}": value for role, value in means.items()}, step=0)
    return {"metric": metric, "num_examples": len(asked), **means}


def answer(arguments: JsonObject, model: str, report: Reporter) -> None:
    """Writes a model's greedy answers to the validation examples. It runs in a child."""
    stage = from_arguments(arguments, report)
    name = resolve(stage.spec.evaluate.engine, 0)
    home = (stage.input(TRIAL).uri, "student")
    engine = open_engine(
        stage.spec, name, replace(settings_of(stage.spec, model), home=home), report
    )
    requests, responses = requests_of(_asked(stage)[0]), list[Response]()
    for given in engine.generate(requests):
        responses.append(find_engine(name).parse(given.id, given.raw))
        report.progress(len(responses), len(requests), "answers")
    stage.out.write(ANSWERS, write_lines(responses))


def _asked(stage: Stage) -> tuple[list[Example], dict[str, str]]:
    """Returns the validation examples that the teacher answered, and its first answer to each."""
    texts: dict[str, str] = {}
    for response in read_responses(stage.input("generate")):
        if is_answered(response) and response.messages is None:
            texts.setdefault(response.example_id, response.text)
    examples = read_examples(stage.input("prepare"), "validation")
    asked = [example for example in examples if example.id in texts]
    if not asked:
        raise DataError(
            "a trial is judged by the validation examples, and the teacher answered none; set "
            "prepare.validation_ratio: 0.1, or name rows in prepare.validation"
        )
    return asked, {example.id: texts[example.id] for example in asked}
