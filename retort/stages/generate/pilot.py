"""The pilot: the first answers are looked at before the others are paid for."""

from collections import Counter
from collections.abc import Iterable

from retort.data import task_types
from retort.data.filters import candidate
from retort.errors import StageError
from retort.plugins import find_function
from retort.records import Example, Response
from retort.spec import JobSpec
from retort.stages.teacher_requests import RequestPlan
from retort.store.ledger import Ledger

MOST_UNUSABLE = 1
FAILED = "failed: "
FORM_FILTERS = ("finished", "non_empty")


def judge(spec: JobSpec, plan: RequestPlan, ledger: Ledger, examples: Iterable[Example]) -> None:
    """Raises `StageError` with the reasons when more than one answer is unusable.

    Unusable is what curation would reject for its form: cut off, empty, without an answer in it.
    A wrong answer is the teacher's matter, and no reason to stop; a filter from outside may cost
    something itself, and is not asked.
    """
    reasons: dict[str, str] = {}
    num_seen = 0
    for example in examples:
        for request, entry in plan.walk(example):
            if entry is None:
                continue
            num_seen += 1
            response = plan.response(request, ledger.read(entry)[0])
            if reason := _unusable(spec, example, response):
                reasons[response.id] = reason
    if len(reasons) > MOST_UNUSABLE:
        counted = ", ".join(f"{why} ({n})" for why, n in Counter(reasons.values()).most_common())
        raise StageError(
            f"pilot: {len(reasons)} of the first {num_seen} answers are unusable: {counted}; "
            f"examples {', '.join(list(reasons)[:5])}. `retort rows` shows them; "
            f"{_remedy(reasons)}, or set generate.spending.pilot_rows: 0 to go on regardless"
        )


def _remedy(reasons: dict[str, str]) -> str:
    if all(reason.startswith(FAILED) for reason in reasons.values()):
        return "see that the teacher can be reached and retry, which asks them again"
    return "mend the prompts or generate's knobs"


def _unusable(spec: JobSpec, example: Example, response: Response) -> str | None:
    """Returns why an answer cannot be used, or None."""
    if response.state == "failed":
        return f"{FAILED}{response.cause}"
    task_type = task_types.load(spec.prepare.task_type)
    named = [chosen.name for chosen in spec.curate.filters] or task_types.filters_of(task_type)
    item = candidate.item_of(spec, task_type, example, response)
    for name in (name for name in FORM_FILTERS if name in named):
        if reason := find_function("filter", name, "retort.data.filters")(item):
            return str(reason)
    checks_answers = "verified" in named and example.expected is not None
    return "no answer found" if checks_answers and item.answer is None else None
