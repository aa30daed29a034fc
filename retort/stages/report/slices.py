"""Slices: every value of a metadata column scored by itself, and where the student falls behind."""

from collections import defaultdict
from typing import Any

from retort import metrics
from retort.metrics.comparison import outcome
from retort.records import Example
from retort.spec import Evaluate
from retort.stages.report.answers import Answered, Vectors

Slice = dict[str, Any]

MOST_VALUES = 20
# Of fewer examples no outcome is told, whatever the interval says.
FEWEST = 10


def slices(answered: Answered, knobs: Evaluate) -> list[Slice]:
    """Returns of each column its `values`, the most frequent first, and how many `others` there are
    and with how many examples.

    A value has its `n` examples, each model's main metric in `metrics`, the `difference` student -
    teacher with its outcome, and `retention`; the last two are None where nothing was scored.
    """
    return [_slice(answered, knobs, column) for column in answered.columns]


def _slice(answered: Answered, knobs: Evaluate, column: str) -> Slice:
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in answered.examples:
        groups[answered.slices_of(example)[column]].append(example)
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    rest = largest[MOST_VALUES:]
    return {
        "column": column,
        "values": [_value(answered, knobs, *group) for group in largest[:MOST_VALUES]],
        "others": {"values": len(rest), "n": sum(len(examples) for _, examples in rest)},
    }


def _value(answered: Answered, knobs: Evaluate, name: str, examples: list[Example]) -> Slice:
    metric, resampling = answered.metric, (knobs.num_bootstrap, knobs.seed)
    ids = {example.id for example in examples}
    own: dict[str, Vectors] = {
        role: {key: vector for key, vector in vectors.items() if key in ids}
        for role, vectors in answered.vectors.items()
    }
    told = {
        role: metrics.interval(metric, vectors, *resampling)
        for role, vectors in own.items()
        if vectors
    }
    found: Slice = {"value": name, "n": len(examples), "metrics": told}
    if not {"teacher", "student"} <= set(told):
        return {**found, "difference": None, "retention": None}
    pair = own["student"], own["teacher"]
    difference = metrics.difference(metric, *pair, *resampling)
    told_apart = outcome(difference) if len(examples) >= FEWEST else "unclear"
    return {
        **found,
        "difference": {**difference, "outcome": told_apart},
        "retention": metrics.ratio(metric, *pair, *resampling),
    }


def warnings(found: list[Slice], overall: dict[str, Any] | None) -> list[str]:
    """Returns the slices of which the student keeps clearly less than `overall`, the retention of
    all examples: the slice's interval lies below the other."""
    if overall is None:
        return []
    return [
        f"where {each['column']} is {value['value']} ({value['n']:,} examples) the student keeps "
        f"{kept['value']:.1%} ({kept['low']:.1%} to {kept['high']:.1%}) of the teacher's score, "
        f"less than the {overall['value']:.1%} of all examples: more such training rows may help"
        for each in found
        for value in each["values"]
        if (kept := value["retention"]) and value["n"] >= FEWEST and kept["high"] < overall["low"]
    ]
