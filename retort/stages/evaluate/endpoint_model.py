"""A model behind an endpoint, which is paid for: what it answered or was timed at is kept in
ledgers, is asked once, and counts in the teacher's budget.

Requests have the keys that they have in generate. An answer that generate paid for is used where
this stage would ask for the very same; how long it took is not, for it was not asked here.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from retort.engines import Answer, GenerateFunction, Request, Timing
from retort.errors import StageError
from retort.records import Example, JsonObject, Response, content_id, write_lines
from retort.spec import ConsultedModel, JobSpec
from retort.spec.spending import Spending
from retort.stages.budget import Budget
from retort.stages.engine_settings import engine_of
from retort.stages.evaluate.compared_models import (
    answered_examples,
    asked_examples,
    generated,
    is_answered,
    read_answers,
    settings_of,
)
from retort.stages.evaluate.load_test import FEWEST_SAMPLES
from retort.stages.judge import as_teacher
from retort.stages.request_loop import Listener, RequestLoop
from retort.stages.stage import Stage, spent_on_prompts
from retort.stages.teacher_requests import RequestPlan, TeacherRequest, ledger_name, request_context
from retort.store.ledger import Ledger, StoredAnswer

TELL_SECONDS = 1.0
UNKNOWN = (
    *("load_seconds", "parameters", "weights_bytes"),
    *("peak_memory_bytes", "peak_gpu_memory_bytes"),
)
# Beside the answers: how fast they came, a file for each run that asked any.
RATES = "rates/"
TOKENS = ("num_prompt_tokens", "num_tokens")
Context = JsonObject  # what a ledger's requests have in common


class EndpointModel:
    """A model at its endpoint: there is no load test, and its size is unknown.

    `seconds` is how long requests may be timed in a round.
    """

    def __init__(self, stage: Stage, role: str, model: str, seconds: float):
        self._stage, self._role, self._seconds = stage, role, seconds
        self._spec, self._run = _as_teacher(stage.spec, role, model), uuid.uuid4().hex
        self._module, self._told = engine_of(self._spec), 0.0
        self._examples = asked_examples(stage)
        # Where a text is cut off decides its score.
        limit = {"max_tokens": self._spec.generate.max_tokens}
        self._context = request_context(self._spec) | limit
        stage.report.progress(0, len(self._examples), "answers", "loading")
        self._engine = self._module.open_engine(settings_of(stage.spec, model))

    def measure(self, number: int) -> JsonObject:
        """Returns what the turn in round `number` (from 1) measured: the first answers all
        examples, and each times some requests alone.

        Raises `StageError` where the budget is used up, or the model answers nothing.
        """
        self._budget, before = self._counted(), self._of_generate().facts()
        measures = self._answer_all() if number == 1 else {}
        measures |= self._time_some(number)
        spent = self._budget.facts()
        return {
            **self._engine.facts,
            **dict.fromkeys(UNKNOWN),
            "process_id": os.getpid(),
            "spending": {name: value - before.get(name, 0) for name, value in spent.items()},
            "ledgers": [ledger_name(context) for context in self._contexts()],
            **measures,
        }

    def _answer_all(self) -> JsonObject:
        """Asks what no ledger has and writes all answers; returns their counts, and the rates of
        all runs that asked for any of them."""
        plan, ledger = self._open(self._context)
        reused = self._reused()
        missing = [e for e in self._examples if e.id not in reused]
        asked: list[Response] = []

        def received(request: TeacherRequest, answer: Answer, response: Response) -> None:
            asked.append(response)
            self._tell(len(reused) + len(asked), "")

        started = time.monotonic()
        self._ask(plan, ledger, self._engine.generate, missing, received)
        seconds = time.monotonic() - started
        responses = [reused.get(e.id) or _response(plan, ledger, e) for e in self._examples]
        self._stage.out.write(f"answers-{self._role}.jsonl", write_lines(responses))
        answered = [response for response in responses if is_answered(response)]
        return {
            "num_tokens": sum(response.num_tokens for response in answered),
            "num_prompt_tokens": sum(response.num_prompt_tokens for response in answered),
            "num_unreached": sum(self._is_unreached(plan, example) for example in missing),
            **self._rates(ledger, [r for r in asked if is_answered(r)], seconds),
        }

    @staticmethod
    def _is_unreached(plan: RequestPlan, example: Example) -> bool:
        """Whether a request failed for a passing reason: the next run asks it again."""
        entry = plan.entry_for(_request(plan, example))
        return entry is not None and entry.transient

    def _reused(self) -> dict[str, Response]:
        """Returns the answers of generate that this stage would ask for: ended by themselves within
        the limit, or asked with the same one."""
        plan, ledger = self._open(request_context(self._spec))
        most, found = self._spec.generate.max_tokens, {}
        for example in self._examples:
            entry = ledger.find(_request(plan, example).key)
            if entry and entry.state != "failed":
                response = _response(plan, ledger, example)
                is_within = response.state == "accepted" and response.num_tokens > 0
                if is_within or entry.limits[0] == most:
                    found[example.id] = response
        return found

    def _rates(self, ledger: Ledger, asked: list[Response], seconds: float) -> JsonObject:
        """Returns requests and tokens a second over all runs that asked for these examples, None
        where none did; `asked` are the answers of this run."""
        folder, prefix = ledger.folder, f"{RATES}{content_id([e.messages for e in self._examples])}"
        if asked:
            num_tokens = sum(response.num_tokens for response in asked)
            rate = {"requests": len(asked), "tokens": num_tokens, "seconds": seconds}
            folder.write_json(f"{prefix}-{self._run}.json", rate)
        rates = [folder.read_json(name) for name in folder.files() if name.startswith(prefix)]
        total = sum(rate["seconds"] for rate in rates)
        return {
            f"{kind}_per_second": sum(rate[kind] for rate in rates) / total if total else None
            for kind in ("requests", "tokens")
        }

    def _time_some(self, number: int) -> JsonObject:
        """Returns the latencies of requests alone, and what there was no time for.

        A ledger of the round keeps them, with the tokens of the answer to the same request.
        """
        plan, ledger = self._open(self._timed_in(number))
        answers = read_answers(self._stage, self._role)
        examples = answered_examples(self._stage, self._role)
        wanted = examples[: self._stage.spec.evaluate.latency_samples]
        of_key = {_request(plan, e).key: answers[e.id] for e in wanted}
        timings: list[Timing] = []

        def alone(requests: Iterable[Request | None]) -> Iterator[Answer]:
            for request in filter(None, requests):
                seconds, like = asdict(self._engine.timed(request)), of_key[request.id]
                tokens = {name: getattr(like, name) for name in TOKENS}
                yield Answer(request.id, seconds | tokens)

        def while_there_is_time() -> Iterator[Example]:
            for example in wanted:
                spent = sum(timing.whole_seconds for timing in timings)
                if len(timings) >= FEWEST_SAMPLES and spent > self._seconds:
                    return
                yield example
                raw = _stored(plan, ledger, example).raw
                timings.append(Timing(raw["whole_seconds"], raw["first_token_seconds"]))
                self._tell(len(answers), f"latency, {len(timings)} of {len(wanted)} requests")

        self._ask(plan, ledger, alone, while_there_is_time())
        first = [timing.first_token_seconds for timing in timings]
        cut = f"latency: {len(timings)} of {len(wanted)} requests"
        return {
            "latencies": {
                "whole": [timing.whole_seconds for timing in timings],
                "first_token": [seconds for seconds in first if seconds is not None],
            },
            "cut_short": [cut] if len(timings) < len(wanted) else [],
        }

    def _ask(
        self,
        plan: RequestPlan,
        ledger: Ledger,
        answers: GenerateFunction,
        examples: Iterable[Example],
        listener: Listener = lambda *_: None,
    ) -> None:
        """Asks what a ledger lacks, and commits all that is answered, whatever ends it.

        Raises `StageError` where the budget is used up.
        """
        loop, budget = RequestLoop(plan, ledger, self._budget, listener), self._budget
        ledger.start(self._engine.facts)
        budget.start()
        try:
            loop.run(answers, examples)
        finally:
            ledger.close()
            budget.keep_seconds(self._stage.out)
            budget.stop()
        if loop.refused_by:
            num_kept = sum(len(self._open(context)[1]) for context in self._contexts())
            kept = f"{num_kept:,} answers and timed requests of the comparison"
            raise StageError(f"evaluate: {budget.message(loop.refused_by, kept)}")

    def _of_generate(self) -> Budget:
        """Returns the teacher's budget after generate."""
        budget = Budget(self._spec.generate.spending, self._stage.out.name)
        facts, route = generated(self._stage).get("facts", {}), self._stage.spec.generate.route
        if route:  # the first of several teachers is the one that is compared
            facts = facts.get("teachers", {}).get(route.order[0], {})
        budget.charge(facts.get("spending", {}))
        budget.set_off(spent_on_prompts(self._stage))
        return budget

    def _counted(self) -> Budget:
        """Returns the teacher's budget with what this artifact has spent of it so far."""
        budget = self._of_generate()
        budget.resume(self._stage.out)
        for context in self._contexts():
            plan, ledger = self._open(context, budget)
            ledger.describe(context)
        for example in self._examples:
            budget.walked(_request(plan, example))
        return budget

    def _contexts(self) -> list[Context]:
        """Returns the contexts of this stage's own ledgers."""
        rounds = range(1, self._stage.spec.evaluate.rounds + 1)
        return [self._context, *map(self._timed_in, rounds)]

    def _timed_in(self, number: int) -> Context:
        return self._context | {"timed_in_round": number}

    def _open(self, context: Context, budget: Budget | None = None) -> tuple[RequestPlan, Ledger]:
        """Returns a ledger's plan and the ledger, which is read into a budget where one is
        given."""
        parse = _parse_timing if "timed_in_round" in context else self._module.parse
        ledger = Ledger(self._stage.store.ledger(ledger_name(context)), parse, self._run)
        ledger.load(budget.seen if budget else None)
        return RequestPlan(self._spec, ledger), ledger

    def _tell(self, done: int, note: str) -> None:
        """Reports progress, once a second."""
        now, total = time.monotonic(), len(self._examples)
        if now - self._told >= TELL_SECONDS or (done == total and not note):
            self._told = now
            self._stage.report.progress(done, total, "answers", note)


def _as_teacher(spec: JobSpec, role: str, model: str) -> JobSpec:
    """Returns a job in which the model is the teacher, asked as all models are compared."""
    knobs, settings = spec.generate, settings_of(spec, model)
    asked = ConsultedModel(
        model=model,
        engine=knobs.engine if role == "teacher" else spec.evaluate.engine,
        endpoint=settings.endpoint,
        api_key_env=settings.api_key_env,
        max_tokens=settings.max_tokens,
        spending=Spending(**knobs.spending.model_dump(exclude={"pilot_rows"})),
        runtime=spec.evaluate.runtime,
    )
    return as_teacher(spec, asked, knobs.runtime.retry)


def _request(plan: RequestPlan, example: Example) -> TeacherRequest:
    """Returns the one request of an example."""
    return next(plan.walk(example))[0]


def _stored(plan: RequestPlan, ledger: Ledger, example: Example) -> StoredAnswer:
    entry = ledger.find(_request(plan, example).key)
    assert entry, "all that a ledger lacked was asked"
    return ledger.read(entry)[0]


def _response(plan: RequestPlan, ledger: Ledger, example: Example) -> Response:
    return plan.response(_request(plan, example), _stored(plan, ledger, example))


def _parse_timing(request_id: str, raw: JsonObject) -> Response:
    """Returns a timed request as a response: its tokens are all that is known of it."""
    return Response(request_id, "", [], "stop", *(raw[name] for name in TOKENS))
