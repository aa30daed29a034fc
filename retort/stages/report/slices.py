"""Slices: every value of a metadata column scored by itself, and where the student falls behind."""

from collections import defaultdict

from retort import metrics
from retort.metrics.comparison.shapes import (
    ColumnSlices,
    Difference,
    Estimate,
    SliceValue,
)
from retort.records import Example
from retort.spec import Evaluate
from retort.stages.report.measurements import Answered, Vectors

MOST_VALUES = 20
# With fewer examples an outcome is unclear, whatever the interval says.
FEWEST = 10


def slices(answered: Answered, knobs: Evaluate) -> list[ColumnSlices]:
    """Returns each column with its most frequent values, each scored by itself."""
    return [_column(answered, knobs, column) for column in answered.columns]


def _column(answered: Answered, knobs: Evaluate, column: str) -> ColumnSlices:
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in answered.examples:
        groups[answered.slices_of(example)[column]].append(example)
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    rest = largest[MOST_VALUES:]
    return ColumnSlices(
        column,
        [_value(answered, knobs, *group) for group in largest[:MOST_VALUES]],
        {"values": len(rest), "n": sum(len(examples) for _, examples in rest)},
    )


def _value(answered: Answered, knobs: Evaluate, name: str, examples: list[Example]) -> SliceValue:
    metric, resampling = answered.metric, (knobs.num_bootstrap, knobs.seed)
    ids = {example.id for example in examples}
    own: dict[str, Vectors] = {
        role: {key: vector for key, vector in vectors.items() if key in ids}
        for role, vectors in answered.vectors.items()
    }
    scores = {
        role: Estimate.of(metrics.interval(metric, vectors, *resampling))
        for role, vectors in own.items()
        if vectors
    }
    if not {"teacher", "student"} <= set(scores):
        return SliceValue(name, len(examples), scores)
    pair = own["student"], own["teacher"]
    retention = metrics.ratio(metric, *pair, *resampling)
    return SliceValue(
        value=name,
        n=len(examples),
        metrics=scores,
        difference=Difference.of(
            metrics.difference(metric, *pair, *resampling),
            outcome=None if len(examples) >= FEWEST else "unclear",
        ),
        retention=Estimate.of(retention) if retention else None,
    )


def warnings(columns: list[ColumnSlices], overall: Estimate | None) -> list[str]:
    """Returns the slices of which the student keeps clearly less than `overall`, the retention of
    all examples: the slice's interval lies below the other."""
    if overall is None:
        return []
    return [
        f"where {each.column} is {value.value} ({value.n:,} examples) the student keeps "
        f"{kept.value:.1%} ({kept.low:.1%} to {kept.high:.1%}) of the teacher's score, less than "
        f"the {overall.value:.1%} of all examples: more such training rows may help"
        for each in columns
        for value in each.values
        if (kept := value.retention) and value.n >= FEWEST and kept.high < overall.low
    ]
