"""The pilot: the first answers are looked at before the others are paid for.

It ends the run when so many of them are unusable that the ratio which `generate.min_success_ratio`
asks for has become implausible.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from retort.data import task_types
from retort.data.filters import candidate
from retort.errors import StageError
from retort.events import Reporter
from retort.plugins import find_function
from retort.records import Example, Response
from retort.spec import JobSpec
from retort.stages.teacher_requests import RequestPlan
from retort.store.ledger import Ledger

# Below this probability the required ratio is implausible: a one-sided test at 95%.
IMPLAUSIBLE = 0.05
FORM_FILTERS = ("finished", "non_empty", "not_refused")
NUM_SHOWN, SHOWN_CHARACTERS = 3, 160
# The share of answers whose length is told, and what that length is rounded up to, tokens.
MOST, STEP = 0.9, 32
REMEDIES = {
    "failed": "see that the teacher can be reached (generate.endpoint, generate.api_key_env) and "
    "run the same command, which asks them again",
    "too_long": "raise generate.max_model_len, or shorten the prompts",
    "filtered": "the endpoint filters these prompts: change them, or take another teacher",
    "refused": "the teacher refuses: change prepare.system_prompt or the prompts",
    "empty": "the teacher says nothing: check its chat template, or take another teacher",
    "the answer refuses": "the teacher refuses: change prepare.system_prompt or the prompts",
    "no answer found": "say in generate.instruction how an answer is written, or set "
    "generate.reasoning",
}


@dataclass(frozen=True)
class _Answer:
    """An answer of the pilot, and why it cannot be used; None where it can."""

    response: Response
    reason: str | None


def judge(
    spec: JobSpec, plan: RequestPlan, ledger: Ledger, examples: Iterable[Example], report: Reporter
) -> None:
    """Raises `StageError` when the pilot's answers make the required ratio of usable ones
    implausible, with the knob that mends each cause; notes fewer unusable ones.

    Unusable is what curation would reject for its form: cut off, empty, refused, without an answer
    in it. A wrong answer does not count, nor what a filter of the user's would reject, which may
    cost something itself.
    """
    from scipy.stats import binomtest

    answers = [
        _Answer(response, _unusable(spec, example, response))
        for example in examples
        for response in _responses(plan, ledger, example)
    ]
    bad = [answer for answer in answers if answer.reason]
    if not bad:
        return
    least, num_usable = spec.generate.min_success_ratio, len(answers) - len(bad)
    counted = f"{len(bad)} of the first {len(answers)} answers are unusable"
    causes = "; ".join(_cause(spec, answers, reason) for reason in _by_count(bad))
    test = binomtest(num_usable, len(answers), least, alternative="less")
    if test.pvalue >= IMPLAUSIBLE:
        report.note(f"pilot: {counted}: {causes}")
        return
    shown = "".join(f"\n  {_shown(answer)}" for answer in bad[:NUM_SHOWN])
    raise StageError(
        f"pilot: {counted}, so that generate.min_success_ratio={least:g} is implausible "
        f"(p={test.pvalue:.2g}): {causes}. `retort rows` shows them all; set "
        f"generate.spending.pilot_rows: 0 to go on regardless. The first of them:{shown}"
    )


def _responses(plan: RequestPlan, ledger: Ledger, example: Example) -> Iterable[Response]:
    for request, entry in plan.walk(example):
        if entry is not None:
            yield plan.response(request, ledger.read(entry)[0])


def _unusable(spec: JobSpec, example: Example, response: Response) -> str | None:
    """Returns why an answer cannot be used, or None."""
    if response.state == "failed":
        return "failed"
    task_type = task_types.load(spec.prepare.task_type)
    named = [chosen.name for chosen in spec.curate.filters] or task_types.filters_of(task_type)
    item = candidate.item_of(spec, task_type, example, response)
    for name in (name for name in FORM_FILTERS if name in named):
        if reason := find_function("filter", name, "retort.data.filters")(item):
            return str(reason)
    checks_answers = "verified" in named and example.expected is not None
    return "no answer found" if checks_answers and item.answer is None else None


def _by_count(answers: list[_Answer]) -> list[str]:
    """Returns the reasons, the most frequent first."""
    reasons = [answer.reason for answer in answers if answer.reason]
    return sorted(set(reasons), key=lambda reason: (-reasons.count(reason), reason))


def _cause(spec: JobSpec, answers: list[_Answer], reason: str) -> str:
    """Returns a reason with its count and what to do about it."""
    found = [answer.response for answer in answers if answer.reason == reason]
    if reason == "truncated":
        return f"truncated ({len(found)}): {_longer(spec, [a.response for a in answers])}"
    first = f", the first: {found[0].cause}" if reason == "failed" and found[0].cause else ""
    remedy = REMEDIES.get(reason, "see curate.filters")
    return f"{reason} ({len(found)}{first}): {remedy}"


def _longer(spec: JobSpec, responses: list[Response]) -> str:
    """Returns which `max_tokens` nine answers in ten would need, as far as that is known."""
    knobs = spec.generate
    limit = knobs.max_tokens_retry or knobs.max_tokens
    knob = "generate.max_tokens_retry" if knobs.max_tokens_retry else "generate.max_tokens"
    given = [r for r in responses if r.state in ("accepted", "truncated")]
    ended = [r for r in given if r.state == "accepted"]
    if not ended:
        return f"none ended within {limit} tokens, so raise {knob} to {2 * limit} or more"
    # The estimate of a mean from lengths of which some are cut off (exponential lengths).
    mean = sum(response.num_tokens for response in given) / len(ended)
    needed = STEP * math.ceil(max(mean * -math.log(1 - MOST), limit + 1) / STEP)
    return (
        f"raise {knob} from {limit}; {MOST:.0%} of the answers would end within about {needed} "
        "tokens, by the lengths of these"
    )


def _shown(answer: _Answer) -> str:
    """Returns an answer on one line: its id, why it is unusable, and how it begins."""
    text = " ".join("".join(c if c.isprintable() else " " for c in answer.response.text).split())
    cut = "..." if len(text) > SHOWN_CHARACTERS else ""
    words = text[:SHOWN_CHARACTERS] or answer.response.cause or "(nothing)"
    return f"{answer.response.id} ({answer.reason}): {words}{cut}"
