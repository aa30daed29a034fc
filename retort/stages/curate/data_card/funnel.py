"""The funnel from rows in to what is learned from: each step removes some of the one before."""

from collections.abc import Mapping
from typing import Any

from retort.data.balance import largest
from retort.records import Split
from retort.stages.curate.data_card.card import FunnelStep
from retort.stages.curate.data_card.counts import Responses

# The fact of prepare, its step's name, and why rows are removed.
REMOVED = (
    ("num_quarantined", "quarantined", "bad rows, each kept with its reason"),
    ("num_duplicates", "exact duplicates", "ask the same as a row before"),
    ("num_near_duplicates", "near duplicates", "ask nearly the same as a row before"),
    ("num_contaminated", "contaminated", "hold what a held-out row holds"),
    ("num_left_out", "left out", "above prepare.balance.cap or prepare.limit"),
)


def funnel(
    facts: Mapping[str, Any], num_examples: dict[Split, int], responses: Responses
) -> list[FunnelStep]:
    """Returns the steps in order; rows count up to "examples asked", responses from there on.

    `facts` are prepare's.
    """
    examples, held_out = sum(num_examples.values()), facts.get("num_examples", {}).get("test", 0)
    removed = {name: facts.get(name, 0) for name, _, _ in REMOVED}
    num_rows = sum(facts.get("num_rows", {}).values())
    num_rows = num_rows or examples + held_out + sum(removed.values())
    steps = [FunnelStep("rows in", num_rows)]
    for name, step, why in REMOVED:
        _take(steps, step, removed[name], why)
    if unknown := steps[-1].count - held_out - examples:
        _take(steps, "not accounted for", unknown, "prepare counted them nowhere")
    _take(steps, "examples asked", held_out, "test rows, set apart for the comparison")
    if responses.num_responses != examples:
        ratio = responses.num_responses / max(examples, 1)
        added = examples - responses.num_responses
        _take(steps, "responses", added, f"{ratio:.3g} to an example on average")
    accepted = responses.states["accepted"]
    others = largest({s: n for s, n in responses.states.items() if s != "accepted"}, 9)
    failed = ", ".join(f"{count:,} {state}" for state, count in others.items())
    _take(steps, "responses accepted", responses.num_responses - accepted, failed)
    kept = responses.num_learned + responses.num_watched
    why = "rejected by the filters"
    if responses.num_unaccepted_kept:
        why += f"; {responses.num_unaccepted_kept:,} not accepted were kept"
    _take(steps, "kept", accepted - kept, why)
    _take(steps, "learned from", responses.num_watched, "validation: watched, not learned from")
    return steps


def _take(steps: list[FunnelStep], step: str, removed: int, why: str) -> None:
    steps.append(FunnelStep(step, steps[-1].count - removed, removed, why if removed else ""))
