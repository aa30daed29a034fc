"""What plans leave under a job's name: the last plan, and all points, with the score of each
example.

A later plan on more data uses the points again. They are of another set of answers, so their
artifacts have other names and would never be found as cached.
"""

from dataclasses import asdict

import numpy as np
from pydantic import TypeAdapter

from retort.errors import DamagedError
from retort.jobs.plan.shapes import Fact, Plan, Point
from retort.metrics.comparison.shapes import Estimate
from retort.metrics.learning_curve import Band
from retort.records import JsonObject
from retort.store import Folder

LATEST, POINTS = "plan.json", "plan-points.json"
# Of the examples that an earlier point learned from, as many are compared with today's.
MOST_FIRST, LEAST_KNOWN = 256, 0.9
# Validation examples that two plans must share to be compared.
LEAST_SHARED = 16


def read(folder: Folder) -> list[Point]:
    """Returns the points of all plans of a job."""
    stored: list[JsonObject] = folder.read_json(POINTS) if folder.has(POINTS) else []
    return [Point(**{**raw, "score": Estimate(**raw["score"])}) for raw in stored]


def usable(points: list[Point], data: str, recipe: str, kept: list[str]) -> list[Point]:
    """Returns the points of earlier plans that were trained alike on fewer examples than are `kept`
    today, and on some of these; the fewest first, of each number the newest."""
    ids = set(kept)
    found = {
        point.num_examples: point
        for point in points
        if point.data != data
        and point.recipe == recipe
        and point.num_examples < len(ids)
        and sum(id in ids for id in point.first) >= LEAST_KNOWN * len(point.first)
    }
    return sorted(found.values(), key=lambda point: point.num_examples)


def comparable(earlier: list[Point], validation: set[str]) -> list[Point]:
    """Returns those earlier points whose scores are of validation examples of today."""
    return [p for p in earlier if len(validation & set(p.statistics)) >= LEAST_SHARED]


def write(folder: Folder, plan: Plan, known: list[Point]) -> None:
    """Writes a plan, and its points beside all that are known."""
    names = {point.train for point in plan.points}
    kept = [point for point in known if point.train not in names]
    folder.write_json(POINTS, [asdict(point) for point in (*kept, *plan.points)])
    folder.write_json(LATEST, plan.as_json())


def latest(folder: Folder) -> Plan | None:
    """Returns the last plan, without the scores of each example; None where there is none that can
    be read: a damaged one, or that of another version, must not keep a job from its report."""
    if not folder.has(LATEST):
        return None
    try:
        raw: JsonObject = folder.read_json(LATEST)
        raw["points"] = [{"first": [], "statistics": {}, **point} for point in raw["points"]]
        return TypeAdapter(Plan).validate_python(raw)
    except (ValueError, KeyError, TypeError, DamagedError):
        return None


def facts_of(folder: Folder, point: Point, metric: str) -> list[Fact]:
    """Returns what earlier plans said of numbers of examples that were measured since, with this
    point as the newest."""
    last = latest(folder)
    if last is None or last.metric != metric or last.points[-1].recipe != point.recipe:
        return []
    number, curve = point.num_examples, last.curve
    if not last.num_examples < number <= curve[-1][0]:
        return last.facts
    return [*last.facts, Fact(number, at(curve, number), point.score.value)]


def at(curve: list[tuple[int, Band]], number: int) -> Band:
    """Returns what a curve says of a number of examples, between the two that are next to it."""
    sizes = np.log([size for size, _ in curve])

    def between(end: str) -> float:
        return float(np.interp(np.log(number), sizes, [getattr(b, end) for _, b in curve]))

    return Band(between("value"), between("low"), between("high"))
