"""The report as a page in Markdown: the tables, the gate, the data and the worst answers."""

from markupsafe import Markup

from retort.metrics.comparison import caption, details, formatting, headlines, pages, table, verdict
from retort.metrics.comparison.content import ColumnSlices, ReportContent
from retort.stages.report.examples import ComparedAnswers

SLICE_HEADING = ["examples", "teacher", "student", "student - teacher", "outcome"]


def markdown(content: ReportContent, examples: list[ComparedAnswers], card: str) -> str:
    """Returns the report as a page; `card` is the data card as Markdown."""
    models, found = content.models, content.comparison
    return pages.markdown(
        "retort.stages.report",
        "report.md.jinja",
        content=content,
        verdict=verdict(found, content.gate),
        headlines=headlines(content),
        table=table(models, found.metric),
        details=details(models, found.metric, found.differences),
        caption=caption(content),
        slices=[(_rows(each, found.metric), each.others) for each in content.slices],
        card=Markup(card.strip()),
        examples=examples,
        show=formatting,
    )


def _rows(each: ColumnSlices, metric: str) -> list[list[str]]:
    """Returns a column's values as a table."""
    rows = [
        [
            value.value,
            f"{value.n:,}",
            *(
                formatting.estimate_with_interval(value.metrics.get(role), metric)
                for role in ("teacher", "student")
            ),
            formatting.difference_with_interval(value.difference, metric),
            str(value.difference.outcome) if value.difference else "",
        ]
        for value in each.values
    ]
    return [[each.column, *SLICE_HEADING], *rows]
