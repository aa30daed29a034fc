"""Pages from Jinja templates: HTML that escapes all text, and Markdown in which text is no markup.

What a user, a row or a model says is untrusted on every page.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

NUMERIC = re.compile(r"[\d\N{MINUS SIGN}+-]|unknown$|none$|$")
MOST_IN_CELL = 120


def html(package: str, name: str, **values: Any) -> str:
    """Returns the page of a template that lies in a package."""
    return _template(package, name, is_html=True).render(**values)


def markdown(package: str, name: str, **values: Any) -> str:
    """Returns the page of a template; a text becomes one line without markup, `Markup` stays."""
    return _template(package, name, is_html=False).render(**values).strip() + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> Markup:
    """Returns rows as a table, the first one its heading; nothing where there is no other.

    Columns of numbers are aligned at the right.
    """
    heading, *body = [[_cell(cell) for cell in row] for row in rows]
    if not body:
        return Markup("")
    columns = zip(*body, strict=True)
    rule = ["---:" if all(map(NUMERIC.match, column)) else "---" for column in columns]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in [heading, rule, *body]))


def one_line(text: str) -> str:
    """Returns a text as one line that is no markup."""
    return " ".join(text.split()).replace("<", "&lt;")


def _cell(text: str) -> str:
    """Returns a text that cannot break out of a cell of a table."""
    text = text if len(text) <= MOST_IN_CELL else f"{text[: MOST_IN_CELL - 1]}…"
    return one_line(text).replace("|", "\\|")


@cache
def text_of(package: str, name: str) -> str:
    """Returns a text file that lies in a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def _template(package: str, name: str, is_html: bool) -> Template:
    environment = Environment(
        autoescape=is_html,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if is_html else _without_markup,
    )
    environment.filters["table"] = markdown_table
    return environment.from_string(text_of(package, name))


def _without_markup(value: Any) -> Any:
    return value if isinstance(value, Markup) else one_line(str(value))
