"""A plan in words and tables, for a terminal, a page, and Prefect."""

from collections.abc import Iterator

from retort.jobs.plan.limits import in_words
from retort.jobs.plan.shapes import Forecast, Plan
from retort.metrics.comparison import formatting as show
from retort.metrics.learning_curve import Band

HOLDS = {"yes": "holds it back", "no": "does not hold it back", "unclear": "unclear"}


def measured(plan: Plan) -> list[list[str]]:
    """Returns what was trained, as a table; the first row is its heading."""
    rows = [["examples", plan.metric, "95% interval", "validation loss", "training"]]
    for point in plan.points:
        rows.append(
            [
                f"{point.num_examples:,}",
                show.score(point.score.value, plan.metric),
                show.interval(point.score, plan.metric),
                show.number(point.validation_loss),
                show.duration(point.seconds),
            ]
        )
    teacher = plan.teacher
    score = show.score(teacher.value, plan.metric)
    return [*rows, ["teacher", score, show.interval(teacher, plan.metric), "", ""]]


def forecasts(plan: Plan) -> list[list[str]]:
    """Returns what more prompts would cost and bring, as a table."""
    rows = [["prompts", "cost", "teacher", "training", plan.metric, "gain", "80% band"]]
    for each in plan.forecasts:
        gain = each.gain
        rows.append(
            [
                f"+{each.num_prompts:,}",
                "unknown" if each.money is None else f"{each.money:,.2f}",
                _minutes(each.teacher_minutes),
                _minutes(each.train_minutes),
                show.score(each.score.value, plan.metric),
                show.gap(gain.value, plan.metric),
                f"{show.gap(gain.low, plan.metric)} to {show.gap(gain.high, plan.metric)}",
            ]
        )
    return rows


def headline(plan: Plan) -> str:
    """Returns in one sentence what the next prompts are worth: the most that are still worth it."""
    worth = [each for each in plan.forecasts if each.gain.value >= plan.least]
    return f"{_sentence(plan, worth[0] if worth else plan.forecasts[0])}; {_end(plan)}"


def lines(plan: Plan) -> Iterator[str]:
    """Yields what else there is to say: what holds the student back, earlier forecasts, the end of
    the curve and the plan's own cost."""
    for limit in plan.limits:
        yield f"{limit.name}: {HOLDS[limit.holds_back]}; {limit.reason}"
    for fact in plan.facts:
        came = "within" if fact.held else "outside"
        yield (
            f"forecast for {fact.num_examples:,} examples: {band(fact.forecast, plan.metric)}; "
            f"came {show.score(fact.score, plan.metric)}, {came} the 80% band"
        )
    yield f"any number of examples: {band(plan.best, plan.metric)}"
    yield (
        f"judged on {plan.num_validation:,} validation examples; this plan took "
        f"{plan.of_a_training:.2f} trainings beside the student's own"
    )


def band(found: Band, metric: str) -> str:
    """Returns a score with its band: 83.1% (80.2% to 85.0%)."""
    ends = f"{show.score(found.low, metric)} to {show.score(found.high, metric)}"
    return f"{show.score(found.value, metric)} ({ends})"


def _sentence(plan: Plan, each: Forecast) -> str:
    cost = "an unknown amount" if each.money is None else f"{each.money:,.2f}"
    time = each.train_minutes + (each.teacher_minutes or 0.0)
    return (
        f"{each.num_prompts:,} more prompts cost {cost} and {_minutes(time)}, and change "
        f"{plan.metric} by {in_words(each.gain, plan.metric)}"
    )


def _end(plan: Plan) -> str:
    least = f"{show.size(plan.least, plan.metric)}{show.unit(plan.metric)}"
    if plan.enough is None:
        return f"no number within a thousand times today's has a doubling gain less than {least}"
    if plan.enough <= plan.num_examples:
        return f"twice as many examples are expected to gain less than {least}"
    return (
        f"beyond about {float(f'{plan.enough:.2g}'):,.0f} examples nothing is left to gain (twice "
        f"as many gain less than {least})"
    )


@show.or_unknown
def _minutes(minutes: float) -> str:
    return f"{show.number(minutes * 60)} s" if minutes < 1 else f"{show.number(minutes)} min"
