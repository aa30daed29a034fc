"""The comparison: its numbers, what they say in words, and the tables that show them everywhere.

A control is a student of the same base and rows by plain fine-tuning. Unless asked to, the gate
does not look at it; the verdict says where the student stands against it.
"""

from retort.comparison.headlines import headlines
from retort.comparison.ratios import (
    CONTROLS,
    compare,
    flat_differences,
    main_metric,
    warnings,
)
from retort.comparison.tables import caption, details, table
from retort.comparison.words import too_few, unsure, verdict
from retort.metrics import tells as outcome

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
