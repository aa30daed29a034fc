"""What is under way in one run on one ledger: asked, answered, counted, told.

`Session.ask_all` is the order of events. Where several processes share a job, each has a session of
its own and asks the ranges of examples that it leases.
"""

import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from retort.engines import Answer, Engine, Request
from retort.errors import StageError
from retort.records import Example, Response
from retort.spec import JobSpec
from retort.stages.engine_settings import engine_of, settings_of
from retort.stages.generate import pilot
from retort.stages.generate.budget import Budget, forecast
from retort.stages.generate.heartbeat import pulse
from retort.stages.generate.work_sharing import Share
from retort.stages.stage import Stage, stream_examples
from retort.stages.teacher_requests import RequestPlan, TeacherRequest, TruncatedAnswer
from retort.store.ledger import Ledger, StoredAnswer
from retort.store.signals import join

SAY_SECONDS, CHART_SECONDS, WAIT_SECONDS = 0.5, 5.0, 1.0
# Each process's own seconds, so that several may work on one artifact.
SPENT = "scratch/seconds/"


class Session:
    """One run's work on one ledger: what is outstanding, what was counted."""

    def __init__(self, stage: Stage, ledger: Ledger, since: float, max_num_seqs: int):
        self._stage, self.ledger, self._knobs = stage, ledger, stage.spec.generate
        self._since, self._max_num_seqs = since, max_num_seqs
        self._spent = f"{SPENT}{uuid.uuid4().hex[:8]}.json"
        self._share: Share | None = None
        self.plan = RequestPlan(stage.spec, ledger, since)
        self.meter = Budget(self._knobs)
        self.forecast: dict[str, float] = {}
        self.num_examples = self.num_total = self.num_missing = self.num_asked = 0
        self._states: Counter[str] = Counter()
        self._follow_ups: deque[tuple[TeacherRequest, TruncatedAnswer | None]] = deque()
        self._outstanding: dict[
            str, tuple[TeacherRequest, TruncatedAnswer | None, tuple[int, int]]
        ] = {}
        self._stopped = ""
        self._to_ask = self._tokens = self._num_mass = self._before_done = 0
        self._mass = self._before_seconds = 0.0
        self._said = self._charted = 0.0

    def examples(self) -> Iterator[Example]:
        """Yields the examples that the teacher is asked, from the store, one shard at a time."""
        return stream_examples(self._stage.input("prepare"), "train", "validation")

    def load(self) -> None:
        """Reads the ledger, and counts what stands and what is missing."""
        own = self._stage.out.uri.rsplit("/", 1)[-1]

        def seen(entry: StoredAnswer, response: Response) -> None:
            if entry.by == own:
                self.meter.count(response)
                self.num_asked += entry.at >= self._since

        self.ledger.load(seen)
        spent = [name for name in self._stage.out.files() if name.startswith(SPENT)]
        self.meter.seconds = sum(self._stage.out.read_json(name) for name in spent)
        for example in self.examples():
            self.num_examples += 1
            self.num_total += self.plan.num_requests(example)
            for _, standing in self.plan.walk(example):
                if standing:
                    self._states[standing.state] += 1
                else:
                    self.num_missing += 1
        self._before_done = self.num_done
        self._to_ask = self.num_total - self._before_done
        self._before_seconds = self.meter.seconds
        if self.num_done:
            self._stage.report.note(
                f"{self.num_done:,} of {self.num_total:,} responses stand in the ledger"
            )

    @property
    def spec(self) -> JobSpec:
        """The job's."""
        return self._stage.spec

    @property
    def num_done(self) -> int:
        """Responses that stand, as far as this process knows."""
        own = sum(self._states.values())
        return own if self._share is None else min(self.num_total, own + int(self._told("done")))

    def ask_all(self, share: Share | None) -> None:
        """Asks the pilot, then the rest, or its share of it. Who only helps leaves the pilot to
        the job. Raises `StageError` when pilot or budget say stop."""
        self._stage.report.progress(
            self.num_done, self.num_total, "responses", "loading the teacher"
        )
        settings = settings_of(self.spec, self.ledger.folder.uri)
        settings.runtime["max_num_seqs"] = self._max_num_seqs
        engine = engine_of(self.spec).open_engine(settings)
        self.ledger.start(engine.facts)
        self.meter.start()
        with pulse(engine, self._stage.report):
            if share is None or share.leads:
                self._ask_pilot(engine)
            if share:
                self._ask_share(engine, share)
            else:
                self._ask(engine, self._missing(self.examples()))
        self._report(force=True)
        if self._stopped:
            raise StageError(
                f"stopped by generate.spending.{self._stopped}: {self.meter.input_tokens:,} prompt "
                f"and {self.meter.output_tokens:,} answer tokens, {self.meter.spent:.2f} money "
                f"spent; {self.num_done:,} of {self.num_total:,} responses stand and are not asked "
                "again; raise the limit and run the same command"
            )

    def _ask_pilot(self, engine: Engine) -> None:
        rows = self._knobs.spending.pilot_rows
        if 0 < rows < self.num_total:
            first = list(islice(self.examples(), rows))
            self._ask(engine, self._missing(first))
            self.ledger.commit()
            pilot.judge(self.spec, self.plan, self.ledger, first)
            self._foresee()

    def _ask_share(self, engine: Engine, share: Share) -> None:
        """Asks the ranges that this process leases; who leads goes on until all are done."""
        self._share, number = share, self._knobs.runtime.replicas
        self.meter.divide(number)
        if share.leads and share.open(self.num_examples, number):
            arguments, since = self._stage.arguments(), self._since
            given = {"arguments": arguments, "since": since, "meeting": share.folder.uri}
            self._stage.report.emit({"kind": "shared", "number": number - 1, "given": given})
        while not self._stopped:
            self._ask(engine, self._missing(share.rows(self.examples())))
            while (left := share.left()) == "held":
                time.sleep(WAIT_SECONDS)
                self._report()
            if left == "done":
                return
            self.ledger.commit()
            self.ledger.load()  # of a lost range, what its holder committed

    def close(self) -> None:
        """Commits all that is finished, whatever ended the run."""
        self.ledger.close()
        if self.meter.started is not None:
            self.meter.stop()
            self._keep_seconds()

    def _keep_seconds(self) -> None:
        seconds = self.meter.elapsed() - self._before_seconds
        self._stage.out.write_json(self._spent, seconds)

    def top_k_mass(self) -> float | None:
        """Returns the mean mass of the teacher's top k in the answers of this run, or None."""
        mass, number = self._mass + self._told("mass"), self._num_mass + self._told("num_mass")
        return mass / number if number else None

    def _told(self, name: str) -> float:
        """Returns the sum of what others who share the work told."""
        return self._share.told(name) if self._share else 0.0

    def _missing(self, examples: Any) -> Iterator[tuple[TeacherRequest, TruncatedAnswer | None]]:
        for example in examples:
            for ask, standing in self.plan.walk(example):
                if standing is None:
                    yield ask, self.plan.cut(ask)

    def _ask(
        self, engine: Engine, todo: Iterator[tuple[TeacherRequest, TruncatedAnswer | None]]
    ) -> None:
        requests = self._requests(todo)
        answer_all = engine.score if self._knobs.mode == "score" else engine.generate
        for answer in answer_all(requests):
            self._take(answer)
        if self._outstanding:
            raise StageError(f"the engine left {len(self._outstanding)} requests unanswered")

    def _requests(
        self, todo: Iterator[tuple[TeacherRequest, TruncatedAnswer | None]]
    ) -> Iterator[Request | None]:
        """Yields requests while the budget allows; later turns and continuations come first."""
        held: deque[tuple[TeacherRequest, TruncatedAnswer | None]] = deque()
        while not self._stopped:
            queue = held or self._follow_ups
            found = queue.popleft() if queue else next(todo, None)
            if found is None:
                if not self._outstanding:
                    return
                yield None
                continue
            ask, cut = found
            request, limits = self.plan.request(ask, cut)
            refused = self.meter.refuses(ask, limits[0]) if self.meter.is_limited else None
            if refused:
                held.append(found)
                if not self._outstanding:
                    self._stopped = refused
                    return
                yield None
                continue
            if ask.key in self._outstanding:
                continue
            self.meter.reserve(ask, limits[0])
            self._outstanding[ask.key] = (ask, cut if request.continues else None, limits)
            self.num_asked += 1
            yield request

    def _take(self, answer: Answer) -> None:
        """Commits one answer, then looks at it."""
        waiting = self._outstanding.pop(answer.id, None)
        if waiting is None:
            raise StageError(f"the engine answered {answer.id} twice or unasked")
        ask, cut, limits = waiting
        signal = answer.signal
        if cut and cut.signal and len(answer.raw.get("token_ids", ())) >= len(cut.token_ids):
            signal = join(cut.signal, signal) if signal else cut.signal
        by = self._stage.out.uri.rsplit("/", 1)[-1]
        entry = StoredAnswer(answer.id, limits, by, time.time(), answer.raw)
        response = self.ledger.add(entry, signal)
        self.meter.reserve(ask, limits[0], sign=-1)
        self.meter.count(response)
        self._tokens += response.num_tokens
        if answer.signal is not None:
            self._mass += float((1 - np.exp(answer.signal.tail_T)).sum())
            self._num_mass += len(answer.signal.tail_T)
        if self.plan.entry_for(ask) is None:
            self._follow_ups.append((ask, TruncatedAnswer(response.token_ids, signal, limits)))
            return
        self._states[response.state] += 1
        if following := self.plan.after(ask, response):
            self._follow_ups += (
                (later, self.plan.cut(later))
                for later, standing in self.plan.chain(following)
                if standing is None
            )
        self._report()

    def _foresee(self) -> None:
        """Says what the whole will cost, from what the pilot did."""
        remote = engine_of(self.spec).REMOTE
        at_once = self._knobs.runtime.max_concurrency if remote else self._max_num_seqs
        self.forecast = found = forecast(self.meter, self._to_ask, at_once)
        money = f", {found['cost']:,.2f} money" if found["cost"] else ""
        self._stage.report.note(
            f"forecast for {found['responses']:,} responses: {found['input_tokens']:,} prompt and "
            f"{found['output_tokens']:,} answer tokens, {found['least_seconds'] / 60:,.1f} to "
            f"{found['seconds'] / 60:,.1f} minutes{money}"
        )

    def _left(self) -> str:
        """Returns how long the rest takes at this run's pace, where that can be said."""
        done = self._to_ask - (self.num_total - self.num_done)
        seconds = self.meter.elapsed() - self._before_seconds
        if done <= 0 or self.num_done >= self.num_total:
            return ""
        minutes, rest = divmod(round(seconds / done * (self.num_total - self.num_done)), 60)
        return f", {minutes}:{rest:02} left"

    def _report(self, force: bool = False) -> None:
        """Says how far the run is: a line now and then, numbers for the charts less often."""
        now = time.monotonic()
        if not force and now - self._said < SAY_SECONDS:
            return
        self._said = now
        if self._share:
            self._share.holder.status = {
                "done": sum(self._states.values()) - self._before_done,
                "tokens": self._tokens,
                "mass": self._mass,
                "num_mass": self._num_mass,
            }
        tokens = self._tokens + self._told("tokens")
        pace = tokens / max(self.meter.elapsed() - self._before_seconds, 1e-9)
        accepted = self._states["accepted"] / max(self.num_done, 1)
        note = f"{pace:,.0f} tokens/s, {accepted:.0%} accepted{self._left()}"
        if self.meter.spent:
            note += f", {self.meter.spent:,.2f} money"
        self._stage.report.progress(self.num_done, self.num_total, "responses", note)
        if force or now - self._charted >= CHART_SECONDS:
            self._charted = now
            self._keep_seconds()
            values = {f"responses.{state}": float(n) for state, n in self._states.items()}
            values |= {"tokens_per_second": pace, "success_ratio": accepted}
            self._stage.report.metrics(values | self.meter.facts(), step=self.num_done)
