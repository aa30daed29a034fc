"""The data card of a job: what became of its rows, as JSON, a picture, and parts of two pages.

It is made at the end of curation from the artifacts alone.
"""

from collections import Counter
from dataclasses import asdict

from retort.data import sources
from retort.data.balance import largest
from retort.records import SPLITS, Decision
from retort.stages.curate.data_card import counts
from retort.stages.curate.data_card.card import (
    DataCard,
    GroupBalance,
    Reasons,
    as_html,
    as_markdown,
)
from retort.stages.curate.data_card.picture import picture
from retort.stages.stage import Stage
from retort.store import urls

__all__ = ["DataCard", "as_html", "as_markdown", "picture", "write"]

# Further reasons are one line, "(others)".
MOST_REASONS = 50


def write(stage: Stage, decisions: list[Decision]) -> DataCard:
    """Writes `data_card.json`, its picture `data_card.svg`, and the sections `data_card.md` and
    `data_card.html` of the report's pages; returns the card.

    `decisions` are curation's on every response, in any order.
    """
    facts = stage.facts("prepare")
    expanded = facts.get("expanded")
    examples = counts.count_examples(stage)
    responses = counts.count_responses(stage, examples, decisions)
    quarantined = dict(facts.get("quarantine_reasons", {}))
    if unnamed := facts.get("num_quarantined", 0) - sum(quarantined.values()):
        quarantined["(others)"] = quarantined.get("(others)", 0) + unnamed
    rejected, quarantined = (largest(n, MOST_REASONS) for n in (responses.reasons, quarantined))
    card = DataCard(
        name=stage.spec.name,
        task_type=stage.spec.prepare.task_type,
        funnel=counts.funnel(facts, examples.num_examples, responses),
        reasons=Reasons(rejected, quarantined),
        recognised=facts.get("recognised", {}),
        splits={
            "rows": facts.get("num_rows", {}),
            "examples": facts.get("num_examples", {}) | examples.num_examples,
            "kept": {"train": responses.num_learned, "validation": responses.num_watched},
        },
        balance=_balance(examples, responses),
        lengths=counts.lengths(examples, responses),
        sources=_sources(stage),
        origins=counts.origins(stage, expanded, decisions) if expanded else {},
    )
    told = {name: value for name, value in asdict(card).items() if name != "origins" or value}
    stage.out.write_json("data_card.json", told)
    stage.out.write("data_card.svg", picture(card))
    stage.out.write("data_card.md", as_markdown(card).encode())
    stage.out.write("data_card.html", as_html(card).encode("utf-8", "replace"))
    return card


def _balance(examples: counts.Examples, responses: counts.Responses) -> GroupBalance:
    """Returns how the train examples spread over groups, and the responses learned from."""
    names, numbers = examples.group_names, [n for n in examples.group_E if n >= 0]
    before = largest({names[number]: count for number, count in Counter(numbers).items()})
    after, weighted = dict.fromkeys(before, 0), dict.fromkeys(before, 0.0)
    for number, name in enumerate(names):
        group = name if name in before else "(others)"
        after[group] += responses.after[number]
        weighted[group] += responses.weighted.get(number, 0.0)
    shown = {name: round(weight, 4) for name, weight in weighted.items()}
    return GroupBalance(
        examples.by, before, after, shown if responses.is_weighted else {}, examples.num_sampled
    )


def _sources(stage: Stage) -> dict[str, dict[str, str]]:
    """Returns where the rows of each split came from, with their digest."""
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
