"""What asking a model costs: counted as it answers, forecast after the pilot, bounded."""

import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import orjson

from retort.records import JsonObject, Response
from retort.spec.spending import Spending
from retort.stages.teacher_requests import TeacherRequest
from retort.store import Folder
from retort.store.ledger import StoredAnswer

# What a chat template may add to a request: never less than it does.
TEMPLATE_TOKENS = 256


@dataclass
class Budget:
    """Tokens, time and money of one artifact, over all runs that worked on it.

    `artifact` names it, `where` the section of the spec whose `spending` holds the limits.
    `*_before` is what an earlier stage has spent of the same limits; `reserved_*` is the most that
    the requests under way can cost.
    """

    spending: Spending
    artifact: str
    where: str = "generate"
    responses: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    tokens_before: int = 0
    cost_before: float = 0.0
    reserved_input: int = 0
    reserved_output: int = 0
    started: float | None = None
    seconds_file: str = ""
    num_without_usage: int = 0
    prompts_to_bound: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """Starts the clock: the engine is ready."""
        self.started, self.seconds_file = (
            time.monotonic(),
            f"{self._seconds}{uuid.uuid4().hex[:8]}.json",
        )

    def stop(self) -> None:
        """Stops the clock."""
        self.seconds, self.started = self.elapsed(), None

    def charge(self, spending: dict[str, float]) -> None:
        """Adds what another stage has spent of the same limits, given by its `facts`."""
        self.input_tokens += int(spending.get("input_tokens", 0))
        self.output_tokens += int(spending.get("output_tokens", 0))
        self.seconds += spending.get("engine_seconds", 0.0)

    def set_off(self, spending: dict[str, float]) -> None:
        """Takes what an earlier stage has spent, given by its `facts`, off the limits alone."""
        self.tokens_before = int(spending.get("input_tokens", 0) + spending.get("output_tokens", 0))
        self.cost_before = spending.get("cost", 0.0)

    def resume(self, out: Folder) -> None:
        """Adds the seconds that earlier runs and other processes kept in an artifact's folder."""
        kept = [name for name in out.files() if name.startswith(self._seconds)]
        self.seconds += sum(out.read_json(name) for name in kept)

    def keep_seconds(self, out: Folder) -> None:
        """Writes the seconds since the clock was started to an artifact's folder."""
        out.write_json(self.seconds_file, self.running_seconds)

    @property
    def _seconds(self) -> str:
        """Where each process keeps its own seconds, so that several may work on one artifact."""
        return f"scratch/seconds-{self.where}/"

    @property
    def running_seconds(self) -> float:
        """How long the engine has worked in this run, so far."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    def elapsed(self) -> float:
        """Returns the seconds that an engine has worked on this artifact, over all runs."""
        return self.seconds + self.running_seconds

    def reserve(self, request: TeacherRequest, max_tokens: int) -> None:
        """Sets aside what a request can cost at most."""
        if self.is_limited:
            self.reserved_input += prompt_bound(request)
            self.reserved_output += max_tokens

    def seen(self, stored: StoredAnswer, response: Response) -> None:
        """Adds what an answer in a ledger cost, where this artifact paid for it."""
        if stored.by == self.artifact:
            self.prompts_to_bound[stored.key] += self.count(stored, response)

    def walked(self, request: TeacherRequest) -> None:
        """Adds the prompts of answers to a request that were seen without their usage."""
        if number := self.prompts_to_bound.pop(request.key, 0):
            self.input_tokens += number * prompt_bound(request)

    def received(
        self, stored: StoredAnswer, response: Response, request: TeacherRequest, max_tokens: int
    ) -> None:
        """Gives back what was set aside for a request, and adds what its answer cost."""
        if self.is_limited:
            self.reserved_input -= prompt_bound(request)
            self.reserved_output -= max_tokens
        if self.count(stored, response):
            self.input_tokens += prompt_bound(request)

    def count(self, stored: StoredAnswer, response: Response) -> bool:
        """Adds the tokens that an endpoint tells of an answer, and max_tokens where it tells none;
        returns whether its prompt is still to be bounded. An error costs nothing."""
        self.responses += 1
        self.input_tokens += response.num_prompt_tokens
        self.output_tokens += response.num_tokens
        if not isinstance(stored.raw, dict) or "error" in stored.raw:
            return False
        no_prompt = not response.num_prompt_tokens
        is_empty = not (response.text or response.tool_calls)
        no_output = not response.num_tokens and (no_prompt or not is_empty)
        self.output_tokens += stored.limits[0] if no_output else 0
        self.num_without_usage += no_prompt or no_output
        return no_prompt

    @property
    def is_limited(self) -> bool:
        """Whether the spec sets a limit."""
        return self.spending.max_tokens_total is not None or self.spending.max_cost is not None

    def refuses(self, request: TeacherRequest, max_tokens: int) -> str | None:
        """Returns the knob that one more request could exceed, or None."""
        if not self.is_limited:
            return None
        spending = self.spending
        more_input = self.input_tokens + self.reserved_input + prompt_bound(request)
        more_output = self.output_tokens + self.reserved_output + max_tokens
        total, limit = spending.max_tokens_total, spending.max_cost
        if total is not None and self.tokens_before + more_input + more_output > total:
            return f"max_tokens_total: {total}"
        cost = self.cost_before + self.cost(more_input, more_output, self.elapsed())
        if limit is not None and cost > limit:
            return f"max_cost: {limit:g}"
        return None

    def message(self, refused_by: str, kept: str) -> str:
        """Returns why a run ends: a limit was reached; what was spent, and what is kept."""
        usage = usage_note(self.facts())
        return (
            f"stopped by {self.where}.spending.{refused_by}: {self.input_tokens:,} prompt and "
            f"{self.output_tokens:,} answer tokens, {self.spent:.2f} money spent; "
            f"{usage}{usage and '; '}{kept} are in the ledger and are not asked again; raise the "
            "limit and run the same command"
        )

    def cost(self, input_tokens: float, output_tokens: float, seconds: float) -> float:
        """Returns the price of tokens and time, in the currency of the spec's prices."""
        spending = self.spending
        return (
            input_tokens * spending.price_per_million_input_tokens / 1e6
            + output_tokens * spending.price_per_million_output_tokens / 1e6
            + seconds * spending.price_per_hour / 3600
        )

    @property
    def spent(self) -> float:
        """The money spent so far."""
        return self.cost(self.input_tokens, self.output_tokens, self.elapsed())

    def facts(self) -> dict[str, float]:
        """Returns what was spent, for the manifest and MLflow."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "engine_seconds": self.elapsed(),
            "cost": self.spent,
            **({"num_without_usage": self.num_without_usage} if self.num_without_usage else {}),
        }


@dataclass(frozen=True)
class Forecast:
    """What so many responses will take, from the mean of those counted so far.

    `seconds` are at the pace so far; `least_seconds` if all requests that may run at once together
    take no longer than the few so far did. The truth lies between.
    """

    responses: int
    input_tokens: int
    output_tokens: int
    seconds: float
    least_seconds: float
    cost: float

    def __str__(self) -> str:
        money = f", {self.cost:,.2f} money" if self.cost else ""
        unit, size = ("minutes", 60) if self.seconds >= 60 else ("seconds", 1)
        return (
            f"forecast for {self.responses:,} responses: {self.input_tokens:,} prompt and "
            f"{self.output_tokens:,} answer tokens, {self.least_seconds / size:,.1f} to "
            f"{self.seconds / size:,.1f} {unit}{money}"
        )


def prompt_bound(request: TeacherRequest) -> int:
    """Returns a number of tokens that a prompt cannot exceed: a token is at least one byte."""
    sent = [request.messages, request.example.tools, request.instruction]
    return len(orjson.dumps(sent)) + TEMPLATE_TOKENS


def usage_note(spending: JsonObject) -> str:
    """Returns what to know of the tokens in a budget's `facts`; empty where all were told."""
    if not (number := spending.get("num_without_usage")):
        return ""
    return (
        f"{number:,} answers came without their usage: each counts as max_tokens, and as a token "
        "for each byte of its prompt, so that tokens and cost are at most what is told"
    )


def forecast(budget: Budget, num_responses: int, at_once: int) -> Forecast:
    """Returns what `num_responses` will take where `at_once` requests may be under way together."""
    factor = num_responses / max(budget.responses, 1)
    tokens = budget.input_tokens * factor, budget.output_tokens * factor
    seconds = budget.elapsed() * factor
    return Forecast(
        responses=num_responses,
        input_tokens=round(tokens[0]),
        output_tokens=round(tokens[1]),
        seconds=round(seconds, 1),
        least_seconds=round(seconds / max(1.0, at_once / max(budget.responses, 1)), 1),
        cost=round(budget.cost(*tokens, seconds), 4),
    )
