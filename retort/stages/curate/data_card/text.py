"""The data card as a section of a page in Markdown, for the report."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

MOST_REASONS, MOST_GROUPS = 10, 12


def page(card: dict[str, Any]) -> str:
    """Returns the funnel, the reasons, the balance and the lengths as tables under one heading."""
    parts = ["## Data", summary(card), _funnel(card), _reasons(card), _balance(card)]
    parts.append(_lengths(card))
    return "\n\n".join(part for part in parts if part)


def summary(card: dict[str, Any]) -> str:
    """Returns one sentence: how many rows came in, and how many responses are learned from."""
    first, last = card["funnel"][0]["count"], card["funnel"][-1]["count"]
    forms = ", ".join(f"{form} {count:,}" for form, count in card["recognised"].items())
    recognised = f" Recognised: {forms}." if forms else ""
    return f"{first:,} rows in, {last:,} responses learned from.{recognised}"


def _funnel(card: dict[str, Any]) -> str:
    rows = [
        (step["step"], f"{step['count']:,}", change(step["removed"]), step["why"])
        for step in card["funnel"]
        if step["removed"] or not step["step"].startswith(("not ", "exact", "near"))
    ]
    return _table(("step", "left", "removed", "why"), rows)


def _reasons(card: dict[str, Any]) -> str:
    kinds = (("rejected", "answer rejected"), ("quarantined", "row quarantined"))
    found = [(key, n, what) for kind, what in kinds for key, n in card["reasons"][kind].items()]
    found.sort(key=lambda reason: -reason[1])
    rows = [(reason, what, f"{count:,}") for reason, count, what in found[:MOST_REASONS]]
    if rest := sum(count for _, count, _ in found[MOST_REASONS:]):
        rows.append((f"{len(found) - MOST_REASONS} more reasons", "", f"{rest:,}"))
    return _table(("reason", "what", "number"), rows)


def _balance(card: dict[str, Any]) -> str:
    """Groups by share, which is what can be compared; "" where there is one only."""
    spread = card["balance"]
    kinds = [kind for kind in ("before", "after", "weighted") if spread[kind]]
    if len(spread["before"]) < 2:
        return ""
    rows = [
        (name, *(counted(spread[kind], name) for kind in kinds))
        for name in islice(spread["before"], MOST_GROUPS)
    ]
    if len(spread["before"]) > MOST_GROUPS:
        rows.append((f"{len(spread['before']) - MOST_GROUPS} more groups", *[""] * len(kinds)))
    headings = {"before": "examples", "after": "learned from", "weighted": "as weighted"}
    return _table((spread["by"], *(headings[kind] for kind in kinds)), rows)


def _lengths(card: dict[str, Any]) -> str:
    rows = []
    for what, found in card["lengths"].items():
        for when, label in (("before", "all"), ("after", "learned from")):
            if found[when]["num"]:
                of = [f"{found[when][key]:,.10g}" for key in ("min", "median", "p95", "max")]
                rows.append((f"{what}, {label}", found["unit"], *of))
    return _table(("lengths", "in", "min", "median", "p95", "max"), rows)


def counted(spread: dict[str, float], name: str) -> str:
    """Returns a group's number and its share of all groups."""
    return f"{spread[name]:,.0f} ({spread[name] / (sum(spread.values()) or 1):.1%})"


def change(removed: int) -> str:
    """Returns what a step took, as it changes the count."""
    return "" if not removed else f"\N{MINUS SIGN}{removed:,}" if removed > 0 else f"+{-removed:,}"


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a table, text to the left and numbers to the right; "" without rows."""
    cells = [[_plain(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    numbers = [
        all(row[at][:1] in "0123456789\N{MINUS SIGN}+" for row in cells)
        for at in range(len(heading))
    ]
    rule = [" ---: " if number else " --- " for number in numbers]
    lines = [" | ".join(row) for row in ([*heading], *cells)]
    return "\n".join([f"| {lines[0]} |", f"|{'|'.join(rule)}|", *(f"| {x} |" for x in lines[1:])])


def _plain(text: str) -> str:
    """Returns a text that cannot break out of a cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 120 else text[:119] + "…"
