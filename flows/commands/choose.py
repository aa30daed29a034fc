"""`retort plan --choose`: which rows of a pool to pay the teacher for."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.options import DONE, load_spec, open_store, say
from retort.errors import SpecError
from retort.events import shown

if TYPE_CHECKING:
    from retort.jobs.choosing import Choice

WIDTH = 80


def add_flags(it: argparse.ArgumentParser) -> None:
    """Adds the flags to `retort plan`."""
    own = it.add_argument_group("choosing", "which of many prompts without answers to pay for")
    own.add_argument("--choose", type=int, metavar="N", help="choose N rows of the pool")
    own.add_argument("--pool", metavar="FILE", help="rows in a form that prepare.train may have")
    own.add_argument(
        "--out",
        default="chosen.jsonl",
        metavar="FILE",
        help="where the chosen rows are written, in the pool's form (default: %(default)s)",
    )
    own.add_argument(
        "--by",
        choices=("student", "random"),
        default="student",
        help="student: what it is uncertain of, and wrong about nearby; random: the control",
    )
    own.add_argument(
        "--ask",
        type=int,
        metavar="M",
        help="have the student look at M rows, drawn at random (default: 20 N, at least 5,000)",
    )
    own.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")


def is_wanted(options: argparse.Namespace) -> bool:
    """Whether rows are to be chosen. Raises `SpecError` for a pool with nothing to choose."""
    if options.choose is None and options.pool:
        raise SpecError("--pool: needs --choose N, the number of rows to choose from it")
    return options.choose is not None


def run(options: argparse.Namespace) -> int:
    """`retort plan --choose`: writes the rows, and prints what was chosen of which kind."""
    from retort.events import Reporter
    from retort.jobs.choosing import ChooseRequest, choose

    out = _checked(options)
    spec, notes = load_spec(options)
    for note in notes:
        say(f"spec: {note}")
    pool = options.pool if "://" in options.pool else str(Path(options.pool).resolve())
    request = ChooseRequest(options.choose, pool, options.by, options.ask, options.seed)
    listener = Reporter(lambda event: say(event["text"]) if event["kind"] == "note" else None)
    found = choose(spec, open_store(options), request, out, listener)
    if options.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(found, out)
    return DONE


def _checked(options: argparse.Namespace) -> Path:
    """Returns the path of the chosen rows. Raises `SpecError` for flags that make no sense."""
    if not options.pool:
        raise SpecError("--choose: needs --pool FILE, the rows to choose from")
    if options.choose < 1:
        raise SpecError(f"--choose {options.choose}: choose 1 row or more")
    if options.ask is not None and options.ask < options.choose:
        raise SpecError(f"--ask {options.ask}: look at as many rows as --choose, or more")
    out, is_here = Path(options.out), "://" not in options.pool
    if is_here and not Path(options.pool).exists():
        raise SpecError(f"--pool {options.pool}: there is no such file")
    if is_here and out.exists() and out.samefile(options.pool):
        raise SpecError(f"--out {out}: is the pool itself; name another file")
    return out


def _print(found: "Choice", out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from retort.jobs.choosing import beside

    console = Console(width=WIDTH, highlight=False, markup=False)
    table = Table()
    table.add_column("rows like", overflow="fold")
    heads = ("pool", "answered", "uncertain", "wrong", "chosen", "by chance")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for kind in found.kinds:
        cells: list[Any] = [f"{kind.num_rows:,}", f"{kind.num_answered:,}"]
        cells.append("" if kind.uncertainty is None else f"{kind.uncertainty:.3f}")
        cells.append("" if kind.disagreement is None else f"{kind.disagreement:.0%}")
        cells += [f"{kind.num_chosen:,}", f"{kind.by_chance:,.0f}"]
        table.add_row(Text(shown(kind.name.removeprefix("cluster: "))), *cells)
    console.print(table)
    who = "the student" if found.by == "student" else "chance"
    say_lines = [
        f"{len(found.chosen):,} of {found.num_rows:,} rows chosen by {who}, "
        f"{found.num_looked_at:,} looked at: {out}",
        f"why each of them: {beside(out, 'why')}",
    ]
    if found.left_out:
        say_lines.append(f"may not be chosen, with the reason: {beside(out, 'left-out')}")
        say_lines += [f"  {count:,} {reason}" for reason, count in found.left_out.items()]
    for line in [*say_lines, *(f"note: {note}" for note in found.notes)]:
        console.print(shown(line), soft_wrap=True)
