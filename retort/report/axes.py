"""What the pictures of the report have in common: their width, their colours, their axes.

All are of one width, so that text is equally large in each; places are in pixels from the upper
left corner. A role has the same colour in every picture.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from retort.drawing import (
    BLUE,
    GRAY,
    GREEN,
    LINE,
    OCHRE,
    PALE,
    PURPLE,
    SKY,
    area,
    cut,
    place,
    ticker,
    write,
)

if TYPE_CHECKING:
    from retort.drawing import Axes, Figure

WIDTH = 460
TEXT, SMALL = 9.5, 8.5  # in points: of 0.75 pixels
COLORS = {
    "teacher": GRAY,
    "base": PALE,
    "student": BLUE,
    "fine_tuning": OCHRE,
    "gold": GREEN,
    "champion": PURPLE,
}


def color_of(role: str) -> str:
    """Returns a role's colour."""
    return COLORS.get(role, SKY)


def plot(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Returns a part of a figure for data, with thin axes below and at the left."""
    axes: Axes = figure.add_axes(place(figure, left, top, width, height))
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(LINE)
    axes.tick_params(length=3, color=LINE, labelcolor=GRAY, labelsize=SMALL, which="both")
    return axes


def without_side(axes: "Axes") -> None:
    """Takes the axis at the left away, where rows have names instead."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def tick(axis: Any, show: Callable[[float], str] | None, is_whole: bool = False) -> None:
    """Puts a few marks on an axis, each written by `show`; without it, nothing."""
    marks = ticker()
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(
            marks.LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=9)
        )
        axis.set_minor_locator(marks.NullLocator())
    else:
        axis.set_major_locator(marks.MaxNLocator(5, integer=is_whole))
    shown = (
        marks.NullFormatter() if show is None else marks.FuncFormatter(lambda value, _: show(value))
    )
    axis.set_major_formatter(shown)


def clock(seconds: float) -> str:
    """Returns a time at an axis, in as few letters as it takes."""
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def spread(axis: Any, values: Iterable[float]) -> None:
    """Sets the ends of an axis so that values have room; far apart ones get a logarithmic axis."""
    low, high = min(values := [*values]), max(values)
    if low > 0 and high / low > 8:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        low, high = low / 1.6, high * 1.6
    else:
        slack = 0.1 * ((high - low) or abs(high) or 1)
        low, high = low - slack, high + slack
    axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})


def foot(figure: "Figure", text: str, left: float = 58) -> None:
    """Writes below a figure's axis what it shows."""
    height = float(figure.get_size_inches()[1]) * 96
    axes = area(figure, 0, height - 18, WIDTH, 18)
    write(axes, left, 9, cut(text, 66), size=SMALL, color=GRAY)


def legend(axes: "Axes", roles: Iterable[str]) -> None:
    """Writes which colour is whose, at the right of an area's first line."""
    x = float(WIDTH - 2)
    for role in reversed([*roles]):
        write(axes, x, 14, cut(role, 16), size=SMALL, color=GRAY, ha="right")
        x -= 7 * min(len(role), 16) + 8
        axes.plot([x - 14, x], [14, 14], color=color_of(role), linewidth=2.4)
        x -= 28


def name_points(axes: "Axes", points: dict[str, tuple[float, float]]) -> None:
    """Writes each point's name above it, to a side; further up or down where names would meet."""
    figure: Any = axes.figure
    width, height = (float(side) * 96 for side in figure.get_size_inches())
    scale = figure.dpi / 96
    spots = {name: axes.transData.transform(point) / scale for name, point in points.items()}
    order = sorted(spots, key=lambda name: spots[name][1])
    ys = [float(spots[name][1]) + 13 for name in order]
    for _ in range(len(ys)):
        for at, (low, high) in enumerate(pairwise(ys)):
            apart = abs(spots[order[at]][0] - spots[order[at + 1]][0])
            if high - low < 17 and apart < 110:
                middle = (low + high) / 2
                ys[at], ys[at + 1] = middle - 8.6, middle + 8.6
    texts = area(figure, 0, 0, width, height)
    for name, y in zip(order, ys, strict=True):
        x = float(spots[name][0])
        near_end = x > width * 0.72
        side = {"ha": "right" if near_end else "left"}
        write(texts, x - 7 if near_end else x + 7, height - y, cut(name, 16), size=TEXT, **side)
