"""What the page's template needs beyond the content itself: tables, and JSON as text."""

from dataclasses import dataclass
from typing import Any

import yaml

from retort.metrics import lower_is_better
from retort.metrics.comparison.formatting import count_bytes, number
from retort.metrics.comparison.shapes import BenchmarkScore, ConfusionMatrix, ReportContent

MOST_LABELS = 12


def tone(outcome: str, metric: str) -> str:
    """Returns what an outcome is worth: where less is better, below is what above is elsewhere."""
    better = {"above": "below", "below": "above"} if lower_is_better(metric) else {}
    return better.get(outcome, outcome)


@dataclass(frozen=True)
class ConfusionView:
    """A confusion matrix to show: each row a label and its cells, a count and its share of the row.

    `left_out` counts the labels that are too rare to be shown.
    """

    columns: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    left_out: int


def confusion(matrix: ConfusionMatrix) -> ConfusionView:
    """Returns a matrix with its most frequent labels, the others summed."""
    labels, counts = matrix.labels, matrix.counts
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
    return ConfusionView(columns, rows, len(rest))


def benchmarks(content: ReportContent) -> list[list[str]]:
    """Returns the public benchmarks as a table, a row a task's metric; [] without any."""
    by_role = content.benchmarks.models if content.benchmarks else {}
    names = dict.fromkeys(
        (task, metric)
        for tasks in by_role.values()
        for task, scores in tasks.items()
        for metric in scores
    )

    def cell(score: BenchmarkScore | None) -> str:
        if score is None:
            return number(None)
        error = score.stderr
        return number(score.value) + (f" ± {number(error)}" if error is not None else "")

    rows = [
        [f"{task}, {metric}", *(cell(t.get(task, {}).get(metric)) for t in by_role.values())]
        for task, metric in names
    ]
    return [["", *by_role], *rows] if rows else []


def as_text(value: Any) -> str:
    """Returns JSON as text, such as `cores 2, memory 25.3 GB, gpus none`."""
    if isinstance(value, dict):
        return ", ".join(_named(name, item) for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(as_text, value)) or "none"
    return "unknown" if value is None else str(value)


def _named(name: str, value: Any) -> str:
    if name.endswith("_bytes") and value is not None:
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {count_bytes(value)}"
    return f"{name.replace('_', ' ')} {as_text(value)}"


def as_yaml(spec: Any) -> str:
    """Returns the job's spec with all its defaults, as YAML."""
    text: str = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    return text
