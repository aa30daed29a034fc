"""What the page's template shows beyond the content itself: finished text, row by row."""

from dataclasses import dataclass
from typing import Any

import yaml

from retort.metrics import lower_is_better
from retort.metrics.comparison.content import (
    ConfusionMatrix,
    Licence,
    MeasuredModel,
    Models,
    RegisteredVersion,
    ReportContent,
    TeacherCost,
)
from retort.metrics.comparison.formatting import count_bytes, duration, number

MOST_LABELS = 12
DISTILLATION = {
    "allowed": "allows distillation",
    "forbidden": "forbids distillation",
    "unknown": "whether it allows distillation is unknown",
}


def tone(outcome: str, metric: str) -> str:
    """Returns what an outcome is worth: where less is better, below is what above is elsewhere."""
    better = {"above": "below", "below": "above"} if lower_is_better(metric) else {}
    return better.get(outcome, outcome)


@dataclass(frozen=True)
class ConfusionView:
    """A model's confusion matrix: each row a label and its cells, a count and its share of the row.

    `left_out` counts the labels that are too rare to be shown.
    """

    role: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    left_out: int


def confusions(models: Models) -> list[ConfusionView]:
    """Returns the models' confusion matrices; of many labels the most frequent are shown."""
    return [_confusion(role, model.confusion) for role, model in models.items() if model.confusion]


def _confusion(role: str, found: ConfusionMatrix) -> ConfusionView:
    labels, counts = found.labels, found.counts
    order = sorted(range(len(labels)), key=lambda at: -sum(counts[at]))
    shown, rest = sorted(order[:MOST_LABELS]), order[MOST_LABELS:]
    rows = []
    for at in shown:
        cells = [counts[at][other] for other in shown]
        cells += [sum(counts[at][other] for other in rest)] if rest else []
        cells += counts[at][len(labels) :]
        total = sum(cells) or 1
        rows.append((labels[at], [(cell, cell / total) for cell in cells]))
    columns = [labels[at] for at in shown] + ["others"] * bool(rest) + ["no answer"]
    return ConfusionView(role, columns, rows, len(rest))


def benchmarks(content: ReportContent) -> list[list[str]]:
    """Returns the public benchmarks as a table, a row a task's metric; [] without any."""
    if not content.benchmarks:
        return []
    by_role: dict[str, dict[str, dict[str, dict[str, float]]]] = content.benchmarks["models"]
    names = dict.fromkeys(
        (task, metric)
        for tasks in by_role.values()
        for task, metrics in tasks.items()
        for metric in metrics
    )

    def cell(found: dict[str, float]) -> str:
        error = found.get("stderr")
        sure = f" ± {number(error)}" if isinstance(error, float) else ""
        return f"{number(found.get('value'))}{sure}"

    rows = [
        [
            f"{task}, {metric}",
            *(cell(tasks.get(task, {}).get(metric, {})) for tasks in by_role.values()),
        ]
        for task, metric in names
    ]
    return [["", *by_role], *rows]


def ran(content: ReportContent) -> list[tuple[str, str]]:
    """Returns what was run, each line a name and its text; unknown is said as unknown."""
    found = content.ran
    seconds = {name: duration(s) for name, s in found.seconds.items() if s is not None}
    energy = "unknown: nothing measured it"
    if found.energy_joules is not None:
        energy = f"{number(found.energy_joules)} J"
    lines = [
        *((role, _model(model)) for role, model in content.models.items()),
        *((f"licence of the {role}", _licence(each)) for role, each in found.licences.items()),
        ("hardware", _plain(found.hardware)),
        ("versions", _plain(found.versions)),
        ("teacher's answers", _money(found.money) if found.money else "unknown"),
        ("time by stage", _plain(seconds)),
        ("energy", energy),
    ]
    if content.registered:
        lines.append(("registered", _registered(content.registered)))
    of_the_run = {name: getattr(content, name) for name in ("mlflow", "prefect", "fingerprints")}
    return [*lines, *((name, _plain(each)) for name, each in of_the_run.items() if each)]


def _registered(found: RegisteredVersion) -> str:
    text = f"{found.name}, version {_plain(found.version)}"
    other = found.compared_with
    return f"{text}, compared with version {other}" if other else text


def _model(model: MeasuredModel) -> str:
    engine = f"engine {model.engine} {model.engine_version or ''}".strip()
    return ", ".join(part for part in (model.model, engine, model.dtype) if part)


def _licence(found: Licence) -> str:
    parts = [found.license or "unknown", DISTILLATION[found.distillation], found.note]
    return "; ".join(part for part in parts if part)


def _money(found: TeacherCost) -> str:
    tokens = f"{found.input_tokens:,} tokens in, {found.output_tokens:,} out"
    seconds = f"{duration(found.engine_seconds)} of the engine"
    cost = "unknown" if found.cost is None else f"{number(found.cost)} in money"
    return f"{tokens}, {seconds}, cost {cost}"


def _plain(value: Any) -> str:
    """Returns JSON as text."""
    if isinstance(value, dict):
        return ", ".join(_named(name, item) for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_plain, value)) or "none"
    return "unknown" if value is None else str(value)


def _named(name: str, value: Any) -> str:
    if name.endswith("_bytes") and value is not None:
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {count_bytes(value)}"
    return f"{name.replace('_', ' ')} {_plain(value)}"


def spec(content: ReportContent) -> str:
    """Returns the job's spec with all its defaults, as YAML."""
    text: str = yaml.safe_dump(content.ran.spec, sort_keys=False, allow_unicode=True)
    return text
