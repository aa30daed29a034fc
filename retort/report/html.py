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

from retort import card
from retort.card.text import summary
from retort.comparison import caption, details, headlines, table, verdict
from retort.report import views
from retort.report.examples import embedded
from retort.report.pictures import curves, forest, latencies, trade_off

Content = dict[str, Any]


def page(content: Content, examples: dict[str, Any]) -> bytes:
    """Returns the report's page. `content` is report.json's, with or without what belongs to one
    run; `examples` is examples.json's."""
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
        pictures=_pictures(content),
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


def _pictures(content: Content) -> dict[str, list[Markup]]:
    """Returns the pictures by what they show; their texts are escaped where they are drawn."""
    models, found = content["models"], content["comparison"]
    drawn: dict[str, list[str | None]] = {
        "comparison": [
            trade_off(models, found["metric"]),
            forest(found["differences"], found["metric"]),
        ],
        "latencies": [latencies(models, kind) for kind in ("whole", "first_token")],
        "curves": [*curves(content["training"]["curves"])],
        "data": [*card.panels(content["data"]["card"])],
    }
    return {
        name: [Markup(picture) for picture in pictures if picture]
        for name, pictures in drawn.items()
    }


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html"))


@cache
def _text(name: str) -> str:
    return files("retort.report").joinpath(name).read_text(encoding="utf-8")
