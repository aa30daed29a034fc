"""The tables of the comparison, a column a model, and what exactly their numbers are.

The first table is the one that people who distil show: parameters, memory usage, inference time,
accuracy, throughput. Cells are finished text, so that every page and terminal says the same.
"""

from collections.abc import Callable
from typing import Any

from retort.metrics.comparison.formatting import (
    count,
    count_bytes,
    duration,
    gap,
    gaps,
    interval,
    is_share,
    known,
    number,
    score,
)

Model = dict[str, Any]
TableRow = list[str]


def table(content: dict[str, Any]) -> list[TableRow]:
    """Returns the first table: a heading row, then a row a measure."""
    models, metric = content["models"], content["comparison"]["metric"]
    measures: dict[str, Callable[[Model], str]] = {
        "parameters": lambda m: known(m["parameters"], count),
        "memory usage (weights)": lambda m: known(m["weights_bytes"], count_bytes),
        "inference time": lambda m: known(_of(m["latency_seconds"], "p50"), duration),
        metric: lambda m: score(m["metrics"][metric]["value"], metric),
        "throughput (tokens/s)": lambda m: known(m["tokens_per_second"], "{:,.0f}".format),
    }
    return [
        ["", *models],
        *([name, *map(show, models.values())] for name, show in measures.items()),
    ]


def details(content: dict[str, Any]) -> list[TableRow]:
    """Returns the second table, in the first one's columns: how sure the scores are, and the rest
    that was measured. A measure that is known of no model is left out."""
    models = content["models"]
    rows = [*_sureness(content), *_costs(models), *_further(content)]
    told = [row for row in rows if set(row[1:]) - {"unknown", ""}]
    return [["", *models], *told]


def _sureness(content: dict[str, Any]) -> list[TableRow]:
    models, found = content["models"], content["comparison"]
    metric, others = found["metric"], found["differences"]

    def minus(role: str, show: Callable[[Any, str], str]) -> str:
        if role == "student":
            return ""
        return known(others.get(role), lambda gap: show(gap, metric))

    return [
        [
            f"{metric}, 95% interval",
            *(interval(m["metrics"][metric], metric) for m in models.values()),
        ],
        ["student minus it", *(minus(role, lambda d, m: gap(d["value"], m)) for role in models)],
        ["student minus it, 95% interval", *(minus(role, gaps) for role in models)],
    ]


def _costs(models: dict[str, Model]) -> list[TableRow]:
    """Returns what time, memory and money each model takes, beside what the first table says."""

    def timed(what: str, ends: str) -> Callable[[Model], str]:
        return lambda model: known(_of(model.get(what), ends), duration)

    def ends(what: str) -> Callable[[Model], str]:
        return lambda model: _ends(model.get(what))

    def plain(what: str, show: Callable[[Any], str]) -> Callable[[Model], str]:
        return lambda model: known(model.get(what), show)

    measures: dict[str, Callable[[Model], str]] = {
        "inference time, 95% interval": ends("latency_seconds"),
        "inference time, 95th percentile": timed("latency_seconds", "p95"),
        "first token": timed("first_token_seconds", "p50"),
        "first token, 95th percentile": timed("first_token_seconds", "p95"),
        "requests a second": plain("requests_per_second", number),
        "requests a second within the bound": _within,
        "peak memory of the process": plain("peak_memory_bytes", count_bytes),
        "peak memory of the GPU": plain("peak_gpu_memory_bytes", count_bytes),
        "load time": plain("load_seconds", duration),
        "cost of 1,000 requests": plain("cost_per_1000_requests", number),
    }
    return [[name, *map(show, models.values())] for name, show in measures.items()]


def _further(content: dict[str, Any]) -> list[TableRow]:
    """Returns the metrics beside the main one, each with its interval."""
    models, main = content["models"], content["comparison"]["metric"]
    names = dict.fromkeys(name for model in models.values() for name in model["metrics"])

    def cell(role: str, metric: str) -> str:
        found = models[role]["metrics"].get(metric)
        if (role, metric) == ("teacher", "kl_to_teacher"):
            return ""
        return known(found, lambda f: f"{score(f['value'], metric)} ({interval(f, metric)})")

    return [[n, *(cell(role, n) for role in models)] for n in names if n != main]


def _of(found: dict[str, Any] | None, key: str) -> Any:
    return None if found is None else found.get(key)


def _ends(latency: dict[str, Any] | None) -> str:
    if latency is None or latency.get("low") is None:
        return "unknown"
    return f"{duration(latency['low'])} to {duration(latency['high'])}"


def _within(model: Model) -> str:
    """Returns the rate; one that was measured and never kept the bound has none."""
    found = model.get("within_bound")
    if found is None:
        return known(model.get("requests_per_second"), lambda _: "none")
    return f"{number(found['requests_per_second'])} ({found['concurrency']} at once)"


def caption(content: dict[str, Any]) -> str:
    """Returns what exactly the tables' numbers are."""
    data, student = content["data"], content["models"]["student"]
    bound = content.get("latency_bound_seconds")
    within = f"; the bound: {duration(bound)} for 95% of whole answers" if bound else ""
    of = {"reference": "the rows' own answers", "teacher": "the teacher's answers"}
    measured = content.get("perplexity_of")
    perplexity = f"; perplexity: of {of[measured]}" if measured else ""
    points = "points" if is_share(content["comparison"]["metric"]) else "differences"
    return (
        f"{data['num_examples']:,} held-out examples ({data['split']} file), greedy decoding, "
        f"engine {student['engine']} {student['engine_version']}, each model in a process of its "
        "own; scores with 95% bootstrap intervals; student minus it: "
        f"{points}, paired example by example; inference time: median of whole answers, one at a "
        "time, each at its quickest; throughput and requests a second: all examples at once"
        f"{within}; weights: their bytes; memory of the process: its peak, engine included"
        f"{perplexity}."
    )
