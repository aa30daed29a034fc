"""One run of a capture: reads the ledger, asks the pilot, then the rest, and keeps the counts."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from retort.engines import Answer, Engine
from retort.errors import StageError
from retort.records import Example, Response
from retort.spec import JobSpec
from retort.stages.budget import Budget, forecast
from retort.stages.engine_settings import engine_of, open_teacher, settings_of
from retort.stages.generate import pilot
from retort.stages.generate.heartbeat import heartbeat
from retort.stages.generate.listed_signals import check_first
from retort.stages.generate.progress import Progress
from retort.stages.generate.written import asked_in_round, written_answers
from retort.stages.request_loop import RequestLoop
from retort.stages.stage import Stage, spent_on_prompts, stream_examples
from retort.stages.teacher_requests import RequestPlan, TeacherRequest
from retort.stages.teachers import asked
from retort.store.ledger import Ledger, StoredAnswer

# Answers that show whether an endpoint lists log-probabilities.
FEW = 4


class CaptureSession:
    """One run's work on one ledger. `num_requests` counts what this artifact's run asked."""

    def __init__(self, stage: Stage, ledger: Ledger, run: str, max_num_seqs: int):
        self._stage, self.ledger, self._knobs = stage, ledger, stage.spec.generate
        self._run, self._max_num_seqs = run, max_num_seqs
        self._artifact = stage.out.name
        self._written, self._only = written_answers(stage), asked_in_round(stage)
        self.plan = RequestPlan(stage.spec, ledger, self._written)
        route = self._knobs.route
        where = f"generate.teachers.{route.order[0]}" if route else "generate"
        self.budget = Budget(self._knobs.spending, self._artifact, where)
        if route is None:
            self.budget.set_off(spent_on_prompts(stage))
        self.progress = Progress(stage.report, self.budget)
        self._loop = RequestLoop(self.plan, ledger, self.budget, self._received)
        self.num_missing = self._num_before = 0

    @property
    def spec(self) -> JobSpec:
        """The job's."""
        return self._stage.spec

    @property
    def num_requests(self) -> int:
        """Requests that this run has sent, those of a killed attempt of it included."""
        return self._num_before + self._loop.num_sent

    def examples(self) -> Iterator[Example]:
        """Yields the examples that the teacher is asked, from the store, one shard at a time."""
        examples = stream_examples(self._stage.input("prepare"), "train", "validation")
        only = self._only if self._written is None else self._written
        return (e for e in asked(self.spec, examples) if only is None or e.id in only)

    def load(self) -> None:
        """Reads the ledger, and counts what it has and what is missing."""

        def seen(stored: StoredAnswer, response: Response) -> None:
            self.budget.seen(stored, response)
            self._num_before += stored.by == self._artifact and stored.run == self._run

        self.ledger.load(seen)
        self.budget.resume(self._stage.out)
        states: Counter[str] = Counter()
        num_total = 0
        for example in self.examples():
            num_total += self.plan.num_requests(example)
            for request, entry in self.plan.walk(example):
                self.budget.walked(request)
                if entry:
                    states[entry.state] += 1
                else:
                    self.num_missing += 1
        self.progress.begin(states, num_total)

    def ask_all(self) -> None:
        """Asks the pilot, then the rest.

        Raises `StageError` when the pilot or the budget ends the run.
        """
        self.progress.loading()
        settings = settings_of(self.spec, self.ledger.folder.uri)
        settings.runtime["max_num_seqs"] = self._max_num_seqs
        engine = open_teacher(self.spec, settings, self._stage.report, self._stage.resident)
        self.ledger.start(engine.facts)
        self.progress.engine = engine
        self.budget.start()
        with heartbeat(engine, self._stage.report):
            self._ask_first(engine)
            self._ask(engine, self.examples())
        self._show(force=True)
        if self._loop.refused_by:
            kept = f"{self.progress.num_done:,} of {self.progress.num_total:,} responses"
            raise StageError(self.budget.message(self._loop.refused_by, kept))

    def close(self) -> None:
        """Commits all that is finished, whatever ended the run."""
        self.ledger.close()
        if self.budget.started is not None:
            self.budget.keep_seconds(self._stage.out)
            self.budget.stop()

    def _ask(self, engine: Engine, examples: Iterator[Example] | list[Example]) -> None:
        is_scored = self._knobs.mode == "score"
        self._loop.run(engine.score if is_scored else engine.generate, examples)

    def _ask_first(self, engine: Engine) -> None:
        """Asks the pilot, where there is one; else, before many are under way to an endpoint that
        must list log-probabilities, a few."""
        rows, num_total = self._knobs.spending.pilot_rows, self.progress.num_total
        is_pilot, is_live = 0 < rows < num_total, not self._knobs.runtime.batch
        if not is_pilot:
            rows = FEW if self._wants_list and is_live and num_total > FEW else 0
        first = list(islice(self.examples(), rows))
        if first:
            self._ask(engine, first)
            self._check_signal(first)
        if is_pilot:
            pilot.judge(self.spec, self.plan, self.ledger, first, self._stage.report)
            remote = engine_of(self.spec).REMOTE
            at_once = self._knobs.runtime.max_concurrency if remote else self._max_num_seqs
            if self.spec.cluster.ray and not remote:
                at_once *= self._knobs.runtime.replica_range[0]
            self.progress.foresee(forecast(self.budget, self.progress.num_to_ask, at_once))

    @property
    def _wants_list(self) -> bool:
        return self._knobs.top_k > 0 and engine_of(self.spec).REMOTE

    def _check_signal(self, examples: list[Example]) -> None:
        """Commits the answers. Raises `StageError` where they should list log-probabilities, and do
        not."""
        self.ledger.commit()
        if self._wants_list:
            walked = [pair for example in examples for pair in self.plan.walk(example)]
            found = [(request, self.ledger.read(entry)[0]) for request, entry in walked if entry]
            check_first(self.spec, [(self.plan.response(*pair), pair[1]) for pair in found])

    def _received(self, request: TeacherRequest, answer: Answer, response: Response) -> None:
        self.progress.count(answer, response)
        self._show()

    def _show(self, force: bool = False) -> None:
        if self.progress.show(force):
            self.budget.keep_seconds(self._stage.out)
