"""Several runs as one page that needs no network, in the report's own look: its style, its tables.

Names and words come from reports, which may be anyone's: the template escapes them all.
"""

from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup


def page(content: dict[str, Any]) -> bytes:
    """Returns the page of what `compare` returned."""
    here = files("retort")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "compare" / "page.html").read_text("utf-8"))
    style = Markup((here / "report" / "page.css").read_text("utf-8"))
    return template.render(content=content, style=style).encode("utf-8", "replace")
