"""What the numbers say: the verdict in words, and the five figures that head the report."""

from collections.abc import Callable
from typing import Any

from retort.metrics import examples_needed
from retort.metrics.comparison.formatting import (
    count_bytes,
    duration,
    gap,
    gaps,
    known,
    number,
    size,
    times,
    unit,
)
from retort.metrics.comparison.ratios import CONTROLS, median_seconds

OTHERS = {**CONTROLS, "champion": "the champion of its name"}
ALL = {"teacher": "the teacher", "base": "its base", **OTHERS}
# A difference that would take so many times the examples is none that anyone looks for.
MOST_TIMES = 100


def verdict(content: dict[str, Any]) -> str:
    """Returns the outcome in one sentence, and one more for each control and the champion."""
    found = content["comparison"]
    metric, others = found["metric"], found["differences"]
    gain = f"{gap(found['gain'], metric)}{unit(metric)}"
    said = (
        f"The student keeps {_kept(found)} of the teacher's {metric}, {gain} against its base"
        f"{_with(_saved(found))}; it {_judged(content)}."
    )
    against = [_against(role, others[role], metric) for role in OTHERS if role in others]
    return " ".join([said, *against])


def _kept(found: dict[str, Any]) -> str:
    if found["retention"] is None:
        return "no known share"
    sure = found.get("retention_interval")
    ends = f" ({sure['low']:.1%} to {sure['high']:.1%})" if sure else ""
    return f"{found['retention']:.1%}{ends}"


def _saved(found: dict[str, Any]) -> list[str]:
    """Returns what was saved, as far as it is known."""
    kinds = (("memory", "weight memory"), ("latency", "inference time"), ("cost", "cost"))
    said = []
    for kind, what in kinds:
        reduction = found.get(f"{kind}_reduction")
        if reduction is not None:
            said.append(f"{abs(reduction):.1%} {'less' if reduction >= 0 else 'more'} {what}")
    if (ratio := found["throughput_ratio"]) is not None:
        said.append(f"{times(ratio)} times the throughput")
    return said


def _with(parts: list[str]) -> str:
    """Returns a list as the rest of a sentence; nothing for nothing."""
    if not parts:
        return ""
    return ", with " + " and ".join([", ".join(parts[:-1])] * bool(parts[1:]) + parts[-1:])


def _judged(content: dict[str, Any]) -> str:
    """Returns what the gate said; and where luck may have had its part in it, that too."""
    if not content["gate"]["passed"]:
        return "was refused by the gate"
    if unsure(content["comparison"]):
        least = content["comparison"]["required_retention"]
        return f"passed the gate, though the {least:.1%} asked for is within the interval"
    return "passed the gate"


def unsure(found: dict[str, Any]) -> list[str]:
    """Returns a warning where the student keeps enough, but not surely."""
    least, sure = found.get("required_retention"), found.get("retention_interval")
    if not (least and sure and sure["low"] < least <= sure["value"]):
        return []
    return [
        f"the student keeps {sure['value']:.1%} of the teacher's {found['metric']}, which is above "
        f"the required {least:.1%}, but the interval reaches down to {sure['low']:.1%}: more test "
        "examples would tell; report.gate.on_bound: [retention] has the gate ask for the bound"
    ]


def _against(role: str, found: dict[str, Any], metric: str) -> str:
    """Returns how the student stands against a control or the champion, in one sentence."""
    other, points = OTHERS[role], unit(metric)
    if found["outcome"] == "unclear":
        return f"The test cannot tell it from {other} ({gaps(found, metric)}{points})."
    near, far = sorted((abs(found["low"]), abs(found["high"])))
    value, ends = size(found["value"], metric), f"{size(near, metric)} to {size(far, metric)}"
    return f"It is {value}{points} ({ends}) {found['outcome']} {other}."


def too_few(found: dict[str, Any]) -> list[str]:
    """Returns where there are too few examples to tell, and about how many would do."""
    told, metric = [], found["metric"]
    for role, each in found["differences"].items():
        needed = examples_needed(each) if each["outcome"] == "unclear" else None
        if needed is not None and needed <= MOST_TIMES * each["n"]:
            told.append(
                f"{each['n']:,} examples are too few to tell the student from {ALL[role]} "
                f"({gaps(each, metric)}{unit(metric)}): if the difference is as large as measured, "
                f"about {max(needed, each['n'] + 1):,} would"
            )
    return told


Headline = dict[str, Any]


def headlines(content: dict[str, Any]) -> list[Headline]:
    """Returns of each its `figure`, `label`, `detail` and `good`, which is None where unknown."""
    models, found = content["models"], content["comparison"]
    pair = models["teacher"], models["student"]
    seconds = [median_seconds(model) for model in pair]
    weights = [model["weights_bytes"] for model in pair]
    costs = [model.get("cost_per_1000_requests") for model in pair]
    priced = change(costs, number)
    return [
        _kept_headline(content),
        _saved_headline("inference time", found["latency_reduction"], change(seconds, duration)),
        _saved_headline("weight memory", found["memory_reduction"], change(weights, count_bytes)),
        _saved_headline(
            "cost",
            found["cost_reduction"],
            f"{priced} for 1,000 requests"
            if priced
            else "needs report.prices of teacher and student",
        ),
        _throughput(found["throughput_ratio"], [model["tokens_per_second"] for model in pair]),
    ]


def _kept_headline(content: dict[str, Any]) -> Headline:
    found = content["comparison"]
    kept, sure = found["retention"], found["retention_interval"]
    return {
        "figure": known(kept, "{:.1%}".format),
        "label": f"of the teacher's {found['metric']} kept",
        "detail": f"95% interval: {sure['low']:.1%} to {sure['high']:.1%}" if sure else "",
        "good": None if kept is None else content["gate"]["passed"],
    }


def _saved_headline(what: str, reduction: float | None, detail: str) -> Headline:
    if reduction is None:
        return {"figure": "unknown", "label": f"{what} saved", "detail": detail, "good": None}
    label = f"less {what}" if reduction >= 0 else f"more {what}"
    return {
        "figure": f"{abs(reduction):.1%}",
        "label": label,
        "detail": detail,
        "good": reduction >= 0,
    }


def _throughput(ratio: float | None, rates: list[float | None]) -> Headline:
    return {
        "figure": known(ratio, lambda known_ratio: f"{times(known_ratio)}\N{MULTIPLICATION SIGN}"),
        "label": "the throughput",
        "detail": change(rates, lambda rate: f"{rate:,.0f} tokens/s"),
        "good": None if ratio is None else ratio >= 1,
    }


def change(values: list[float | None], show: Callable[[float], str]) -> str:
    """Returns teacher's and student's value with an arrow between; nothing where one is unknown."""
    told = [show(value) for value in values if value is not None]
    return " → ".join(told) if len(told) == len(values) else ""
