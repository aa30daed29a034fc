"""Tables on a terminal. What a model, a row or a user says is shown without markup and without
control characters.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retort.events import shown


def open_console() -> Console:
    """Returns the terminal, where a table is as wide as it must be and no text is markup."""
    return Console(soft_wrap=True, highlight=False, markup=False)


def table_of(rows: Sequence[Sequence[str]], *, folds: bool = True) -> Table:
    """Returns rows as a table, the first one its heading. Where it does not fold, no column is
    narrower than its name."""
    heading, *body = rows
    table = Table()
    for name in heading:
        own = Text(shown(name))
        if folds:
            table.add_column(own, overflow="fold")
        else:
            table.add_column(own, min_width=len(name))
    for row in body:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table
