"""The child's side: opens the teacher, asks what the ledger lacks, commits answers as they finish.

The body of `capture` is the order of events; `Session` holds what is under way.
"""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from retort.asks import Ask, Cut, Plan, engine_of, ledger_name, manner, settings_of
from retort.context import Stage, from_arguments, stream_examples
from retort.engines import Answer, Engine, Request
from retort.errors import StageError
from retort.events import Reporter
from retort.generate import pilot, view
from retort.generate.spending import Meter, forecast
from retort.ledger import Entry, Ledger
from retort.records import Example, Response
from retort.signals import join

SAY_SECONDS, CHART_SECONDS, PULSE_SECONDS = 0.5, 5.0, 1.0
SPENT = "scratch/seconds.json"


def capture(
    arguments: dict[str, Any], since: float, max_num_seqs: int, report: Reporter
) -> dict[str, Any]:
    """Asks what is missing and writes the artifact; returns the stage's facts."""
    stage = from_arguments(arguments, report)
    asked = manner(stage.spec)
    ledger = Ledger(stage.store.ledger(ledger_name(asked)), engine_of(stage.spec).parse)
    session = Session(stage, ledger, since, max_num_seqs)
    session.load()
    try:
        if session.num_missing:
            ledger.folder.write_json("manner.json", asked)
            session.ask_all()
    finally:
        session.close()
    knobs = stage.spec.generate
    counts = view.write(stage.out, session.plan, ledger, session.examples(), knobs)
    return {
        **asked,
        **ledger.engine(),
        "ledger": ledger.folder.uri.rsplit("/", 1)[-1],
        **counts,
        "num_asked": session.num_asked,
        "spending": session.meter.facts(),
        "forecast": session.forecast,
        "top_k_mass": session.top_k_mass(),
    }


class Session:
    """One run's work on one ledger: what is outstanding, what was counted."""

    def __init__(self, stage: Stage, ledger: Ledger, since: float, max_num_seqs: int):
        self._stage, self._ledger, self._knobs = stage, ledger, stage.spec.generate
        self._max_num_seqs = max_num_seqs
        self.plan = Plan(stage.spec, ledger, since)
        self.meter = Meter(self._knobs)
        self.forecast: dict[str, float] = {}
        self.num_total = self.num_missing = self.num_asked = 0
        self._states: Counter[str] = Counter()
        self._follow_ups: deque[tuple[Ask, Cut | None]] = deque()
        self._outstanding: dict[str, tuple[Ask, Cut | None, tuple[int, int]]] = {}
        self._stopped = ""
        self._to_ask = self._tokens = self._num_mass = 0
        self._mass = self._before_seconds = 0.0
        self._said = self._charted = 0.0

    def examples(self) -> Iterator[Example]:
        """Yields the examples that the teacher is asked, from the store, one shard at a time."""
        return stream_examples(self._stage.input("prepare"), "train", "validation")

    def load(self) -> None:
        """Reads the ledger, and counts what stands and what is missing."""
        own = self._stage.out.uri.rsplit("/", 1)[-1]

        def seen(entry: Entry, response: Response) -> None:
            if entry.by == own:
                self.meter.count(response)

        self._ledger.load(seen)
        if self._stage.out.has(SPENT):
            self.meter.seconds = self._stage.out.read_json(SPENT)
        for example in self.examples():
            self.num_total += self.plan.num_asks(example)
            for _, standing in self.plan.walk(example):
                if standing:
                    self._states[standing.state] += 1
                else:
                    self.num_missing += 1
        self._to_ask = self.num_total - self.num_done
        self._before_seconds = self.meter.seconds
        if self.num_done:
            self._stage.report.note(
                f"{self.num_done:,} of {self.num_total:,} responses stand in the ledger"
            )

    @property
    def num_done(self) -> int:
        """Responses that stand."""
        return sum(self._states.values())

    def ask_all(self) -> None:
        """Asks the pilot, then the rest. Raises `StageError` when pilot or budget say stop."""
        self._stage.report.progress(
            self.num_done, self.num_total, "responses", "loading the teacher"
        )
        settings = settings_of(self._stage.spec, self._ledger.folder.uri)
        settings.runtime["max_num_seqs"] = self._max_num_seqs
        engine = engine_of(self._stage.spec).open_engine(settings)
        self._ledger.start(engine.facts)
        self.meter.start()
        rows = self._knobs.spending.pilot_rows
        first = list(islice(self.examples(), rows))
        with pulse(engine, self._stage.report):
            if 0 < rows < self.num_total:
                self._ask(engine, self._missing(first))
                self._ledger.commit()
                pilot.judge(self._stage.spec, self.plan, self._ledger, first)
                self._foresee()
            self._ask(engine, self._missing(self.examples()))
        self._report(force=True)
        if self._stopped:
            raise StageError(
                f"stopped by generate.spending.{self._stopped}: {self.meter.input_tokens:,} prompt "
                f"and {self.meter.output_tokens:,} answer tokens, {self.meter.spent:.2f} money "
                f"spent; {self.num_done:,} of {self.num_total:,} responses stand and are not asked "
                "again; raise the limit and run the same command"
            )

    def close(self) -> None:
        """Commits all that is finished, whatever ended the run."""
        self._ledger.close()
        if self.meter.started is not None:
            self.meter.stop()
            self._stage.out.write_json(SPENT, self.meter.seconds)

    def top_k_mass(self) -> float | None:
        """Returns the mean mass of the teacher's top k in the answers of this run, or None."""
        return self._mass / self._num_mass if self._num_mass else None

    def _missing(self, examples: Any) -> Iterator[tuple[Ask, Cut | None]]:
        for example in examples:
            for ask, standing in self.plan.walk(example):
                if standing is None:
                    yield ask, self.plan.cut(ask)

    def _ask(self, engine: Engine, todo: Iterator[tuple[Ask, Cut | None]]) -> None:
        requests = self._requests(todo)
        answer_all = engine.score if self._knobs.mode == "score" else engine.generate
        for answer in answer_all(requests):
            self._take(answer)
        if self._outstanding:
            raise StageError(f"the engine left {len(self._outstanding)} requests unanswered")

    def _requests(self, todo: Iterator[tuple[Ask, Cut | None]]) -> Iterator[Request | None]:
        """Yields requests while the budget allows; later turns and continuations come first."""
        held: deque[tuple[Ask, Cut | None]] = deque()
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
        entry = Entry(answer.id, limits, by, time.time(), answer.raw)
        response = self._ledger.add(entry, signal)
        self.meter.reserve(ask, limits[0], sign=-1)
        self.meter.count(response)
        self._tokens += response.num_tokens
        if answer.signal is not None:
            self._mass += float((1 - np.exp(answer.signal.tail_T)).sum())
            self._num_mass += len(answer.signal.tail_T)
        if self.plan.standing(ask) is None:
            self._follow_ups.append((ask, Cut(response.token_ids, signal, limits)))
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
        remote = engine_of(self._stage.spec).REMOTE
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
        pace = self._tokens / max(self.meter.elapsed() - self._before_seconds, 1e-9)
        accepted = self._states["accepted"] / max(self.num_done, 1)
        note = f"{pace:,.0f} tokens/s, {accepted:.0%} accepted{self._left()}"
        if self.meter.spent:
            note += f", {self.meter.spent:,.2f} money"
        self._stage.report.progress(self.num_done, self.num_total, "responses", note)
        if force or now - self._charted >= CHART_SECONDS:
            self._charted = now
            self._stage.out.write_json(SPENT, self.meter.elapsed())
            values = {f"responses.{state}": float(n) for state, n in self._states.items()}
            values |= {"tokens_per_second": pace, "success_ratio": accepted}
            self._stage.report.metrics(values | self.meter.facts(), step=self.num_done)


@contextlib.contextmanager
def pulse(engine: Engine, report: Reporter) -> Iterator[None]:
    """Says every few seconds that the engine works, as long as its `steps` grow."""
    done = threading.Event()

    def beat() -> None:
        last = -1
        while not done.wait(PULSE_SECONDS):
            steps = getattr(engine, "steps", -1)
            if steps != last:
                report.emit({"kind": "alive"})
            last = steps

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
