"""What the page's template shows: finished text, row by row."""

from typing import Any

import yaml

from retort.metrics import lower_is_better
from retort.metrics.comparison import outcome
from retort.metrics.comparison.formatting import (
    count_bytes,
    duration,
    gap,
    gaps,
    interval,
    known,
    number,
    score,
)

Content = dict[str, Any]
Row = dict[str, Any]

MOST_LABELS = 12


def checks(content: Content) -> list[Row]:
    """Returns the gate's checks: `name`, `required`, `measured` as text, `passed`."""
    return [
        {
            **check,
            "name": check["name"].replace("_", " "),
            "measured": known(check["measured"], number),
        }
        for check in content["gate"]["checks"]
    ]


def differences(content: Content) -> list[Row]:
    """Returns student minus each other model in every metric: what the p-values belong to."""
    return [
        {
            "role": role,
            "metric": metric,
            "value": gap(each["value"], metric),
            "interval": gaps(each, metric),
            "p": _p(each.get("p_value")),
            "mcnemar": _p(each.get("mcnemar_p_value")),
            "n": f"{each['n']:,}",
            "outcome": outcome(each),
            "tone": _tone(outcome(each), metric),
        }
        for role, found in content["all_differences"].items()
        for metric, each in found.items()
    ]


def _tone(told: str, metric: str) -> str:
    """Returns what an outcome is worth: where less is better, below is what above is elsewhere."""
    better = {"above": "below", "below": "above"} if lower_is_better(metric) else {}
    return better.get(told, told)


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def slices(content: Content) -> list[Row]:
    """Returns the slices with texts for each model's score and the difference."""
    metric, roles = content["comparison"]["metric"], list(content["models"])

    def shown(value: Row) -> Row:
        found, apart = value["metrics"], value["difference"]
        return {
            "value": value["value"],
            "n": f"{value['n']:,}",
            "scores": [
                known(found.get(role), lambda each: score(each["value"], metric)) for role in roles
            ],
            "intervals": [
                known(found.get(role), lambda each: interval(each, metric)) for role in roles
            ],
            "difference": known(apart, lambda each: gap(each["value"], metric)),
            "interval": known(apart, lambda each: gaps(each, metric)),
            "outcome": apart["outcome"] if apart else "unclear",
        }

    return [
        {
            "column": each["column"],
            "values": [*map(shown, each["values"])],
            "others": each["others"],
        }
        for each in content["slices"]
    ]


def confusions(content: Content) -> list[Row]:
    """Returns the confusion matrices: `role`, `columns` and `rows`, each a label with its cells, a
    cell its count and its share of the row. Of many labels the most frequent are shown."""
    return [
        _confusion(role, model["confusion"])
        for role, model in content["models"].items()
        if model.get("confusion")
    ]


def _confusion(role: str, found: Row) -> Row:
    labels, counts = found["labels"], found["counts"]
    order = sorted(range(len(labels)), key=lambda at: -sum(counts[at]))[:MOST_LABELS]
    shown = sorted(order)
    rest = [at for at in range(len(labels)) if at not in order]
    rows = []
    for at in shown:
        cells = [counts[at][other] for other in shown]
        cells += [sum(counts[at][other] for other in rest)] if rest else []
        cells += counts[at][len(labels) :]
        total = sum(cells) or 1
        rows.append({"label": labels[at], "cells": [(cell, cell / total) for cell in cells]})
    columns = [labels[at] for at in shown] + ["others"] * bool(rest) + ["no answer"]
    return {"role": role, "columns": columns, "rows": rows, "left_out": len(rest)}


def benchmarks(content: Content) -> list[list[str]]:
    """Returns the public benchmarks as a table, a row a task's metric; [] without any."""
    found = content.get("benchmarks")
    if not found:
        return []
    by_role = found["models"]
    names = dict.fromkeys(
        (task, metric)
        for tasks in by_role.values()
        for task, told in tasks.items()
        for metric in told
    )

    def cell(each: Row | None) -> str:
        if each is None or each.get("value") is None:
            return "unknown"
        error = each.get("stderr")
        return number(each["value"]) + (f" ± {number(error)}" if isinstance(error, float) else "")

    rows = [
        [
            f"{task}, {metric}",
            *(cell(tasks.get(task, {}).get(metric)) for tasks in by_role.values()),
        ]
        for task, metric in names
    ]
    return [["", *by_role], *rows]


def ran(content: Content) -> list[tuple[str, str]]:
    """Returns what was run, each line a name and its text; unknown is said as unknown."""
    told, models = content["ran"], content["models"]
    lines = [(role, _model(model)) for role, model in models.items()]
    lines += [
        (f"licence of the {role}", _licence(found)) for role, found in told["licences"].items()
    ]
    lines += [("hardware", _plain(told["hardware"])), ("versions", _plain(told["versions"]))]
    lines += [("teacher's answers", _money(told["money"]))]
    took = {name: duration(s) for name, s in told["seconds"].items() if s is not None}
    lines += [("time by stage", _plain(took))]
    energy = known(told["energy_joules"], lambda joules: f"{number(joules)} J")
    lines += [("energy", energy if energy != "unknown" else "unknown: nothing measured it")]
    lines += [("registered", _registered(found)) for found in [content.get("registered")] if found]
    for name in ("mlflow", "prefect", "fingerprints"):
        if content.get(name):
            lines.append((name, _plain(content[name])))
    return lines


def _registered(found: Row) -> str:
    text = f"{found['name']}, version {known(found['version'], str)}"
    other = found["compared_with"]
    return f"{text}, compared with version {other}" if other else text


def _model(model: Row) -> str:
    parts = [str(model["model"]), f"engine {model['engine']} {model.get('engine_version') or ''}"]
    parts += [str(model["dtype"])] if model.get("dtype") else []
    return ", ".join(part.strip() for part in parts)


def _licence(found: Row) -> str:
    allowed = {
        "allowed": "allows distillation",
        "forbidden": "forbids distillation",
        "unknown": "whether it allows distillation is unknown",
    }[found["distillation"]]
    parts = [found["license"] or "unknown", allowed, found.get("note") or ""]
    return "; ".join(part for part in parts if part)


def _money(found: Row | None) -> str:
    if not found:
        return "unknown"
    tokens = f"{found['input_tokens']:,} tokens in, {found['output_tokens']:,} out"
    seconds = f"{duration(found['engine_seconds'])} of the engine"
    cost = known(found["cost"], lambda cost: f"{number(cost)} in money")
    return f"{tokens}, {seconds}, cost {cost}"


def _plain(value: Any) -> str:
    """Returns what is known of something as text."""
    if isinstance(value, dict):
        return ", ".join(_named(name, item) for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_plain, value)) or "none"
    return known(value, str)


def _named(name: str, value: Any) -> str:
    if name.endswith("_bytes") and value is not None:
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {count_bytes(value)}"
    return f"{name.replace('_', ' ')} {_plain(value)}"


def spec(content: Content) -> str:
    """Returns the job's spec with all its defaults, as YAML."""
    text: str = yaml.safe_dump(content["ran"]["spec"], sort_keys=False, allow_unicode=True)
    return text
