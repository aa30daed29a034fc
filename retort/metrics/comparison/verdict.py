"""What the numbers say: the verdict in words, and the five figures that head the report."""

from collections.abc import Callable
from dataclasses import dataclass

from retort.metrics import examples_needed
from retort.metrics.comparison import formatting as show
from retort.metrics.comparison.ratios import CONTROLS, control_name, is_control, median_seconds
from retort.metrics.comparison.shapes import Comparison, Difference, GateOutcome, ReportContent

OTHERS = {**CONTROLS, "champion": "the champion of its name"}
GIVEN = {"teacher": "the teacher", "base": "its base"}
# Nobody looks for a difference that would take more than so many times the examples.
MOST_TIMES = 100


def verdict(comparison: Comparison, gate: GateOutcome) -> str:
    """Returns the outcome in one sentence, and one more for each control and the champion."""
    metric, others = comparison.metric, comparison.differences
    kept = "no known share" if comparison.retention is None else show.percent(comparison.retention)
    if comparison.retention is not None and comparison.retention_interval:
        kept += f" ({show.interval(comparison.retention_interval)})"
    gain = show.gap(comparison.gain, metric) + show.unit(metric)
    outcome = (
        f"The student keeps {kept} of the teacher's {metric}, {gain} against its base"
        f"{_savings(comparison)}; it {_judged(comparison, gate)}."
    )
    named = [role for role in (*OTHERS, *others) if role in others and role not in GIVEN]
    against = [_against(role, others[role], metric) for role in dict.fromkeys(named)]
    return " ".join([outcome, *against])


def _name(role: str) -> str:
    """Returns what the student is compared with, in words."""
    return control_name(role) if is_control(role) else {**GIVEN, **OTHERS}[role]


def _savings(comparison: Comparison) -> str:
    """Returns what was saved, as far as it is known, as the rest of a sentence."""
    reductions = {
        "weight memory": comparison.memory_reduction,
        "inference time": comparison.latency_reduction,
        "cost": comparison.cost_reduction,
    }
    parts = [
        f"{abs(reduction):.1%} {'less' if reduction >= 0 else 'more'} {what}"
        for what, reduction in reductions.items()
        if reduction is not None
    ]
    if comparison.throughput_ratio is not None:
        parts.append(f"{show.times(comparison.throughput_ratio)} times the throughput")
    if not parts:
        return ""
    return ", with " + " and ".join([", ".join(parts[:-1])] * bool(parts[1:]) + parts[-1:])


def _judged(comparison: Comparison, gate: GateOutcome) -> str:
    """Returns the gate's outcome, and whether the interval leaves it open."""
    if not gate.passed:
        return "was refused by the gate"
    if not unsure(comparison):
        return "passed the gate"
    least = show.percent(comparison.required_retention)
    return f"passed the gate, though the required {least} is within the interval"


def unsure(comparison: Comparison) -> list[str]:
    """Returns a warning where the student keeps enough, but its interval reaches below."""
    least, kept = comparison.required_retention, comparison.retention_interval
    if not (least and kept and kept.low < least <= kept.value):
        return []
    return [
        f"the student keeps {kept.value:.1%} of the teacher's {comparison.metric}, which is above "
        f"the required {least:.1%}, but the interval reaches down to {kept.low:.1%}: more test "
        "examples would narrow it; report.gate.on_bound: [retention] requires it of the lower bound"
    ]


def _against(role: str, difference: Difference, metric: str) -> str:
    """Returns how the student compares with a control or the champion, in one sentence."""
    other, points = _name(role), show.unit(metric)
    if difference.outcome == "unclear":
        return f"The test cannot tell it from {other} ({show.gaps(difference, metric)}{points})."
    near, far = (show.size(e, metric) for e in sorted((abs(difference.low), abs(difference.high))))
    value = show.size(difference.value, metric)
    return f"It is {value}{points} ({near} to {far}) {difference.outcome} {other}."


def too_few(comparison: Comparison) -> list[str]:
    """Returns which models the student cannot be told from, and how many examples that takes."""
    notes, metric = [], comparison.metric
    for role, each in comparison.differences.items():
        needed = examples_needed(vars(each)) if each.outcome == "unclear" else None
        if needed is not None and needed <= MOST_TIMES * each.n:
            ends = f"{show.gaps(each, metric)}{show.unit(metric)}"
            notes.append(
                f"{each.n:,} examples are too few to tell the student from {_name(role)} ({ends}): "
                "if the difference is as large as measured, about "
                f"{max(needed, each.n + 1):,} would"
            )
    return notes


@dataclass(frozen=True)
class Headline:
    """One of the figures that head the report; `good` is None where it is unknown."""

    figure: str
    label: str
    detail: str
    good: bool | None


def headlines(content: ReportContent) -> list[Headline]:
    """Returns what was kept of the score, and what was saved of time, memory and money."""
    comparison, models = content.comparison, (content.models["teacher"], content.models["student"])
    kept, interval = comparison.retention, comparison.retention_interval
    seconds = change([median_seconds(model) for model in models], show.duration)
    weights = change([model.weights_bytes for model in models], show.count_bytes)
    prices = change([model.cost_per_1000_requests for model in models], show.number)
    rates = change([model.tokens_per_second for model in models], show.whole)
    no_prices, ratio = "needs report.prices of teacher and student", comparison.throughput_ratio
    return [
        Headline(
            show.percent(kept),
            f"of the teacher's {comparison.metric} kept",
            f"95% interval: {show.interval(interval)}" if interval else "",
            None if kept is None else content.gate.passed,
        ),
        _saving("inference time", comparison.latency_reduction, seconds),
        _saving("weight memory", comparison.memory_reduction, weights),
        _saving(
            "cost",
            comparison.cost_reduction,
            f"{prices} for 1,000 requests" if prices else no_prices,
        ),
        Headline(
            "unknown" if ratio is None else f"{show.times(ratio)}\N{MULTIPLICATION SIGN}",
            "the throughput",
            f"{rates} tokens/s" if rates else "",
            None if ratio is None else ratio >= 1,
        ),
    ]


def _saving(what: str, reduction: float | None, detail: str) -> Headline:
    if reduction is None:
        return Headline("unknown", f"{what} saved", detail, None)
    label = f"less {what}" if reduction >= 0 else f"more {what}"
    return Headline(show.percent(abs(reduction)), label, detail, reduction >= 0)


def change(values: list[float | None] | list[int | None], shown: Callable[[float], str]) -> str:
    """Returns the teacher's and the student's value with an arrow between; nothing where one is
    unknown."""
    known = [shown(value) for value in values if value is not None]
    return " → ".join(known) if len(known) == len(values) else ""
