"""From a model and a file of questions to scores, by the functions of the stages.

Note: for `retort.stages.evaluate` the model is the base of a job of one stage, in a store that
lasts as long as the call.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from retort import metrics, processes
from retort.client.models.results import Evaluation, Score, TestData
from retort.data import task_types
from retort.engines import find_engine, resolve
from retort.errors import SpecError
from retort.events import Event, Reporter
from retort.jobs.finding import FoundModel, built, spec_to_ask
from retort.metrics.comparison.shapes import Estimate
from retort.metrics.scoring import AGREEMENT
from retort.metrics.scoring import find as find_metric
from retort.records import Example, JsonObject, write_lines
from retort.spec import JobSpec
from retort.stages.evaluate import measure
from retort.stages.evaluate.compared_models import asked_examples, read_answers
from retort.stages.evaluate.load_test import summary
from retort.stages.prepare.rows import Reader, check_counts, new_counts
from retort.stages.stage import Stage
from retort.store import Store, model_folder, open_store

ACCURACY, TIME, ALIASES = "accuracy", "inference_time", {"bleu_score": "bleu"}
# Where nobody asks how long an answer takes: the least that a spec allows.
LEAST_SAMPLES = 2
# A job measures all of its models; here one is asked once, every row, by nobody judged.
ONCE = {"judge": None, "likelihood": False, "limit": None, "latency_bound_seconds": None}
# The role of a model that no stage has made.
ROLE = "base"


@dataclass(frozen=True)
class EvaluationRequest:
    """What a user asks of a model: see `Models.evaluate`."""

    test_data: TestData
    metrics: Sequence[str] | None
    task_type: str | None
    knobs: JsonObject


def measured(store: Store, found: FoundModel, asked: EvaluationRequest) -> Evaluation:
    """Returns what `Models.evaluate` does; the process of the model logs below the store."""
    spec = spec_of(found, asked)
    names = _names(spec, asked.metrics)
    if find_engine(engine := resolve(spec.evaluate.engine, 0)).REMOTE:
        raise SpecError(
            f"evaluate.engine: {engine} asks an endpoint, but {found.label} is opened here; give "
            'knobs={"evaluate.engine": "auto"}'
        )
    rows, log = _examples(spec), store.log("models")
    with found.here() as folder, tempfile.TemporaryDirectory(prefix="retort-") as scratch:
        model_folder.check(folder, "model_name")
        stage = _stage(spec, rows, open_store(scratch), log)
        measures = processes.run(
            measure.measure,
            {"arguments": stage.arguments(), "role": ROLE, "model": folder, "number": 1},
            stage.report,
            log,
            spec.evaluate.runtime.model_dump(mode="json"),
        )
        examples = asked_examples(stage)
        scores = _scores(stage, examples, names)
    if TIME in names:
        scores[TIME] = _time(spec, measures["latencies"]["whole"])
    # What was named is told even where no row tells it.
    told = [name for name in names if asked.metrics is not None or scores[name].n]
    return Evaluation(found.label, len(examples), {name: scores[name] for name in told})


def spec_of(found: FoundModel, asked: EvaluationRequest) -> JobSpec:
    """Returns the job by which a model is asked: that which made it, with other rows.

    Raises `SpecError` for a knob that there is not, and where nobody says the task type.
    """
    rows = str(asked.test_data) if isinstance(asked.test_data, Path) else asked.test_data
    evaluate: JsonObject = {**ONCE, "metrics": []}
    if TIME not in (asked.metrics or ()):
        evaluate["latency_samples"] = LEAST_SAMPLES
    return built(spec_to_ask(found, rows, asked.task_type, evaluate), asked.knobs)


def _names(spec: JobSpec, given: Sequence[str] | None) -> list[str]:
    """Returns the names of the metrics, each once. Raises `SpecError` for what is none."""
    if given is None:
        own = task_types.metrics_of(task_types.load(spec.prepare.task_type))
        # No teacher is asked here; what takes the place of agreement is with the row's own reply.
        return list(dict.fromkeys(ACCURACY if name == AGREEMENT else name for name in own))
    if isinstance(given, str):
        raise SpecError(f"metrics: '{given}' is one name; give a list of them")
    for name in given:
        if name == AGREEMENT:
            raise SpecError(
                "metrics: agreement is with a teacher's answers, and none is asked here"
            )
        if name != TIME:
            try:
                find_metric(ALIASES.get(name, name))
            except SpecError as error:
                raise SpecError(f"metrics: {error}; also {TIME}, {', '.join(ALIASES)}") from None
    return list(dict.fromkeys(given))


def _examples(spec: JobSpec) -> list[Example]:
    """Returns the good rows. Raises `DataError` when there is none, or too many are bad."""
    counts, examples = new_counts(), list[Example]()
    for read in takewhile(lambda read: read.split == "test", Reader(spec).rows()):
        counts.add(read)
        examples += [read.example] if read.example else []
    counts.examples["train"] = counts.examples["test"]  # nothing is trained, so none is missing
    check_counts(spec, counts)
    if counts.num_bad:
        said = f"{counts.num_bad} bad rows are left out, the first: {counts.first_bad}"
        logging.getLogger("retort").warning(said)
    return examples


def _stage(spec: JobSpec, examples: list[Example], store: Store, log: Path) -> Stage:
    """Returns the stage `evaluate` of a job that has prepared these examples."""
    prepared = store.artifact("prepare", "rows")
    prepared.write("test-00000.jsonl", write_lines(examples))
    inputs, out = {"prepare": prepared.commit({})}, store.artifact("evaluate", "answers")
    return Stage("evaluate", spec, store, inputs, out, Reporter(_say), log)


def _say(event: Event) -> None:
    if event["kind"] == "note":
        logging.getLogger("retort").info(event["text"])


def _scores(stage: Stage, examples: list[Example], names: list[str]) -> dict[str, Score]:
    """Returns the scores of a model's answers by the names under which they were asked for."""
    knobs, kind = stage.spec.evaluate, task_types.load(stage.spec.prepare.task_type)
    texts = {key: response.text for key, response in read_answers(stage, ROLE).items()}
    own = {name: ALIASES.get(name, name) for name in names if name != TIME}
    found, meaning = metrics.statistics(kind, examples, texts, texts, list(own.values())), ""
    if ACCURACY in own.values() and ACCURACY not in found:
        # A conversation has no right answer; its own reply is what a model can agree with.
        expected = [
            replace(each, expected=kind.answer(each.reference, each))
            for each in examples
            if each.reference is not None
        ]
        as_expected = metrics.statistics(kind, expected, texts, texts, [ACCURACY])
        found |= {name: values for name, values in as_expected.items() if name == ACCURACY}
        meaning = "agreement with the expected reply"
    scores = {name: Score(None, None, None, 0) for name in own}
    for name, metric in own.items():
        if metric in found:
            score = Estimate.of(
                metrics.interval(metric, found[metric], knobs.num_bootstrap, knobs.seed)
            )
            told = meaning if metric == ACCURACY else ""
            scores[name] = Score(score.value, score.low, score.high, score.n, None, told)
    return scores


def _time(spec: JobSpec, seconds: list[float]) -> Score:
    """Returns the median of seconds that rows took alone, with its interval and their p95."""
    found = summary(seconds, spec.evaluate.num_bootstrap, spec.evaluate.seed)
    assert found, "there is a row at least"
    return Score(found.p50, found.low, found.high, found.n, found.p95)
