"""The report as one page that needs no network: a pure function of its content and the examples.

Everything a model or a row says is untrusted: the template escapes it, the examples are embedded
as JSON that holds no markup and shown as text, and the page's own policy lets no script run but
the one whose digest it names.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

from retort.metrics.comparison import caption, details, headlines, table, verdict
from retort.stages.curate import data_card
from retort.stages.curate.data_card.text import summary
from retort.stages.report import views
from retort.stages.report.examples import embedded
from retort.stages.report.plots import curves, forest, latencies, trade_off
from retort.store import Folder

Content = dict[str, Any]
Pictures = dict[str, list[str]]


def page(content: Content, examples: dict[str, Any], pictures: Pictures | None = None) -> bytes:
    """Returns the report's page. `content` is report.json's, with or without what belongs to one
    run; `examples` is examples.json's; `pictures` are those of the content, drawn if not given."""
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = _template().render(
        content=content,
        verdict=verdict(content),
        headlines=headlines(content),
        table=table(content),
        details=details(content),
        caption=caption(content),
        checks=views.checks(content),
        pictures=_trusted(draw(content) if pictures is None else pictures),
        differences=views.differences(content),
        slices=views.slices(content),
        confusions=views.confusions(content),
        benchmarks=views.benchmarks(content),
        data=summary(content["data"]["card"]),
        ran=views.ran(content),
        spec=views.spec(content),
        examples=examples,
        embedded=Markup(embedded(examples)),
        style=Markup(_text("page.css")),
        script=Markup(script),
        digest=digest,
    )
    return shown.encode("utf-8", "replace")


def page_of(content: Content, reported: Folder) -> bytes:
    """Returns the page of a report's artifact once more; the content may tell more of one run."""
    return page(content, reported.read_json("examples.json"), reported.read_json("pictures.json"))


def draw(content: Content) -> Pictures:
    """Returns the pictures by what they show; their texts are escaped where they are drawn.

    What belongs to one run is in none of them.
    """
    models, found = content["models"], content["comparison"]
    drawn: dict[str, list[str | None]] = {
        "comparison": [
            trade_off(models, found["metric"]),
            forest(found["differences"], found["metric"]),
        ],
        "latencies": [latencies(models, kind) for kind in ("whole", "first_token")],
        "curves": [*curves(content["training"]["curves"])],
        "data": [*data_card.panels(content["data"]["card"])],
    }
    return {name: [each for each in shown if each] for name, shown in drawn.items()}


def _trusted(pictures: Pictures) -> dict[str, list[Markup]]:
    return {name: [Markup(picture) for picture in drawn] for name, drawn in pictures.items()}


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html"))


@cache
def _text(name: str) -> str:
    return files("retort.stages.report").joinpath(name).read_text(encoding="utf-8")
