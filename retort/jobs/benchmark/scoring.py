"""Runs one model on one task: the rows of the report, and the score of each question.

It calls the harness's `evaluate`. Its `simple_evaluate` gives the same results, but describes the
machine each time, which takes a second of CPU even where its cache holds all answers, and asks the
hub about the model.
"""

import math
import random
import sys
from collections.abc import Iterator
from numbers import Real
from typing import Any, TypedDict, TypeGuard

from retort.records import JsonObject

# The harness's own seeds (lm_eval.defaults): tasks that draw few-shot examples draw the same ones.
RANDOM_SEED, OTHER_SEED = 0, 1234


class TaskFacts(TypedDict):
    """A row of the report: `n` questions, of `num_tasks` tasks where it is a group."""

    version: float | str | None
    num_fewshot: int | None
    n: int
    num_tasks: int
    higher_is_better: dict[str, bool]


class Measured(TypedDict):
    """A metric of a row, with its standard error where the harness has one."""

    value: float
    stderr: float | None


class TaskResult(TypedDict):
    """One model's result of a task: facts and metrics by row, scores by row, metric and question,
    and how many prompts were cut because they were too long."""

    tasks: dict[str, TaskFacts]
    metrics: dict[str, dict[str, Measured]]
    scores: dict[str, dict[str, dict[str, float]]]
    num_truncated: int


def seed() -> None:
    """Makes all random choices from here on the same for every model."""
    import numpy as np

    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    if torch := sys.modules.get("torch"):  # a model behind an endpoint does not load it
        torch.manual_seed(OTHER_SEED)


def scored(opened: Any, loaded: dict[str, Any], name: str, limit: int | None) -> TaskResult:
    """Returns the result of an opened model on a loaded task."""
    from lm_eval.evaluator import evaluate

    seed()
    output = evaluate(
        lm=opened,
        task_dict=loaded,
        limit=limit,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    # A group with a score of its own is one row; of another, each of its tasks is.
    groups, results = loaded.get("groups", {}), output["results"]
    names = [name] if name in results else [task for task in results if task not in groups]
    samples = {task: output["samples"][task] for task in loaded["tasks"]}
    return {
        "tasks": {row: _facts(row, output) for row in names},
        "metrics": {row: _metrics(results[row]) for row in names},
        "scores": {
            row: _scores({row: samples[row]} if row in samples else samples) for row in names
        },
        "num_truncated": sum(_is_truncated(opened, each) for each in _arguments(samples)),
    }


def _facts(row: str, output: JsonObject) -> TaskFacts:
    members = output.get("group_subtasks", {}).get(row) or [row]
    counts = [output["n-samples"][task]["effective"] for task in _leaves(row, output)]
    return {
        "version": output["versions"].get(row),
        "num_fewshot": output["n-shot"].get(row),
        "n": sum(counts),
        "num_tasks": len(members) if members != [row] else 1,
        "higher_is_better": output["higher_is_better"].get(row, {}),
    }


def _leaves(row: str, output: JsonObject) -> list[str]:
    """Returns the tasks of a row: itself, or those of a group."""
    members = output.get("group_subtasks", {}).get(row)
    if not members:
        return [row]
    return [leaf for member in members for leaf in _leaves(member, output)]


def _metrics(result: JsonObject) -> dict[str, Measured]:
    """Returns the metrics of a row, by name and filter: acc, `exact_match, strict-match` ..."""
    metrics: dict[str, Measured] = {}
    for key, value in result.items():
        metric, _, filter_name = key.partition(",")
        if filter_name and not metric.endswith("_stderr") and _is_number(value):
            error = result.get(f"{metric}_stderr,{filter_name}")
            error = float(error) if _is_number(error) else None
            metrics[_title(metric, filter_name)] = {"value": float(value), "stderr": error}
    return metrics


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, numpy's included."""
    return isinstance(value, Real) and math.isfinite(value)


def _title(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def _scores(samples: dict[str, list[JsonObject]]) -> dict[str, dict[str, float]]:
    """Returns the score of each question by metric, of the metrics with one number a question."""
    by_metric: dict[str, dict[str, float]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                if _is_number(row[metric]):
                    scores = by_metric.setdefault(_title(metric, row["filter"]), {})
                    scores[f"{task}/{row['doc_id']}"] = float(row[metric])
    return by_metric


def _arguments(samples: dict[str, list[JsonObject]]) -> Iterator[tuple[Any, ...]]:
    """Yields the arguments of each request once, because each filter repeats them."""
    for rows in samples.values():
        first = rows[0]["filter"] if rows else None
        yield from (each for row in rows if row["filter"] == first for each in row["arguments"])


def _is_truncated(opened: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a prompt was cut at its start because it is too long for the model."""
    if not hasattr(opened, "tok_encode") or len(arguments) < 2 or not isinstance(arguments[0], str):
        return False  # of an endpoint, or of a text that is read in windows
    prompt, rest = arguments
    length = len(opened.tok_encode(prompt))
    if isinstance(rest, dict):
        length += int(rest.get("max_gen_toks", opened.max_gen_toks))
    else:
        length += len(opened.tok_encode(rest, add_special_tokens=False))
    return bool(length > opened.max_length)
