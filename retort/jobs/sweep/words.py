"""A sweep in words and as a table, for a terminal and for Prefect."""

import math
from typing import TYPE_CHECKING, Any

import yaml

from retort.metrics.comparison.formatting import gap, percent, score, unit

if TYPE_CHECKING:
    from retort.jobs.sweep.search import Candidate, Found


def table(found: "Found") -> list[list[str]]:
    """Returns the trials, those that went furthest first; the first row is the heading."""
    rungs = max(len(each.scores) for each in found.candidates)
    shares = [percent(share or 1.0) for share in found.shares[:rungs]]
    ordered = sorted(found.candidates, key=lambda each: (-len(each.scores), -each.rank))
    heading = ["trial", *(f"{found.metric} at {share}" for share in shares), "what differs"]
    return [heading, *(_row(found, each, rungs) for each in ordered)]


def headline(found: "Found") -> str:
    """Returns in one sentence what is best, and what finding it took."""
    winner = found.winner
    return (
        f"{winner.name} is best on validation: {found.metric} "
        f"{score(winner.scores[-1], found.metric)}, the teacher "
        f"{score(found.teacher, found.metric)}; {_values(winner)}; "
        f"{percent(found.cost)} of the steps of {len(found.candidates)} whole trainings, and no "
        "teacher was asked"
    )


def lines(found: "Found") -> list[str]:
    """Returns how sure the choice is among those that were trained as far, and what failed."""
    said = [
        f"{found.winner.name} minus {name}: {gap(own['value'], found.metric)}{unit(found.metric)} "
        f"({gap(own['low'], found.metric)} to {gap(own['high'], found.metric)})"
        for name, own in found.differences.items()
    ]
    return said + [f"{each.name} failed: {each.failed}" for each in found.candidates if each.failed]


def _row(found: "Found", each: "Candidate", rungs: int) -> list[str]:
    scores = [score(value, found.metric) for value in each.scores]
    name = f"{each.name} *" if each is found.winner else each.name
    last = ["failed" if each.failed else ""] * (rungs - len(scores))
    return [name, *scores, *last, _values(each)]


def _values(each: "Candidate") -> str:
    """Returns the knobs that a trial changes, as in a job's file."""
    said = (f"{path}: {_text(value)}" for path, value in each.values.items())
    return ", ".join(said) or "the job as it is"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n...\n").strip()
