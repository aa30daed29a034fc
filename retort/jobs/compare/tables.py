"""The tables of several runs: a column a model, and a column a run for what its student gained.

A teacher or base that several runs have in common, with the same scores, has one column.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from markupsafe import Markup

from retort.jobs.compare.pairs import StudentPair, pairs
from retort.jobs.compare.runs import Run
from retort.metrics.comparison import details, pages, shapes, table
from retort.metrics.comparison import formatting as show
from retort.records import JsonObject


@dataclass(frozen=True)
class ComparedRuns:
    """All that is shown: the runs, tables (a heading row, then a row a measure), pairs, notes."""

    runs: list[Run]
    models: list[list[str]]
    details: list[list[str]]
    gains: list[list[str]]
    pairs: list[StudentPair]
    notes: list[str]

    def as_json(self) -> JsonObject:
        """Returns what `retort compare --json` prints."""
        return {
            "runs": [_run_as_json(run) for run in self.runs],
            **{name: getattr(self, name) for name in ("models", "details", "gains")},
            "pairs": [{**asdict(pair), "outcome": pair.outcome} for pair in self.pairs],
            "notes": self.notes,
        }


def compare(runs: list[Run]) -> ComparedRuns:
    """Returns the runs side by side."""
    columns, names = _columns(runs), list(dict.fromkeys(run.metric for run in runs))
    return ComparedRuns(
        runs=runs,
        models=_models(columns, names),
        details=_details(columns, names[0]),
        gains=_gains(runs),
        pairs=pairs(runs),
        notes=_notes(runs),
    )


def _run_as_json(run: Run) -> JsonObject:
    content = run.content
    student = content.models["student"].as_json()
    return {
        "name": run.label,
        "report": run.place,
        "task_type": content.task_type,
        "metric": run.metric,
        "split": content.data.split,
        "num_examples": content.data.num_examples,
        "passed": content.gate.passed,
        "comparison": asdict(content.comparison),
        "student": {key: value for key, value in student.items() if key != "latencies"},
    }


def _columns(runs: list[Run]) -> shapes.ModelsByRole:
    """Returns the models by their column's heading: each run's student, then teachers and bases."""
    columns = {run.label: run.content.models["student"] for run in runs}
    for role in ("teacher", "base"):
        owners: dict[str, list[Run]] = {}
        for run in runs:
            owners.setdefault(_identity(run.content.models[role]), []).append(run)
        for alike in owners.values():
            of = f" of {', '.join(run.label for run in alike)}" if len(owners) > 1 else ""
            columns[f"{role}{of}"] = alike[0].content.models[role]
    return columns


def _identity(model: shapes.MeasuredModel) -> str:
    """Returns what two measurements of one model have in common: all but times and memory."""
    return repr(
        [
            *(model.model, model.engine, model.dtype, model.parameters, model.weights_bytes),
            model.metrics,
        ]
    )


def _models(columns: shapes.ModelsByRole, names: list[str]) -> list[list[str]]:
    """Returns the first table's rows, with a score and its interval for each metric that decides in
    some run."""
    rows = table(columns, names[0])
    at = next(at for at, row in enumerate(rows) if row[0] == names[0])
    scores = [
        [heading, *(shown(model.metrics.get(name), name) for model in columns.values())]
        for name in names
        for heading, shown in ((name, show.estimate), (f"{name}, 95% interval", show.interval))
    ]
    return [*rows[:at], *scores, *rows[at + 1 :]]


def _details(columns: shapes.ModelsByRole, metric: str) -> list[list[str]]:
    """Returns the second table without the rows that belong to one run alone."""
    heading, *rows = details(columns, metric, {})
    return [heading, *(row for row in rows if row[0] != f"{metric}, 95% interval")]


def _gains(runs: list[Run]) -> list[list[str]]:
    """Returns what each student kept and saved, against its own teacher and base."""
    rows: dict[str, Callable[[shapes.Comparison], str]] = {
        "metric": lambda comparison: comparison.metric,
        "kept of the teacher's": lambda comparison: show.percent(comparison.retention),
        "kept, 95% interval": lambda comparison: show.interval(comparison.retention_interval),
        "against its base": lambda comparison: (
            show.gap(comparison.gain, comparison.metric) + show.unit(comparison.metric)
        ),
        "inference time saved": lambda comparison: show.percent(comparison.latency_reduction),
        "weight memory saved": lambda comparison: show.percent(comparison.memory_reduction),
        "cost saved": lambda comparison: show.percent(comparison.cost_reduction),
        "throughput": lambda comparison: _throughput(comparison.throughput_ratio),
    }
    made = [[name, *(cell(run.content.comparison) for run in runs)] for name, cell in rows.items()]
    return [
        ["student against its teacher", *(run.label for run in runs)],
        *(row for row in made if set(row[1:]) != {"unknown"}),
        ["gate", *(_gate(run.content.gate) for run in runs)],
        *_exports(runs),
    ]


def _exports(runs: list[Run]) -> list[list[str]]:
    """Returns each run's exported students in the metric that decided there, a row a format."""
    formats = dict.fromkeys(e.format for run in runs for e in run.content.exports.values())
    return [[name, *(_export(run, name) for run in runs)] for name in formats]


def _export(run: Run, name: str) -> str:
    """Returns an export's size, score, and its difference to its student; nothing without one."""
    found = next((e for e in run.content.exports.values() if e.format == name), None)
    if found is None:
        return ""
    metric = run.content.comparison.metric
    score = show.estimate(found.model.metrics.get(metric), metric)
    gap = show.difference(found.against.get("student"), metric)
    verdict = "" if found.check.passed else ", refused"
    return f"{show.count_bytes(found.model.weights_bytes)}, {score} ({gap}){verdict}"


def _throughput(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{show.times(ratio)} times"


def _gate(gate: shapes.GateOutcome) -> str:
    failed = [check.name for check in gate.checks if not check.passed]
    return "passed" if gate.passed else f"refused: {', '.join(failed)}"


def _notes(runs: list[Run]) -> list[str]:
    """Returns what to be careful about when the columns are read side by side."""
    notes = []
    machines = [run.content.ran.hardware for run in runs]
    engines = [run.content.models["student"].engine for run in runs]
    for what, values in (("machines", machines), ("engines", engines)):
        if any(each != values[0] for each in values):
            notes.append(f"times and memory were measured on different {what}: do not rank by them")
    if len(runs) > 2:
        notes.append("p-values are of each pair by itself, not corrected for the number of pairs")
    return notes


def page(content: ComparedRuns) -> bytes:
    """Returns the comparison as a page that needs no network."""
    style = Markup(pages.text_of("retort.stages.report", "page.css"))
    shown = pages.html("retort.jobs.compare", "page.html", content=content, style=style)
    return shown.encode("utf-8", "replace")
