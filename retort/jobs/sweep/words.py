"""A sweep in words and as a table, for a terminal and for Prefect."""

import json
from typing import TYPE_CHECKING, Any

from retort.metrics.comparison.formatting import gap, percent, score, unit

if TYPE_CHECKING:
    from retort.jobs.sweep.search import Candidate, Found


def table(found: "Found") -> list[list[str]]:
    """Returns the trials, those that went furthest first; the first row is the heading."""
    knobs = list(dict.fromkeys(path for each in found.candidates for path in each.values))
    rungs = max(len(each.scores) for each in found.candidates)
    shares = [percent(share or 1.0) for share in found.shares[:rungs]]
    ordered = sorted(found.candidates, key=lambda each: (-len(each.scores), -each.rank))
    heading = ["trial", *knobs, *(f"{found.metric} at {share}" for share in shares)]
    return [heading, *(_row(found, each, knobs, rungs) for each in ordered)]


def headline(found: "Found") -> str:
    """Returns in one sentence what is best, and what finding it took."""
    winner = found.winner
    values = ", ".join(f"{path} {_text(value)}" for path, value in winner.values.items())
    return (
        f"{winner.name} is best on validation: {found.metric} "
        f"{score(winner.scores[-1], found.metric)}, the teacher "
        f"{score(found.teacher, found.metric)}; {values or 'the job as it is'}; "
        f"{percent(found.cost)} of the steps of {len(found.candidates)} whole trainings, and no "
        "teacher was asked"
    )


def lines(found: "Found") -> list[str]:
    """Returns how sure the choice is among those that were trained as far, and what failed."""
    said = [
        f"{found.winner.name} minus {name}: {gap(own['value'], found.metric)} "
        f"({gap(own['low'], found.metric)} to {gap(own['high'], found.metric)})"
        f"{unit(found.metric)}"
        for name, own in found.differences.items()
    ]
    return said + [f"{each.name} failed: {each.failed}" for each in found.candidates if each.failed]


def _row(found: "Found", each: "Candidate", knobs: list[str], rungs: int) -> list[str]:
    values = [_text(each.values[path]) if path in each.values else "as it is" for path in knobs]
    scores = [score(value, found.metric) for value in each.scores]
    name = f"{each.name} *" if each is found.winner else each.name
    last = ["failed" if each.failed else ""] * (rungs - len(scores))
    return [name, *values, *scores, *last]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
