"""The data card of a job: what became of its rows, as JSON, as a picture, and as a page.

It is made at the end of curation from the artifacts alone, in one pass, so that a million rows
need no more memory than a few numbers each.
"""

from typing import Any

from retort.data import sources
from retort.data.balance import largest
from retort.records import SPLITS, Decision
from retort.stages.curate.data_card.counts import (
    Examples,
    Responses,
    count_examples,
    count_responses,
)
from retort.stages.curate.data_card.drawing import panels, picture
from retort.stages.curate.data_card.funnel import funnel
from retort.stages.curate.data_card.histograms import lengths
from retort.stages.curate.data_card.text import page
from retort.stages.stage import Stage
from retort.store import urls

__all__ = ["page", "panels", "picture", "write"]

# More reasons or groups than these are one line, "(others)".
MOST_REASONS = 50


def write(stage: Stage, decisions: list[Decision]) -> dict[str, Any]:
    """Writes `data_card.json` and `data_card.svg`; returns the card.

    `decisions` are curation's on every response, in any order. The keys: `funnel`, where each
    step's count is the one before less what it removed; `reasons`, `recognised` and `splits`, in
    rows or responses; `balance` of the train examples and of what is learned from; `lengths` of
    prompts and answers; `sources` with their digests, where prepare tells them.
    """
    facts = stage.facts("prepare")
    examples = count_examples(stage)
    responses = count_responses(stage, examples, decisions)
    quarantined = dict(facts.get("quarantine_reasons", {}))
    if unnamed := facts.get("num_quarantined", 0) - sum(quarantined.values()):
        quarantined["(others)"] = quarantined.get("(others)", 0) + unnamed
    card = {
        "name": stage.spec.name,
        "task_type": stage.spec.prepare.task_type,
        "funnel": funnel(facts, examples.num_examples, responses),
        "reasons": {
            "rejected": largest(responses.reasons, MOST_REASONS),
            "quarantined": largest(quarantined, MOST_REASONS),
        },
        "recognised": facts.get("recognised", {}),
        "splits": {
            "rows": facts.get("num_rows", {}),
            "examples": {**facts.get("num_examples", {}), **examples.num_examples},
            "kept": {"train": responses.num_learned, "validation": responses.num_watched},
        },
        "balance": _balance(examples, responses),
        "lengths": lengths(responses),
        "sources": _sources(stage),
    }
    stage.out.write_json("data_card.json", card)
    stage.out.write("data_card.svg", picture(card))
    return card


def _balance(examples: Examples, responses: Responses) -> dict[str, Any]:
    """Returns how the train examples spread over groups, and the responses learned from.

    `weighted` is how often a pass over the data shows each group, {} where every weight is 1;
    `num_sampled` is how many train examples were grouped where not all were, else None.
    """
    names = examples.group_names
    before = dict(zip(names, examples.before.tolist(), strict=True))
    shown = largest(before)
    after, weighted = dict.fromkeys(shown, 0), dict.fromkeys(shown, 0.0)
    for name, count, weight in zip(names, responses.after, responses.weighted, strict=True):
        row = name if name in shown else "(others)"
        after[row] += int(count)
        weighted[row] += float(weight)
    return {
        "by": examples.by,
        "before": shown,
        "after": after,
        "weighted": {name: round(weight, 4) for name, weight in weighted.items()}
        if responses.is_weighted
        else {},
        "num_sampled": examples.num_sampled,
    }


def _sources(stage: Stage) -> dict[str, dict[str, str]]:
    """Returns where the rows came from, with the digest of each."""
    made_from = stage.input("prepare").read_manifest().get("ingredients", {})
    digests = made_from.get("sources", {})
    return {
        split: {
            "place": urls.public(sources.describe(source)),
            "digest": digests.get(f"prepare.{split}", ""),
        }
        for split in SPLITS
        if (source := getattr(stage.spec.prepare, split)) is not None
    }
