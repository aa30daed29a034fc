"""The data card as a section of the report's pages: tables in Markdown, bars in HTML."""

from retort.metrics.comparison import pages
from retort.stages.curate.data_card.card import DataCard, GroupBalance

PACKAGE = "retort.stages.curate.data_card"
MOST_REASONS, MOST_GROUPS = 10, 12
PICTURE = "The same as a picture: `data_card.svg`, beside this page."
HEADINGS = {"before": "examples", "after": "learned from", "weighted": "as weighted"}


def as_markdown(card: DataCard) -> str:
    """Returns the funnel, the reasons, the balance and the lengths as tables under one heading."""
    steps = [
        [step.step, f"{step.count:,}", step.change, step.why]
        for step in card.funnel
        if step.removed or step.step not in ("exact duplicates", "near duplicates")
    ]
    found = card.reasons.largest
    reasons = [[reason, kind, f"{count:,}"] for reason, kind, count in found[:MOST_REASONS]]
    if rest := found[MOST_REASONS:]:
        reasons.append([f"{len(rest)} more reasons", "", f"{sum(n for _, _, n in rest):,}"])
    lengths = [
        [f"{what}, {label}", found.unit, *counts.statistics.values()]
        for what, found in card.lengths.items()
        for label, counts in (("all", found.before), ("learned from", found.after))
        if counts.num
    ]
    tables = [
        [["step", "left", "removed", "why"], *steps],
        [["reason", "what", "number"], *reasons],
        _balance(card.balance),
        [["lengths", "in", "min", "median", "p95", "max"], *lengths],
    ]
    shown = [str(table) for rows in tables if (table := pages.markdown_table(rows))]
    parts = ["## Data", pages.one_line(card.summary), *shown, PICTURE]
    return "\n\n".join(parts) + "\n"


def _balance(spread: GroupBalance) -> list[list[str]]:
    """Returns groups by share, which is what can be compared; no row where there is one only."""
    shares = {kind: found for kind, found in spread.shares.items() if found}
    heading = [spread.by, *(HEADINGS[kind] for kind in shares)]
    names = list(spread.before)
    if len(names) < 2:
        return [heading]
    counts = {kind: getattr(spread, kind) for kind in shares}
    rows = [
        [name, *(f"{counts[kind][name]:,.0f} ({shares[kind][name]:.1%})" for kind in shares)]
        for name in names[:MOST_GROUPS]
    ]
    if more := names[MOST_GROUPS:]:
        rows.append([f"{len(more)} more groups", *[""] * len(shares)])
    return [heading, *rows]


def as_html(card: DataCard) -> str:
    """Returns the same as bars, for a page with the report's colours; it brings its own style."""
    return pages.html(
        PACKAGE, "card.html", card=card, most_reasons=MOST_REASONS, most_groups=MOST_GROUPS
    )
