"""The comparison: its numbers, what they say in words, and the tables that show them everywhere.

A control is a student of the same base and rows by plain fine-tuning. Unless asked to, the gate
does not look at it; the verdict says where the student stands against it.
"""

from retort.metrics import tells as outcome
from retort.metrics.comparison.ratios import (
    CONTROLS,
    compare,
    flat_differences,
    main_metric,
    warnings,
)
from retort.metrics.comparison.tables import caption, details, table
from retort.metrics.comparison.verdict import headlines, too_few, unsure, verdict

__all__ = [
    "CONTROLS",
    "caption",
    "compare",
    "details",
    "flat_differences",
    "headlines",
    "main_metric",
    "outcome",
    "table",
    "too_few",
    "unsure",
    "verdict",
    "warnings",
]
