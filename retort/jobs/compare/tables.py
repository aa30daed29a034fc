"""The tables of several runs: a column a model, and a column a run for what its student gained.

A teacher or base that several runs have in common, with the same scores, has one column.
"""

from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from retort.jobs.compare.pairs import pairs
from retort.jobs.compare.runs import Run
from retort.metrics.comparison import details, table
from retort.metrics.comparison.formatting import gap, known, times, unit

TableColumns = dict[str, dict[str, Any]]


def compare(runs: list[Run]) -> dict[str, Any]:
    """Returns all that is shown, as JSON: `runs`, the tables `models`, `details` and `gains` (a
    heading row, then a row a measure, cells as text), `pairs` as `pairs.pairs` does, and `notes`.
    """
    columns, names = _columns(runs), list(dict.fromkeys(run.metric for run in runs))
    return {
        "runs": [_run(run) for run in runs],
        "models": _models(columns, names),
        "details": _details(columns, names[0]),
        "gains": _gains(runs),
        "pairs": pairs(runs),
        "notes": _notes(runs),
    }


def _run(run: Run) -> dict[str, Any]:
    content = run.content
    return {
        "name": run.label,
        "report": run.place,
        "task_type": content["task_type"],
        "metric": run.metric,
        "split": content["data"]["split"],
        "num_examples": content["data"]["num_examples"],
        "passed": content["gate"]["passed"],
        "comparison": content["comparison"],
        "student": {k: v for k, v in _student(run).items() if k != "latencies"},
    }


def _student(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.content["models"]["student"]
    return found


def _columns(runs: list[Run]) -> TableColumns:
    """Returns the models by their column's heading: each run's student, then teachers and bases."""
    found: TableColumns = {run.label: _student(run) for run in runs}
    for role in ("teacher", "base"):
        owners: dict[str, list[Run]] = {}
        for run in runs:
            owners.setdefault(_identity(run.content["models"][role]), []).append(run)
        for alike in owners.values():
            of = f" of {', '.join(run.label for run in alike)}" if len(owners) > 1 else ""
            found[f"{role}{of}"] = alike[0].content["models"][role]
    return found


def _identity(model: dict[str, Any]) -> str:
    """Returns what two measurements of one model have in common: all but times and memory."""
    keys = ("model", "engine", "dtype", "parameters", "weights_bytes", "metrics")
    return repr([model.get(key) for key in keys])


def _models(columns: TableColumns, names: list[str]) -> list[list[str]]:
    """Returns the case study's rows, with those of each metric that decides somewhere: its value
    and how sure that is."""
    rows = table(_content(columns, names[0], {"value": None}))
    at = next(at for at, row in enumerate(rows) if row[0] == names[0])
    scores = []
    for name in names:
        shown = table(_content(columns, name, {"value": None}))
        scores += [row for row in shown if row[0] == name]
        scores += [row for row in details(_content(columns, name, None)) if row[0] == _sure(name)]
    return [*rows[:at], *scores, *rows[at + 1 :]]


def _details(columns: TableColumns, name: str) -> list[list[str]]:
    """Returns what else was measured."""
    return [row for row in details(_content(columns, name, None)) if row[0] != _sure(name)]


def _sure(metric: str) -> str:
    """Returns how the report calls the row of a metric's intervals."""
    return f"{metric}, 95% interval"


def _content(columns: TableColumns, metric: str, unknown: Any) -> dict[str, Any]:
    """Returns models as a report's content, for the report's own tables."""
    models = {
        name: {**model, "metrics": {metric: unknown, **model["metrics"]}}
        for name, model in columns.items()
    }
    return {"models": models, "comparison": {"metric": metric, "differences": {}}}


def _gains(runs: list[Run]) -> list[list[str]]:
    """Returns what each student kept and saved, against its own teacher and base."""
    rows: dict[str, Any] = {
        "metric": lambda run, found: run.metric,
        "kept of the teacher's": lambda run, found: known(found["retention"], "{:.1%}".format),
        "kept, 95% interval": lambda run, found: _kept(found["retention_interval"]),
        "against its base": lambda run, found: _gap(found["gain"], run.metric),
        "inference time saved": lambda run, found: _share(found["latency_reduction"]),
        "weight memory saved": lambda run, found: _share(found["memory_reduction"]),
        "cost saved": lambda run, found: _share(found["cost_reduction"]),
        "throughput": lambda run, found: known(
            found["throughput_ratio"], lambda ratio: f"{times(ratio)} times"
        ),
        "gate": lambda run, found: _gate(run.content["gate"]),
    }
    made = [
        [name, *(show(run, run.content["comparison"]) for run in runs)]
        for name, show in rows.items()
    ]
    return [
        ["student against its teacher", *(run.label for run in runs)],
        *(row for row in made if set(row[1:]) != {"unknown"}),
    ]


def _kept(found: dict[str, Any] | None) -> str:
    return known(found, lambda each: f"{each['low']:.1%} to {each['high']:.1%}")


def _share(reduction: float | None) -> str:
    return known(reduction, "{:.1%}".format)


def _gap(value: float, metric: str) -> str:
    return f"{gap(value, metric)}{unit(metric)}"


def _gate(gate: dict[str, Any]) -> str:
    failed = [check["name"] for check in gate["checks"] if not check["passed"]]
    return "passed" if gate["passed"] else f"refused: {', '.join(failed)}"


def _notes(runs: list[Run]) -> list[str]:
    """Returns what to be careful about when the columns are read side by side."""
    notes = []
    for what, told in {
        "machines": [run.content.get("ran", {}).get("hardware") for run in runs],
        "engines": [_student(run).get("engine") for run in runs],
    }.items():
        if any(each != told[0] for each in told):
            notes.append(f"times and memory were measured on different {what}: do not rank by them")
    if len(runs) > 2:
        notes.append("p-values are of each pair by itself, not corrected for the number of pairs")
    return notes


def page(content: dict[str, Any]) -> bytes:
    """Returns the page of what `compare` returned."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_text("retort.jobs.compare", "page.html"))
    style = Markup(_text("retort.stages.report", "page.css"))
    return template.render(content=content, style=style).encode("utf-8", "replace")


def _text(package: str, name: str) -> str:
    return (files(package) / name).read_text("utf-8")
