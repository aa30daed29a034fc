"""The report's pages, which need no network: pure functions of its content and the examples.

Everything that a model or a row says is untrusted: the templates escape it, the examples are
embedded as JSON that holds no markup and shown as text, and the HTML page's own policy lets no
script run but the one whose digest it names.
"""

import base64
import hashlib
from dataclasses import dataclass

from markupsafe import Markup

from retort.metrics.comparison import (
    EXPORT_CAPTION,
    ROUNDS_CAPTION,
    TEACHERS_CAPTION,
    caption,
    details,
    exports,
    headlines,
    pages,
    rounds,
    table,
    teachers,
    verdict,
)
from retort.metrics.comparison import formatting as show
from retort.metrics.comparison.shapes import ColumnSlices, ReportContent
from retort.stages.report import views
from retort.stages.report.examples import (
    ComparedAnswers,
    SideBySide,
    embedded,
    read_side_by_side,
)
from retort.stages.report.plots import curves, forest, latencies, sizes, trade_off
from retort.store import Folder

PACKAGE = "retort.stages.report"
SLICE_HEADING = ["examples", "teacher", "student", "student - teacher", "outcome"]
# By what they show: SVG elements, and the data card as HTML.
Pictures = dict[str, list[str]]


@dataclass(frozen=True)
class PlanShown:
    """A plan of the student: what more prompts are worth in one sentence, as a table whose first
    row is its heading, and as an SVG element."""

    headline: str
    forecasts: list[list[str]]
    picture: str


def markdown(content: ReportContent, examples: list[ComparedAnswers], card: str) -> str:
    """Returns the report in Markdown; `card` is the data card in it."""
    slices = [(_slice_rows(each, content.comparison.metric), each) for each in content.slices]
    return pages.markdown(
        PACKAGE,
        "report.md.jinja",
        **_shared(content),
        slices=slices,
        card=Markup(card.strip()),
        examples=examples,
    )


def page(
    content: ReportContent,
    examples: SideBySide,
    pictures: Pictures,
    plan: PlanShown | None = None,
) -> bytes:
    """Returns the report's page; the content may or may not hold what belongs to one run.

    `pictures` are what `draw` returned and, under `card`, the data card's HTML.
    """
    script = pages.text_of(PACKAGE, "page.js")
    shown = pages.html(
        PACKAGE,
        "page.html",
        **_shared(content),
        views=views,
        plan=plan,
        pictures={name: [Markup(each) for each in drawn] for name, drawn in pictures.items()},
        examples=examples,
        embedded=Markup(embedded(examples)),
        style=Markup(pages.text_of(PACKAGE, "page.css")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return shown.encode("utf-8", "replace")


def page_of(content: ReportContent, reported: Folder, plan: PlanShown | None = None) -> bytes:
    """Returns the page of a report's artifact once more; the content may say more of one run."""
    examples = read_side_by_side(reported.read_json("examples.json"))
    return page(content, examples, reported.read_json("pictures.json"), plan)


def draw(content: ReportContent) -> Pictures:
    """Returns the pictures by what they show; their texts are escaped where they are drawn.

    None of them shows what belongs to one run.
    """
    models, comparison = content.models, content.comparison
    drawn: dict[str, list[str | None]] = {
        "comparison": [
            trade_off(models, comparison.metric),
            forest(comparison.differences, comparison.metric),
        ],
        "exports": [sizes(content)],
        "latencies": [latencies(models, kind) for kind in ("whole", "first_token")],
        "curves": [*curves(content.training.curves)],
    }
    return {name: [each for each in shown if each] for name, shown in drawn.items()}


def _shared(content: ReportContent) -> dict[str, object]:
    """Returns what both templates show."""
    models, comparison = content.models, content.comparison
    return {
        "content": content,
        "verdict": verdict(comparison, content.gate),
        "headlines": headlines(content),
        "table": table(models, comparison.metric),
        "details": details(models, comparison.metric, comparison.differences),
        "caption": caption(content),
        "exports": exports(content),
        "export_caption": EXPORT_CAPTION,
        "teachers": teachers(content),
        "teachers_caption": TEACHERS_CAPTION,
        "rounds": rounds(content),
        "rounds_caption": ROUNDS_CAPTION,
        "show": show,
    }


def _slice_rows(each: ColumnSlices, metric: str) -> list[list[str]]:
    """Returns a column's values as a table."""
    rows = [
        [
            value.value,
            f"{value.n:,}",
            *(show.estimate(value.metrics.get(role), metric, True) for role in SLICE_HEADING[1:3]),
            show.difference(value.difference, metric, with_interval=True),
            str(value.difference.outcome) if value.difference else "",
        ]
        for value in each.values
    ]
    return [[each.column, *SLICE_HEADING], *rows]
