"""The budget, where an endpoint tells what it used, tells a part of it, or nothing."""

import pytest

from retort.engines import find_engine
from retort.records import Example
from retort.spec.spending import Spending
from retort.stages.budget import Budget, usage_note
from retort.stages.teacher_requests import TeacherRequest
from retort.store.ledger import StoredAnswer

KEY, MAX_TOKENS, TEXT = "ab" * 16, 50, "é?" * 40
SHORT = [{"role": "user", "content": TEXT}]
LEAST = len(TEXT.encode())  # tokens of the prompt, if each is one byte


def request(instruction: str | None = None) -> TeacherRequest:
    return TeacherRequest(KEY, Example("e", "train", SHORT), 0, 0, SHORT, [], instruction)


def counted(usage: object, text: str = "yes", error: object = None, late: bool = False) -> Budget:
    """A budget that got one answer; `late`: from a ledger, before its request was known."""
    message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    raw = {"error": error} if error else {"body": message}
    stored = StoredAnswer(KEY, (MAX_TOKENS, 9), "own", 0.0, raw)
    response = find_engine("openai").parse(KEY, raw)
    budget = Budget(Spending(max_tokens_total=10_000), "own")
    if late:
        budget.seen(stored, response)
        budget.walked(request())
        budget.walked(request())
    else:
        budget.reserve(request(), MAX_TOKENS)
        budget.received(stored, response, request(), MAX_TOKENS)
        assert (budget.reserved_input, budget.reserved_output) == (0, 0)
    return budget


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("usage", "text", "prompt", "output"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2}, "yes", 7, 2),
        ({"prompt_tokens": 7, "completion_tokens": 0}, "", 7, 0),  # it said nothing
        ({"prompt_tokens": 7}, "yes", 7, MAX_TOKENS),
        ({"completion_tokens": 2}, "yes", None, 2),
        ({}, "yes", None, MAX_TOKENS),
        (None, "yes", None, MAX_TOKENS),
        (None, "", None, MAX_TOKENS),  # it may have thought
        ("12", "yes", None, MAX_TOKENS),
    ],
)
def test_what_is_not_told_counts_as_much_as_it_can_be(usage, text, prompt, output, late):
    budget = counted(usage, text, late=late)
    assert budget.output_tokens == output
    if prompt is None:
        assert LEAST < budget.input_tokens < LEAST + 500
    else:
        assert budget.input_tokens == prompt
    is_told = prompt is not None and output != MAX_TOKENS
    assert budget.facts().get("num_without_usage", 0) == (not is_told)
    assert usage_note(budget.facts()).startswith("" if is_told else "1 answers came without")


def test_an_error_costs_nothing():
    error = {"kind": "http_500", "code": "", "message": "", "status": 500, "transient": True}
    for late in (False, True):
        budget = counted(None, error=error, late=late)
        assert (budget.input_tokens, budget.output_tokens) == (0, 0)
        assert "num_without_usage" not in budget.facts()


def test_an_instruction_counts_in_the_bound_of_a_prompt():
    budget = Budget(Spending(max_tokens_total=2_000), "own")
    assert budget.refuses(request(), 10) is None
    assert budget.refuses(request("Think. " * 300), 10) == "max_tokens_total: 2000"


def test_answers_that_others_paid_for_do_not_count():
    stored = StoredAnswer(KEY, (MAX_TOKENS, 9), "another", 0.0, {"body": {}})
    budget = Budget(Spending(), "own")
    budget.seen(stored, find_engine("openai").parse(KEY, stored.raw))
    budget.walked(request())
    assert (budget.responses, budget.input_tokens, budget.output_tokens) == (0, 0, 0)


def test_what_an_earlier_stage_has_spent_is_off_the_limits_and_no_cost_of_this_one():
    price = {"price_per_million_output_tokens": 1e6}
    for limit, earlier in [
        ({"max_tokens_total": 3000}, {"input_tokens": 1500, "output_tokens": 1100, "cost": 0.0}),
        ({"max_cost": 100.0, **price}, {"input_tokens": 9, "output_tokens": 60, "cost": 60.0}),
    ]:
        budget = Budget(Spending(**limit), "own")
        assert budget.refuses(request(), MAX_TOKENS) is None
        budget.set_off(earlier)
        assert budget.refuses(request(), MAX_TOKENS).startswith(next(iter(limit)))
        assert budget.spent == budget.facts()["output_tokens"] == 0
