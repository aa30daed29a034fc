"""A challenger, the champion and the logged answers on a sample of real requests.

Each model answers in a process of its own, by the engine, lengths and task type of the job that
made the challenger. What was logged is the answer that both are held against: the task type's
metrics take it as the right one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from retort import metrics, processes
from retort.data import task_types
from retort.engines import Request, find_engine, libraries_of, resolve
from retort.errors import DataError, SpecError
from retort.events import Reporter
from retort.jobs.compare.pairs import in_words
from retort.jobs.devices import visible_gpus
from retort.jobs.finding import FoundModel, built, prepared_for, spec_to_ask
from retort.jobs.notify import notify
from retort.jobs.shadow.drift import KNOWN_PROMPTS, WINDOW_PROMPTS, Drift, drift_of
from retort.jobs.shadow.sample import Sample
from retort.metrics.comparison.shapes import Difference, Estimate
from retort.metrics.scoring import AGREEMENT
from retort.processes import machine
from retort.records import Example, JsonObject, Response, question_text
from retort.spec import JobSpec, Traffic
from retort.stages.evaluate.compared_models import is_answered, settings_of
from retort.stages.prepare.rows import Reader, check_counts, new_counts
from retort.stages.stage import stream_examples
from retort.store import Store, model_folder
from retort.tracking import Tracker

CHALLENGER, CHAMPION = "challenger", "champion"
# What a student and its engine may take, bytes.
ROOM_BYTES = 6 << 30
# A job measures all of its models; here each answers once.
ONCE: JsonObject = {
    "judge": None,
    "graders": None,
    "likelihood": False,
    "limit": None,
    "metrics": [],
}


@dataclass(frozen=True)
class ShadowRequest:
    """What a user asks: see `retort shadow`. Of a `sample` of 0 no model is asked."""

    traffic: Traffic
    sample: int = 500
    drift: bool = False
    engine: str | None = None
    task_type: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Compared:
    """One request with its answers and their scores by role; `logged` is the answer in the log."""

    id: str
    prompt: str
    logged: str
    answers: dict[str, str]
    scores: dict[str, float]
    metadata: JsonObject = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """The challenger's score minus the champion's, or minus the log's own where it is alone."""
        return self.scores.get(CHALLENGER, 0.0) - self.scores.get(CHAMPION, 1.0)


@dataclass(frozen=True)
class Shadow:
    """What was found. `models` are names by role, `metrics` estimates by role and metric.

    `requests` are those on which the models differ most, the challenger's losses first, then the
    others; `verdict` is None where no model was asked, or there is no champion.
    """

    models: dict[str, str]
    num_requests: int
    metric: str | None = None
    metrics: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    difference: Difference | None = None
    verdict: str | None = None
    requests: tuple[Compared, ...] = ()
    drift: Drift | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> JsonObject:
        """Returns all of it as JSON."""
        return {**asdict(self), "drift": self.drift and self.drift.as_json()}

    def numbers(self) -> dict[str, float]:
        """Returns it as metrics of MLflow."""
        found = {
            f"{role}.{name}": estimate.value
            for role, own in self.metrics.items()
            for name, estimate in own.items()
        }
        if self.difference:
            ends = (("", "value"), ("_low", "low"), ("_high", "high"))
            found |= {f"difference{end}": getattr(self.difference, key) for end, key in ends}
        return found | (self.drift.numbers() if self.drift else {})


def shadow(
    store: Store,
    judged: FoundModel,
    champion: FoundModel | None,
    request: ShadowRequest,
    report: Reporter,
) -> Shadow:
    """Asks both models a sample of the logged requests and returns what their answers say.

    It is logged to MLflow, and an alarm of drift is told to RETORT_NOTIFY_URL. Raises `SpecError`
    or `DataError` for logs that cannot be used, and what the engines raise.
    """
    spec = _spec(judged, request)
    of_requests = Sample(request.sample, request.seed)
    of_prompts = Sample(WINDOW_PROMPTS, request.seed)
    notes = _read(spec, request, of_requests, of_prompts)
    models = {CHALLENGER: judged, **({CHAMPION: champion} if champion else {})}
    found = Shadow({role: model.label for role, model in models.items()}, 0, notes=tuple(notes))
    if request.sample:
        examples = of_requests.examples()
        responses = _responses(store, spec, models, examples, report)
        found = _asked(spec, examples, responses, found)
    if request.drift:
        drift = _drift(judged, spec, of_prompts.examples(), request.seed)
        found = replace(found, drift=drift)
        if drift.is_alarm and (failed := notify(alarm(judged.label, drift))):
            report.note(f"warning: {failed}")
    Tracker(store, report.note).log_shadow(spec.name, judged.label, found.numbers())
    return found


def alarm(name: str, drift: Drift) -> str:
    """Returns what is said of drift, without what anybody wrote but single words."""
    words = ", ".join(f"{w.word} {w.window:.0%} ({w.training:.0%} before)" for w in drift.words[:5])
    return (
        f"Retort: the prompts are not those that {name} was trained on any more (p = "
        f"{drift.p_value:.4f}); about {drift.new_share:.0%} of {drift.num_window:,} are new"
        + (f"; more frequent: {words}" if words else "")
    )


def _spec(judged: FoundModel, request: ShadowRequest) -> JobSpec:
    rows = request.traffic.model_dump(mode="json")
    knobs = {"evaluate.engine": request.engine} if request.engine else {}
    spec = built(spec_to_ask(judged, rows, request.task_type, ONCE), knobs)
    if find_engine(resolve(spec.evaluate.engine, 0)).REMOTE:
        raise SpecError(
            f"evaluate.engine: {spec.evaluate.engine} asks an endpoint, but {judged.label} is "
            "opened here; give --engine auto"
        )
    return spec


def _read(
    spec: JobSpec, request: ShadowRequest, of_requests: Sample, of_prompts: Sample
) -> list[str]:
    """Reads the log into the samples; returns what is to be said of it."""
    counts, num_unanswered = new_counts(), 0
    for read in takewhile(lambda read: read.split == "test", Reader(spec).rows()):
        counts.add(read)
        if read.example is None:
            continue
        of_prompts.add(read.example)
        if read.example.reference is None:
            num_unanswered += 1
        else:
            of_requests.add(read.example)
    counts.examples["train"] = counts.examples["test"]  # nothing is trained, so none is missing
    try:
        check_counts(spec, counts)
    except DataError as error:
        raise DataError(str(error).replace("prepare.train: ", "--traffic: ", 1)) from None
    notes = counts.of_traffic(is_scrubbed=True)
    if counts.num_bad:
        notes.append(f"{counts.num_bad:,} bad rows, the first: {counts.first_bad}")
    if num_unanswered:
        notes.append(f"{num_unanswered:,} requests without a logged answer are not compared")
    if request.sample and not of_requests.examples(1):
        raise DataError("no request has a logged answer, so there is nothing to compare with")
    return notes


def _asked(
    spec: JobSpec,
    examples: list[Example],
    responses: dict[str, dict[str, Response]],
    found: Shadow,
) -> Shadow:
    """Returns what was found with the answers of the models, compared."""
    answered = [e for e in examples if all(is_answered(own[e.id]) for own in responses.values())]
    if not answered:
        causes = sorted({str(r.cause) for own in responses.values() for r in own.values()})
        raise DataError(f"no request was answered by all models ({'; '.join(causes[:3])})")
    notes = found.notes
    if number := len(examples) - len(answered):
        notes += (f"{number:,} requests that not every model answered are not compared",)
    texts = {role: {e.id: own[e.id].text for e in answered} for role, own in responses.items()}
    return _compared(spec, replace(found, notes=notes, num_requests=len(answered)), answered, texts)


def _responses(
    store: Store,
    spec: JobSpec,
    models: dict[str, FoundModel],
    examples: list[Example],
    report: Reporter,
) -> dict[str, dict[str, Response]]:
    """Returns the models' responses by role and request's id: of both at once where no GPU has to
    be shared and there is memory for both."""
    is_roomy = (machine.free_memory_bytes() or 0) > ROOM_BYTES * len(models)
    at_once = len(models) if is_roomy and not visible_gpus() else 1
    with ThreadPoolExecutor(at_once) as pool:
        waiting = {
            role: pool.submit(_answers, store.log(f"shadow-{role}"), spec, model, examples, report)
            for role, model in models.items()
        }
        try:
            return {role: future.result() for role, future in waiting.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end_all()
            raise


def _answers(
    log: Path, spec: JobSpec, model: FoundModel, examples: list[Example], report: Reporter
) -> dict[str, Response]:
    """Returns a model's responses by request's id, from a process of its own."""
    with ExitStack() as stack:
        folder = stack.enter_context(model.here())
        model_folder.check(folder, model.label)
        arguments = {
            "spec": spec.model_dump(mode="json"),
            "model": folder,
            "requests": [[e.id, e.messages, e.tools] for e in examples],
        }
        engine = find_engine(resolve(spec.evaluate.engine, 0))
        runtime = {**spec.evaluate.runtime.model_dump(), "libraries": libraries_of(engine)}
        raw = processes.run(answer, arguments, report, log, runtime)
    return {response["id"]: Response(**response) for response in raw}


def answer(spec: JsonObject, model: str, requests: list[Any], report: Reporter) -> list[JsonObject]:
    """Returns a model's responses to requests, greedily, as a comparison asks for them."""
    job = JobSpec.model_validate(spec)
    module = find_engine(resolve(job.evaluate.engine, 0))
    engine, found = module.open_engine(settings_of(job, model)), list[JsonObject]()
    for given in engine.generate(Request(*each) for each in requests):
        found.append(asdict(module.parse(given.id, given.raw)))
        report.progress(len(found), len(requests), "requests")
    return found


def _compared(
    spec: JobSpec, found: Shadow, examples: list[Example], texts: dict[str, dict[str, str]]
) -> Shadow:
    kind, knobs = task_types.load(spec.prepare.task_type), spec.evaluate
    logged = {e.id: str(e.reference) for e in examples}
    by_role = {role: metrics.statistics(kind, examples, own, logged) for role, own in texts.items()}
    own_metrics = by_role[CHALLENGER]
    # Agreement asks for the same answer, which of free texts says little.
    names = [name for name in task_types.metrics_of(kind) if name != AGREEMENT]
    main = next((name for name in names if name in own_metrics), AGREEMENT)
    how = knobs.num_bootstrap, knobs.seed
    estimates = {
        role: {name: Estimate.of(metrics.interval(name, own, *how)) for name, own in stats.items()}
        for role, stats in by_role.items()
    }
    difference = verdict = None
    if CHAMPION in by_role and main in by_role[CHAMPION]:
        difference = Difference.of(
            metrics.difference(main, own_metrics[main], by_role[CHAMPION][main], *how)
        )
        names_of = found.models[CHALLENGER], found.models[CHAMPION]
        verdict = in_words(names_of, main, difference, "logged requests")
    return replace(
        found,
        metric=main,
        metrics=estimates,
        difference=difference,
        verdict=verdict,
        requests=tuple(_requests(main, examples, texts, by_role)),
    )


def _requests(
    metric: str,
    examples: list[Example],
    texts: dict[str, dict[str, str]],
    by_role: dict[str, metrics.Statistics],
) -> Iterator[Compared]:
    """Yields the requests in the order of `Shadow.requests`."""

    def compared(example: Example) -> Compared:
        scores = {
            role: metrics.value(metric, own[metric][example.id])
            for role, own in by_role.items()
            if example.id in own.get(metric, {})
        }
        answers = {role: own[example.id] for role, own in texts.items()}
        prompt, logged = question_text(example.messages), str(example.reference)
        return Compared(example.id, prompt, logged, answers, scores, example.metadata)

    found = [compared(example) for example in examples]
    sign = -1 if metrics.lower_is_better(metric) else 1
    yield from sorted(
        found, key=lambda each: (-abs(each.gap), sign * each.gap, sum(each.scores.values()))
    )


def _drift(judged: FoundModel, spec: JobSpec, window: list[Example], seed: int) -> Drift:
    training = stream_examples(prepared_for(judged), "train")
    sample = Sample(KNOWN_PROMPTS, seed).add_all(training).examples()
    try:
        return drift_of(sample, window, spec.prepare.deduplicate, seed)
    except ValueError as error:
        raise DataError(f"--drift: {error}") from None


def traffic_of(files: list[str], **chosen: Any) -> Traffic:
    """Returns the logs that a command names, with paths as they are from here."""
    here = [f if "://" in f else str(Path(f).expanduser().resolve()) for f in files]
    return Traffic(traffic=here[0] if len(here) == 1 else tuple(here), **chosen)
