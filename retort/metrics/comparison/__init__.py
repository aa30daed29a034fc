"""The comparison: its content and numbers, what they say in words, and the tables that show them.

A control is a student of the same base and rows by plain fine-tuning. Unless the spec says so, the
gate does not look at it; the verdict says how the student compares with it.
"""

from retort.metrics.comparison.ratios import (
    CONTROLS,
    compare,
    flat_differences,
    main_metric,
    warnings,
)
from retort.metrics.comparison.shapes import ReportContent, as_json, read_content
from retort.metrics.comparison.tables import (
    EXPORT_CAPTION,
    ROUNDS_CAPTION,
    TEACHERS_CAPTION,
    caption,
    certainty,
    details,
    exports,
    rounds,
    table,
    teachers,
)
from retort.metrics.comparison.verdict import headlines, too_few, unsure, verdict

__all__ = [
    "CONTROLS",
    "EXPORT_CAPTION",
    "ROUNDS_CAPTION",
    "TEACHERS_CAPTION",
    "ReportContent",
    "as_json",
    "caption",
    "certainty",
    "compare",
    "details",
    "exports",
    "flat_differences",
    "headlines",
    "main_metric",
    "read_content",
    "rounds",
    "table",
    "teachers",
    "too_few",
    "unsure",
    "verdict",
    "warnings",
]
