"""The pictures of the report's page, each an SVG element that follows the page's colours."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from retort.metrics.comparison.formatting import duration, gap, gaps, is_share, unit
from retort.stages.report.drawing import (
    BLUE,
    DARK,
    GRAY,
    GREEN,
    LINE,
    OCHRE,
    PALE,
    PURPLE,
    SKY,
    area,
    cut,
    drawing,
    inline,
    place,
    svg,
    ticker,
    write,
)

if TYPE_CHECKING:
    from retort.stages.report.drawing import Axes, Figure

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


Models = dict[str, dict[str, Any]]
Record = dict[str, float]

NO_TERMS = {
    "step",
    "tokens",
    "tokens_per_second",
    "learning_rate",
    "gradient_norm",
    "teacher_top_k_mass",
    "peak_memory_bytes",
}


def trade_off(models: Models, metric: str) -> str | None:
    """Returns the main metric against the cost of 1,000 requests, or against inference time where
    a cost is unknown: each model a point with its intervals. None where neither is known of two."""
    priced = {r: cost for r, m in models.items() if (cost := m["cost_per_1000_requests"])}
    timed = {r: m["latency_seconds"]["p50"] for r, m in models.items() if m["latency_seconds"]}
    is_priced = len(priced) == len(models)
    costs = priced if is_priced else timed
    if len(costs) < 2:
        return None
    scale = 100 if is_share(metric) else 1
    with drawing(WIDTH, 280) as figure:
        axes = plot(figure, 58, 12, WIDTH - 58 - 16, 212)
        ends, points, places = [], {}, [*costs.values()]
        for role, cost in costs.items():
            score, color = models[role]["metrics"][metric], color_of(role)
            low, value, high = (score[key] * scale for key in ("low", "value", "high"))
            axes.plot([cost, cost], [low, high], color=color, linewidth=1.8)
            sure = {} if is_priced else models[role]["latency_seconds"]
            if sure.get("low") is not None:
                axes.plot([sure["low"], sure["high"]], [value] * 2, color=color, linewidth=1.8)
                places += [sure["low"], sure["high"]]
            axes.plot([cost], [value], "o", color=color, markersize=8)
            ends += [low, high]
            points[role] = cost, value
        spread(axes.xaxis, places)
        spread(axes.yaxis, ends)
        tick(axes.yaxis, "{:g}%".format if scale == 100 else "{:g}".format)
        tick(axes.xaxis, "{:g}".format if is_priced else clock)
        name_points(axes, points)
        what = "cost of 1,000 requests" if is_priced else "inference time (median)"
        foot(figure, f"{what}: further left is better")
        return inline(svg(figure, "trade-off"), "trade", f"{metric} against {what}")


def forest(differences: dict[str, dict[str, Any]], metric: str) -> str | None:
    """Returns student minus each other model with its interval, those that are unclear in gray;
    None where there is none."""
    if not differences:
        return None
    row, top, left = 46, 6, 126
    height = top + row * len(differences) + 48
    scale = 100 if is_share(metric) else 1
    with drawing(WIDTH, height) as figure:
        axes = plot(figure, left, top, WIDTH - left - 110, row * len(differences))
        axes.axvline(0, color=GRAY, linewidth=1)
        texts = area(figure, 0, top, WIDTH, row * len(differences))
        for at, (role, found) in enumerate(differences.items()):
            y, color = at + 0.5, GRAY if found["outcome"] == "unclear" else BLUE
            ends = [found[end] * scale for end in ("low", "high")]
            axes.plot(ends, [y, y], color=color, linewidth=2.4, solid_capstyle="butt")
            axes.plot([found["value"] * scale], [y], "o", color=color, markersize=7)
            write(texts, 0, y * row, cut(f"minus {role}", 18), size=TEXT)
            value = {"size": TEXT, "weight": "bold", "ha": "right"}
            write(texts, WIDTH - 2, y * row - 8, gap(found["value"], metric), **value)
            small = {"size": SMALL, "color": GRAY, "ha": "right"}
            write(texts, WIDTH - 2, y * row + 9, gaps(found, metric), **small)
        axes.set_ylim(len(differences), 0)
        without_side(axes)
        tick(axes.xaxis, "{:g}".format)
        in_points = f", in{unit(metric)}" if unit(metric) else ""
        foot(figure, f"{metric}: student minus the other{in_points}", left)
        return inline(svg(figure, "differences"), "forest", f"Student minus each model, {metric}")


def latencies(models: Models, kind: str) -> str | None:
    """Returns how long answers took that were asked one at a time, a histogram a model over one
    axis; `kind` is whole or first_token. None where nothing was measured."""
    told = {role: (model.get("latencies") or {}).get(kind) or [] for role, model in models.items()}
    found = {role: sorted(samples) for role, samples in told.items() if min(samples, default=0) > 0}
    if not found:
        return None
    row, left = 58, 104
    low, high = min(s[0] for s in found.values()) / 1.05, max(s[-1] for s in found.values()) * 1.05
    edges = [low * (high / low) ** (at / 48) for at in range(49)]
    with drawing(WIDTH, row * len(found) + 44) as figure:
        for at, (role, samples) in enumerate(found.items()):
            axes = plot(figure, left, at * row + 4, WIDTH - left - 16, row - 10)
            axes.hist(samples, bins=edges, color=color_of(role), linewidth=0)
            median = (samples[(len(samples) - 1) // 2] + samples[len(samples) // 2]) / 2
            axes.axvline(median, color=DARK, linewidth=1.4)
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            without_side(axes)
            tick(axes.xaxis, clock if at == len(found) - 1 else None)
            texts = area(figure, 0, at * row + 4, left, row - 10)
            write(texts, 0, 16, cut(role, 14), size=TEXT)
            write(texts, 0, 33, duration(median), size=SMALL, color=GRAY)
        until = "whole answer" if kind == "whole" else "first token"
        foot(figure, f"time to the {until}, one request at a time; line: median", left)
        return inline(svg(figure, "latencies"), f"latency-{kind}", f"Time to the {until}")


def curves(trainings: dict[str, list[Record]]) -> list[str]:
    """Returns the training curves, a picture a term of the loss: a thin line as trained, a thick
    one as validated, a colour a model."""
    names = {
        name.removeprefix("validation_"): None
        for records in trainings.values()
        for record in records
        for name in record
    }
    told = [name for name in names if not name.endswith("_gradient_norm")]
    terms = [name for name in told if name not in NO_TERMS]
    drawn = [_curve(trainings, term, at) for at, term in enumerate(terms)]
    return [picture for picture in drawn if picture]


def _curve(trainings: dict[str, list[Record]], term: str, at: int) -> str | None:
    lines = {
        (role, kind): _points(records, kind + term)
        for role, records in trainings.items()
        for kind in ("", "validation_")
    }
    lines = {key: points for key, points in lines.items() if points}
    if not lines:
        return None
    with drawing(WIDTH, 260) as figure:
        axes = plot(figure, 64, 34, WIDTH - 64 - 16, 174)
        for (role, kind), points in lines.items():
            color, width = color_of(role), 2.2 if kind else 0.9
            dot = "o" if len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), color=color, linewidth=width, marker=dot)
        values = [value for points in lines.values() for _, value in points]
        if min(values) > 0 and max(values) / min(values) > 20:
            axes.set_yscale("log")
        axes.set_xlim(0, max(points[-1][0] for points in lines.values()) or 1)
        tick(axes.yaxis, "{:g}".format)
        tick(axes.xaxis, "{:,.0f}".format, is_whole=True)
        head = area(figure, 0, 0, WIDTH, 30)
        write(head, 0, 14, cut(term, 26), size=TEXT, weight="bold")
        legend(head, dict.fromkeys(role for role, _ in lines))
        foot(figure, "step; thin: training, thick: validation", 64)
        return inline(svg(figure, "curve"), f"curve-{at}", f"Training curve, {term}")


def _points(records: list[Record], name: str) -> list[tuple[float, float]]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]
