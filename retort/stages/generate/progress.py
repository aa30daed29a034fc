"""How far a capture is: what is counted of its responses, and what people are shown of it."""

import time
from collections import Counter

import numpy as np

from retort.engines import Answer, Engine
from retort.events import Reporter
from retort.records import Response
from retort.stages.budget import Budget, Forecast

SHOW_SECONDS, CHART_SECONDS = 0.5, 5.0
# Fewer answers than this say little of how long the rest will take.
FEW = 8


class Progress:
    """Counts the responses of a capture and shows, now and then, how far it is.

    `num_cached` of the `num_total` responses were in the ledger when the run began. `engine`, once
    it is open, may have something to show as well.
    """

    def __init__(self, report: Reporter, budget: Budget):
        self._report, self._budget = report, budget
        self.states: Counter[str] = Counter()
        self.num_total = self.num_cached = 0
        self.forecast: Forecast | None = None
        self.engine: Engine | None = None
        self._num_tokens = self._num_signal_tokens = 0
        self._top_k_mass = 0.0
        self._paced_from: tuple[float, int] | None = None  # when, and how many were done by then
        self._shown_at = self._charted_at = 0.0

    def begin(self, states: Counter[str], num_total: int) -> None:
        """Sets what the ledger holds already, by state, of how many responses."""
        self.states, self.num_total = states, num_total
        self.num_cached = states.total()
        if self.num_cached:
            self._report.note(f"{self.num_cached:,} of {num_total:,} responses are in the ledger")

    @property
    def num_done(self) -> int:
        """Responses that are in the ledger."""
        return self.states.total()

    @property
    def num_to_ask(self) -> int:
        """Responses that the ledger lacked when the run began."""
        return self.num_total - self.num_cached

    @property
    def top_k_mass(self) -> float | None:
        """The mean mass of the teacher's top k in the answers of this run; None without signals."""
        return self._top_k_mass / self._num_signal_tokens if self._num_signal_tokens else None

    def loading(self) -> None:
        """Shows that the teacher is being loaded."""
        self._report.progress(self.num_done, self.num_total, "responses", "loading the teacher")

    def count(self, answer: Answer, response: Response) -> None:
        """Counts one final response."""
        self.states[response.state] += 1
        if self._paced_from is None:
            self._paced_from = time.monotonic(), self.num_done
        self._num_tokens += response.num_tokens
        if answer.signal is not None:
            self._top_k_mass += float((1 - np.exp(answer.signal.tail_T)).sum())
            self._num_signal_tokens += len(answer.signal.tail_T)

    def foresee(self, forecast: Forecast) -> None:
        """Shows a forecast, which the time left follows from here on."""
        self.forecast = forecast
        self._paced_from = None
        self._report.note(str(forecast))

    def show(self, force: bool = False) -> bool:
        """Shows a line now and then, numbers for the charts less often; returns whether it did the
        latter."""
        now = time.monotonic()
        if not force and now - self._shown_at < SHOW_SECONDS:
            return False
        self._shown_at = now
        self._report.progress(self.num_done, self.num_total, "responses", self._note())
        if not force and now - self._charted_at < CHART_SECONDS:
            return False
        self._charted_at = now
        values = {f"responses.{state}": float(count) for state, count in self.states.items()}
        values |= {"tokens_per_second": self._pace(), "success_ratio": self._accepted()}
        self._report.metrics(values | self._budget.facts(), step=self.num_done)
        return True

    def _note(self) -> str:
        money = f", {self._budget.spent:,.2f} money" if self._budget.spent else ""
        more = getattr(self.engine, "shown", "")
        return (
            f"{self._pace():,.0f} tokens/s, {self._accepted():.0%} accepted{self._left()}{money}"
            f"{more and ', '}{more}"
        )

    def _pace(self) -> float:
        return self._num_tokens / max(self._budget.running_seconds, 1e-9)

    def _left(self) -> str:
        """Returns how long the rest will take: at the pace since the first answer or, while that
        rests on few, by the forecast; nothing where neither says it."""
        num_left = self.num_total - self.num_done
        since, num_before = self._paced_from or (0.0, self.num_done)
        num_paced = self.num_done - num_before
        if num_left <= 0:
            return ""
        if num_paced >= FEW:
            seconds = (time.monotonic() - since) / num_paced * num_left
        elif self.forecast:
            seconds = self.forecast.seconds / max(self.forecast.responses, 1) * num_left
        else:
            return ""
        minutes, rest = divmod(round(seconds), 60)
        return f", {minutes}:{rest:02} left"

    def _accepted(self) -> float:
        return self.states["accepted"] / max(self.num_done, 1)
