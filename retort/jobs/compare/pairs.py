"""Two students on the same examples: which is better, or why that cannot be told.

The surprise: examples are the same when what was asked and expected is, whatever they are called.
"""

from itertools import combinations
from typing import Any

from retort import metrics
from retort.jobs.compare.runs import Run
from retort.metrics.comparison import outcome
from retort.metrics.comparison.formatting import gap, gaps, unit
from retort.spec import Evaluate

# Metrics that hold an answer against the teacher's: with another teacher they say something else.
OF_TEACHER = ("agreement", "kl_to_teacher")
StudentPair = dict[str, Any]


def pairs(runs: list[Run]) -> list[StudentPair]:
    """Returns each two runs with `runs`, `metric`, `difference` (first - second, of their students)
    and `outcome`, both None where the two cannot be compared, and `words`, which say it."""
    scored = {run.label: run.statistics() for run in runs}
    asked = {
        run.label: run.questions(set(known)) if (known := scored[run.label]) else None
        for run in runs
    }
    found = []
    for one, other in combinations(runs, 2):
        if why := _apart(one, other):
            found.append(_told(one, other, f"are not ranked: {why}"))
        elif why := _unlike(one, other, scored, asked):
            found.append(_told(one, other, f"are not compared example by example: {why}"))
        else:
            found.append(_compared(one, other, scored))
    return found


def _apart(one: Run, other: Run) -> str:
    """Returns why two runs cannot be ranked at all; nothing where they can."""
    kinds = [run.content["task_type"] for run in (one, other)]
    if kinds[0] != kinds[1]:
        return f"their tasks are of different types ({kinds[0]}, {kinds[1]})"
    if one.metric != other.metric:
        return f"they are judged by different metrics ({one.metric}, {other.metric})"
    teachers = [run.content["models"]["teacher"]["model"] for run in (one, other)]
    if one.metric in OF_TEACHER and teachers[0] != teachers[1]:
        return f"{one.metric} is with different teachers ({teachers[0]}, {teachers[1]})"
    return ""


def _unlike(one: Run, other: Run, scored: dict[str, Any], asked: dict[str, Any]) -> str:
    """Returns why two runs were not scored on the very same examples; nothing where they were."""
    for run in (one, other):
        if not scored[run.label] or not asked[run.label]:
            return f"the scores of each example of {run.label} cannot be read from here"
    first, second = asked[one.label], asked[other.label]
    if first == second:
        return ""
    common = sum(second.get(key) == digest for key, digest in first.items())
    return (
        f"they were not asked the same examples: {one.label} {len(first):,}, {other.label} "
        f"{len(second):,}, {common:,} of them in common"
    )


def _compared(one: Run, other: Run, scored: dict[str, Any]) -> StudentPair:
    knobs = Evaluate()
    found = metrics.difference(
        one.metric, scored[one.label], scored[other.label], knobs.num_bootstrap, knobs.seed
    )
    return {
        "runs": [one.label, other.label],
        "metric": one.metric,
        "difference": found,
        "outcome": outcome(found),
        "words": _words(one, other, found),
    }


def _words(one: Run, other: Run, found: dict[str, Any]) -> str:
    metric = one.metric
    ends, points = gaps(found, metric), unit(metric)
    p = "< 0.001" if found["p_value"] < 0.001 else f"= {found['p_value']:.3f}"
    measured = (
        f"{gap(found['value'], metric)}{points} ({ends}), p {p}, "
        f"on the same {found['n']:,} examples"
    )
    told = outcome(found)
    if told == "unclear":
        return f"these examples cannot tell {one.label} from {other.label} in {metric}: {measured}"
    is_better = (told == "above") != metrics.lower_is_better(metric)
    better = "better" if is_better else "worse"
    return f"{one.label} is {better} than {other.label} in {metric}: {measured}"


def _told(one: Run, other: Run, why: str) -> StudentPair:
    return {
        "runs": [one.label, other.label],
        "metric": one.metric if one.metric == other.metric else None,
        "difference": None,
        "outcome": None,
        "words": f"{one.label} and {other.label} {why}",
    }
