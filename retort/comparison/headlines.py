"""The five figures that head the report: accuracy kept, time, memory and cost saved, throughput."""

from collections.abc import Callable
from typing import Any

from retort.comparison.forms import count_bytes, duration, known, number, times
from retort.comparison.ratios import median_seconds

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
        _kept(content),
        _saved("inference time", found["latency_reduction"], change(seconds, duration)),
        _saved("weight memory", found["memory_reduction"], change(weights, count_bytes)),
        _saved(
            "cost",
            found["cost_reduction"],
            f"{priced} for 1,000 requests"
            if priced
            else "needs report.prices of teacher and student",
        ),
        _throughput(found["throughput_ratio"], [model["tokens_per_second"] for model in pair]),
    ]


def _kept(content: dict[str, Any]) -> Headline:
    found = content["comparison"]
    kept, sure = found["retention"], found["retention_interval"]
    return {
        "figure": known(kept, "{:.1%}".format),
        "label": f"of the teacher's {found['metric']} kept",
        "detail": f"95% interval: {sure['low']:.1%} to {sure['high']:.1%}" if sure else "",
        "good": None if kept is None else content["gate"]["passed"],
    }


def _saved(what: str, reduction: float | None, detail: str) -> Headline:
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
