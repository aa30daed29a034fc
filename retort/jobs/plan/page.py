"""A plan as a page that needs no network, with the curve as a picture."""

from markupsafe import Markup

from retort.jobs.plan import words
from retort.jobs.plan.shapes import Plan
from retort.metrics.comparison import drawing, pages
from retort.metrics.comparison import formatting as show
from retort.metrics.comparison.drawing import BLUE, GRAY, OCHRE, SKY

WIDTH, HEIGHT = 640, 340


def page(plan: Plan) -> bytes:
    """Returns the plan's page."""
    shown = pages.html(
        "retort.jobs.plan",
        "page.html",
        plan=plan,
        headline=words.headline(plan),
        measured=words.measured(plan),
        forecasts=words.forecasts(plan),
        lines=list(words.lines(plan)),
        picture=Markup(picture(plan)),
        style=Markup(pages.text_of("retort.stages.report", "page.css")),
    )
    return shown.encode("utf-8", "replace")


def picture(plan: Plan) -> str:
    """Returns the curve as an element of a page: its band, the students that were measured with
    their intervals, the teacher, and earlier forecasts."""
    scale = 100 if show.is_share(plan.metric) else 1
    sizes = [size for size, _ in plan.curve]
    low, value, high = (
        [getattr(band, end) * scale for _, band in plan.curve] for end in ("low", "value", "high")
    )
    with drawing.figure(WIDTH, HEIGHT) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.fill_between(sizes, low, high, color=SKY, alpha=0.35, linewidth=0, label="80% band")
        axes.plot(sizes, value, color=BLUE, linewidth=1.6, label="expected")
        axes.axhline(plan.teacher.value * scale, color=GRAY, linewidth=1, label="teacher")
        for point in plan.points:
            ends = [point.score.low * scale, point.score.high * scale]
            axes.plot([point.num_examples] * 2, ends, color=BLUE, linewidth=1.2)
        at = [point.num_examples for point in plan.points]
        scores = [point.score.value * scale for point in plan.points]
        axes.plot(at, scores, "o", color=BLUE, markersize=6, label="measured")
        for index, fact in enumerate(plan.facts):
            ends = [fact.forecast.low * scale, fact.forecast.high * scale]
            label = "" if index else "earlier forecast"
            axes.plot(
                [fact.num_examples * 1.04] * 2, ends, color=OCHRE, linewidth=3, label=label or None
            )
        drawing.tick(axes.yaxis, "{:g}%".format if scale == 100 else "{:g}".format)
        drawing.tick(axes.xaxis, "{:,.0f}".format)
        axes.set_xlabel("examples that the student learns from")
        drawing.legend(figure, axes, 5)
        title = f"{plan.metric} by the number of examples, measured and expected"
        return drawing.element(figure, "curve", title)
