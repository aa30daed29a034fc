"""The pictures of the report's page, each an SVG element that follows the page's colours."""

from typing import Any

from retort.drawing import BLUE, DARK, GRAY, area, cut, drawing, inline, svg, write
from retort.metrics.comparison.formatting import duration, gap, gaps, is_share, unit
from retort.report.axes import (
    SMALL,
    TEXT,
    WIDTH,
    clock,
    color_of,
    foot,
    legend,
    name_points,
    plot,
    spread,
    tick,
    without_side,
)

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
