"""The pictures of the report's page, each an SVG element that follows the page's colours."""

from itertools import chain
from statistics import median
from typing import Any

from retort.metrics.comparison import drawing
from retort.metrics.comparison import formatting as show
from retort.metrics.comparison.drawing import BLUE, DARK, GRAY, GREEN, OCHRE, PALE, PURPLE, SKY
from retort.metrics.comparison.shapes import Differences, Latency, ModelsByRole, ReportContent

WIDTH, NUM_BINS = 460, 48
COLORS = {"teacher": GRAY, "base": PALE, "student": BLUE, "fine_tuning": OCHRE, "gold": GREEN}
COLORS |= {"offline_steps": SKY, "offline_cost": DARK}
# What a training records that is no term of its loss.
NO_TERMS = {
    *("step", "tokens", "tokens_per_second", "learning_rate", "gradient_norm"),
    *("teacher_top_k_mass", "peak_memory_bytes"),
}
OF_EXPORTS = (GREEN, OCHRE, PURPLE, SKY, DARK)
Records = list[dict[str, float | None]]


def color_of(role: str) -> str:
    """Returns a role's colour."""
    return PURPLE if role == "champion" else COLORS.get(role, SKY)


def trade_off(models: ModelsByRole, metric: str) -> str | None:
    """Returns the main metric against the cost of 1,000 requests, or against inference time where
    a cost is unknown: each model a point with its intervals. None where neither is known of two."""
    costs = {role: Latency(p50=model.cost_per_1000_requests) for role, model in models.items()}
    is_priced = all(cost.p50 for cost in costs.values())
    if not is_priced:
        costs = {role: m.latency_seconds for role, m in models.items() if m.latency_seconds}
    if len(costs) < 2:
        return None
    scale = 100 if show.is_share(metric) else 1
    what = "cost of 1,000 requests" if is_priced else "inference time (median)"
    with drawing.figure(WIDTH, 280) as figure:
        axes = figure.subplots()
        for role, cost in costs.items():
            score, color, x = models[role].metrics[metric], color_of(role), cost.p50 or 0.0
            sides = [x if end is None else end for end in (cost.low, cost.high)]
            axes.plot([x] * 2, [score.low * scale, score.high * scale], color=color, linewidth=1.8)
            axes.plot(sides, [score.value * scale] * 2, color=color, linewidth=1.8)
            axes.plot(x, score.value * scale, "o", color=color, markersize=8, label=role)
        axes.margins(0.1)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_data_interval()
            if low > 0 and high / low > 8:
                axes.set(**{f"{axis.axis_name}scale": "log"})
        drawing.tick(axes.yaxis, "{:g}%".format if scale == 100 else "{:g}".format)
        drawing.tick(axes.xaxis, "{:g}".format if is_priced else _clock)
        axes.set_xlabel(f"{what}: further left is better")
        drawing.legend(figure, axes, 6, handletextpad=0)
        return drawing.element(figure, "trade", f"{metric} against {what}")


def sizes(content: ReportContent) -> str | None:
    """Returns the main metric against the size on disk, of the teacher, the student and each
    exported student, with 95% intervals; None without an exported student."""
    metric, models = content.comparison.metric, content.models
    if not content.exports:
        return None
    own = {role: models[role] for role in ("teacher", "student") if role in models}
    shown = own | {each.format: each.model for each in content.exports.values()}
    scale, seen = 100 if show.is_share(metric) else 1, 0
    with drawing.figure(WIDTH, 300) as figure:
        axes = figure.subplots()
        for name, model in shown.items():
            score, size = model.metrics.get(metric), model.weights_bytes
            if score is None or not size:
                continue
            color = COLORS[name] if name in own else OF_EXPORTS[seen % len(OF_EXPORTS)]
            seen += name not in own
            axes.plot(
                [size] * 2, [score.low * scale, score.high * scale], color=color, linewidth=1.8
            )
            mark = "o" if name in own else "D"
            axes.plot(size, score.value * scale, mark, color=color, markersize=8, label=name)
        axes.margins(0.1)
        axes.set_xscale("log")
        drawing.tick(axes.yaxis, "{:g}%".format if scale == 100 else "{:g}".format)
        drawing.tick(axes.xaxis, show.count_bytes)
        axes.set_xlabel("size on disk: further left is smaller")
        drawing.legend(figure, axes, 3, handletextpad=0)
        return drawing.element(figure, "sizes", f"{metric} against size on disk")


def forest(differences: Differences, metric: str) -> str | None:
    """Returns student minus each other model with its interval, those that are unclear in gray;
    None where there is none."""
    if not differences:
        return None
    scale, unit = 100 if show.is_share(metric) else 1, show.unit(metric)
    small: dict[str, Any] = {"va": "top", "size": drawing.SMALL, "color": GRAY}
    with drawing.figure(WIDTH, 60 + 46 * len(differences)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=GRAY, linewidth=1)
        for row, difference in enumerate(differences.values()):
            color = GRAY if difference.outcome == "unclear" else BLUE
            ends = [difference.low * scale, difference.high * scale]
            axes.plot(ends, [row, row], color=color, linewidth=2.4, solid_capstyle="butt")
            axes.plot(difference.value * scale, row, "o", color=color, markersize=7)
            value = show.difference(difference, metric)
            drawing.beside(axes, 88, row, value, va="bottom", weight="bold")
            drawing.beside(axes, 88, row, show.gaps(difference, metric), **small)
        axes.set_ylim(len(differences) - 0.5, -0.5)
        drawing.name_rows(axes, [f"minus {role}" for role in differences])
        drawing.tick(axes.xaxis, "{:g}".format)
        axes.set_xlabel(f"{metric}: student minus the other{f', in{unit}' if unit else ''}")
        return drawing.element(figure, "forest", f"Student minus each model, {metric}")


def latencies(models: ModelsByRole, kind: str) -> str | None:
    """Returns how long answers took that were asked one at a time, a histogram a model over one
    axis; `kind` is whole or first_token. None where nothing was measured."""
    samples = {role: (model.latencies or {}).get(kind) or [] for role, model in models.items()}
    measured = {role: seconds for role, seconds in samples.items() if min(seconds, default=0) > 0}
    if not measured:
        return None
    low, high = min(chain(*measured.values())) / 1.05, max(chain(*measured.values())) * 1.05
    edges = [low * (high / low) ** (at / NUM_BINS) for at in range(NUM_BINS + 1)]
    until = "whole answer" if kind == "whole" else "first token"
    with drawing.figure(WIDTH, 44 + 58 * len(measured)) as figure:
        rows = figure.subplots(len(measured), sharex=True, squeeze=False)[:, 0]
        for axes, (role, seconds) in zip(rows, measured.items(), strict=True):
            axes.hist(seconds, bins=edges, color=color_of(role), linewidth=0)
            axes.axvline(median(seconds), color=DARK, linewidth=1.4)
            axes.set(xscale="log", xlim=(low, high), yticks=[])
            axes.spines["left"].set_visible(False)
            label = f"{role}\n{show.duration(median(seconds))}"
            axes.set_ylabel(label, rotation=0, ha="left", va="center", labelpad=76, color=DARK)
            drawing.tick(axes.xaxis, _clock)
        rows[-1].set_xlabel(f"time to the {until}, one request at a time; line: median")
        return drawing.element(figure, f"latency-{kind}", f"Time to the {until}")


def curves(trainings: dict[str, Records]) -> list[str]:
    """Returns the training curves, a picture a term of the loss: a thin line as trained, a thick
    one as validated, a colour a model."""
    records = chain(*trainings.values())
    names = dict.fromkeys(name.removeprefix("validation_") for each in records for name in each)
    terms = [n for n in names if n not in NO_TERMS and not n.endswith("_gradient_norm")]
    drawn = [_curve(trainings, term, number) for number, term in enumerate(terms)]
    return [picture for picture in drawn if picture]


def _curve(trainings: dict[str, Records], term: str, number: int) -> str | None:
    lines = {
        (role, kind): points
        for role, records in trainings.items()
        for kind in ("", "validation_")
        if (points := _points(records, kind + term))
    }
    if not lines:
        return None
    values = [value for points in lines.values() for _, value in points]
    with drawing.figure(WIDTH, 260) as figure:
        axes = figure.subplots()
        for role in dict.fromkeys(role for role, _ in lines):
            axes.plot([], [], color=color_of(role), linewidth=2.4, label=role)
        for (role, kind), points in lines.items():
            steps, losses = zip(*points, strict=True)
            look: dict[str, Any] = {"color": color_of(role), "linewidth": 2.2 if kind else 0.9}
            axes.plot(steps, losses, marker="o" if len(points) == 1 else "", **look)
        if min(values) > 0 and max(values) / min(values) > 20:
            axes.set_yscale("log")
        axes.set_xlim(0, max(points[-1][0] for points in lines.values()) or 1)
        drawing.tick(axes.yaxis, "{:g}".format)
        drawing.tick(axes.xaxis, "{:,.0f}".format, is_whole=True)
        axes.set_title(drawing.shorten(term, 26))
        axes.set_xlabel("step; thin: training, thick: validation")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, handlelength=1.2)
        return drawing.element(figure, f"curve-{number}", f"Training curve, {term}")


def _points(records: Records, name: str) -> list[tuple[float, float]]:
    return [
        (step, value)
        for record in records
        if (step := record["step"]) is not None and (value := record.get(name)) is not None
    ]


def _clock(seconds: float) -> str:
    """Returns a time at an axis, in as few letters as it takes."""
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
