"""What further prompts would cost: from the tokens and seconds of the answers that are stored."""

from dataclasses import dataclass

from retort.records import Example, Response
from retort.spec import JobSpec
from retort.stages.budget import Budget
from retort.stages.stage import read_responses
from retort.stages.teachers import each_job
from retort.store import InputFolder


@dataclass(frozen=True)
class PromptCost:
    """What one prompt costs on average, in money and in seconds of the teacher; None where that is
    unknown. `kept` is the share of prompts whose answers are learned from."""

    money: float | None
    seconds: float | None
    kept: float


def prompt_cost(
    spec: JobSpec, generated: InputFolder, examples: list[Example], kept: int
) -> PromptCost:
    """Returns the cost of one more prompt. `examples` are those that were asked to learn from, of
    which so many were kept."""
    responses = read_responses(generated)
    num_asked = max(1, len({response.example_id for response in responses}))
    facts = generated.read_manifest()["facts"]["spending"]
    num_tokens = sum(response.num_tokens for response in responses)
    # Of the tokens that this very artifact paid for: another may have paid for the rest.
    is_timed = facts["engine_seconds"] > 0 and facts["output_tokens"] > 0
    seconds = facts["engine_seconds"] * num_tokens / facts["output_tokens"] if is_timed else None
    money = _money(spec, responses, seconds)
    share = kept / max(1, len(examples))
    return PromptCost(
        None if money is None else money / num_asked,
        None if seconds is None else seconds / num_asked,
        share,
    )


def _money(spec: JobSpec, responses: list[Response], seconds: float | None) -> float | None:
    """Returns what all answers would cost today, by their teachers' prices; None without any."""
    total, is_priced = 0.0, False
    for name, own in each_job(spec).items():
        prices = own.generate.spending
        given = [r for r in responses if not name or r.teacher == name]
        tokens = (sum(r.num_prompt_tokens for r in given), sum(r.num_tokens for r in given))
        share = len(given) / max(1, len(responses))
        total += Budget(prices, "").cost(*tokens, (seconds or 0.0) * share)
        by_token = prices.price_per_million_input_tokens + prices.price_per_million_output_tokens
        is_priced |= by_token > 0 or (prices.price_per_hour > 0 and seconds is not None)
    return total if is_priced else None
