"""What the teacher costs: counted as it answers, forecast after the pilot, stopped at a limit."""

import time
from dataclasses import dataclass

import orjson

from retort.records import Response
from retort.spec import Generate
from retort.stages.teacher_requests import TeacherRequest

# What a chat template may add to a request: never less than it does.
TEMPLATE_TOKENS = 256


@dataclass
class Budget:
    """Tokens, time and money of one artifact, over all runs that worked on it.

    `reserved_*` is the most that the requests under way can cost.
    """

    knobs: Generate
    responses: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    reserved_input: int = 0
    reserved_output: int = 0
    started: float | None = None
    # Where several processes share the work, each may spend an equal part of what was left.
    parts: int = 1
    before_tokens: int = 0
    before_cost: float = 0.0

    def start(self) -> None:
        """Starts the clock: the engine is up."""
        self.started = time.monotonic()

    def stop(self) -> None:
        """Stops the clock."""
        self.seconds, self.started = self.elapsed(), None

    def elapsed(self) -> float:
        """Returns the seconds that an engine has worked on this artifact."""
        running = time.monotonic() - self.started if self.started is not None else 0.0
        return self.seconds + running

    def reserve(self, ask: TeacherRequest, max_tokens: int, sign: int = 1) -> None:
        """Sets aside what a request can cost at most; with sign -1, gives it back."""
        self.reserved_input += sign * prompt_bound(ask)
        self.reserved_output += sign * max_tokens

    def count(self, response: Response) -> None:
        """Adds what an answer cost."""
        self.responses += 1
        self.input_tokens += response.num_prompt_tokens
        self.output_tokens += response.num_tokens

    @property
    def is_limited(self) -> bool:
        """Whether the spec sets a limit."""
        spending = self.knobs.spending
        return spending.max_tokens_total is not None or spending.max_cost is not None

    def refuses(self, ask: TeacherRequest, max_tokens: int) -> str | None:
        """Returns the knob that one more request could break, or None."""
        spending = self.knobs.spending
        more_input = self.input_tokens + self.reserved_input + prompt_bound(ask)
        more_output = self.output_tokens + self.reserved_output + max_tokens
        total, tokens = spending.max_tokens_total, self.before_tokens
        if total is not None and more_input + more_output - tokens > (total - tokens) / self.parts:
            return f"max_tokens_total: {total}"
        limit, before = spending.max_cost, self.before_cost
        cost = self.cost(more_input, more_output, self.elapsed())
        if limit is not None and cost - before > (limit - before) / self.parts:
            return f"max_cost: {limit:g}"
        return None

    def divide(self, parts: int) -> None:
        """From here on this process may spend one of so many equal parts of what is left."""
        self.parts, self.before_cost = parts, self.spent
        self.before_tokens = self.input_tokens + self.output_tokens

    def cost(self, input_tokens: float, output_tokens: float, seconds: float) -> float:
        """Returns the price of tokens and time, in the currency of the spec's prices."""
        spending = self.knobs.spending
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
        }


def prompt_bound(ask: TeacherRequest) -> int:
    """Returns a number of tokens that the prompt cannot exceed: a token is a byte at least."""
    return len(orjson.dumps([ask.messages, ask.example.tools])) + TEMPLATE_TOKENS


def forecast(meter: Budget, num_asked: int, at_once: int) -> dict[str, float]:
    """Returns tokens, seconds and money of `num_asked` answers, from the mean of those counted.

    `seconds` are at the pace so far; `least_seconds` if `at_once` requests together take no longer
    than the pilot's few did. The truth lies between.
    """
    factor = num_asked / max(meter.responses, 1)
    tokens = meter.input_tokens * factor, meter.output_tokens * factor
    seconds = meter.elapsed() * factor
    return {
        "responses": num_asked,
        "input_tokens": round(tokens[0]),
        "output_tokens": round(tokens[1]),
        "seconds": round(seconds, 1),
        "least_seconds": round(seconds / max(1.0, at_once / max(meter.responses, 1)), 1),
        "cost": round(meter.cost(*tokens, seconds), 4),
    }
