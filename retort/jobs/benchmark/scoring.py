"""What the harness found of one task and one model: the rows of a report, and how it came to them.

The surprise: the harness's function `evaluate` is called, not `simple_evaluate`, which spends
seconds on a description of the machine and may ask the hub who the model is.
"""

import math
import random
import sys
from collections.abc import Iterator
from numbers import Real
from typing import Any, TypeGuard

# The harness's own seeds (lm_eval.defaults): tasks that draw few-shot examples draw the same ones.
RANDOM_SEED, OTHER_SEED = 0, 1234
Facts = dict[str, Any]


def seed() -> None:
    """Makes all that is drawn by chance from here on the same for every model."""
    import numpy as np

    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    if torch := sys.modules.get("torch"):  # a model behind an endpoint does without
        torch.manual_seed(OTHER_SEED)


def scored(opened: Any, loaded: dict[str, Any], name: str, limit: int | None) -> Facts:
    """Returns what the harness found: the rows of a report, and the score of each question."""
    from lm_eval.evaluator import evaluate

    seed()
    found = evaluate(
        lm=opened,
        task_dict=loaded,
        limit=limit,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    # A group that has a score of its own is one row; of any other, each of its tasks is.
    groups, results = loaded.get("groups", {}), found["results"]
    names = [name] if name in results else [task for task in results if task not in groups]
    samples = {task: found["samples"][task] for task in loaded["tasks"]}
    return {
        "tasks": {row: _facts(row, found) for row in names},
        "metrics": {row: _metrics(results[row]) for row in names},
        "scores": {
            row: _scores({row: samples[row]} if row in samples else samples) for row in names
        },
        "num_truncated": sum(_is_truncated(opened, each) for each in _questions(samples)),
    }


def _facts(row: str, found: dict[str, Any]) -> Facts:
    members = found.get("group_subtasks", {}).get(row) or [row]
    counts = [found["n-samples"][task]["effective"] for task in _leaves(row, found)]
    return {
        "version": found["versions"].get(row),
        "num_fewshot": found["n-shot"].get(row),
        "n": sum(counts),
        "num_tasks": len(members) if members != [row] else 1,
        "higher_is_better": found["higher_is_better"].get(row, {}),
    }


def _leaves(row: str, found: dict[str, Any]) -> list[str]:
    """Returns the tasks that a row sums up, itself where it is one."""
    members = found.get("group_subtasks", {}).get(row)
    if not members:
        return [row]
    return [leaf for member in members for leaf in _leaves(member, found)]


def _metrics(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Returns the metrics of a row, by name and filter: acc, `exact_match, strict-match` ..."""
    found = {}
    for key, value in result.items():
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr") and _is_number(value):
            error = result.get(f"{metric}_stderr,{chosen}")
            error = float(error) if _is_number(error) else None
            found[_title(metric, chosen)] = {"value": float(value), "stderr": error}
    return found


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number, which numpy's are too, and a finite one."""
    return isinstance(value, Real) and math.isfinite(value)


def _title(metric: str, chosen: str) -> str:
    return metric if chosen == "none" else f"{metric}, {chosen}"


def _scores(samples: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Returns the score of each question by metric, where a metric is one number a question."""
    found: dict[str, dict[str, float]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                if _is_number(row[metric]):
                    scores = found.setdefault(_title(metric, row["filter"]), {})
                    scores[f"{task}/{row['doc_id']}"] = float(row[metric])
    return found


def _questions(samples: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[Any, ...]]:
    """Yields the arguments of each request once: filters repeat them."""
    for rows in samples.values():
        first = rows[0]["filter"] if rows else None
        yield from (ask for row in rows if row["filter"] == first for ask in row["arguments"])


def _is_truncated(opened: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a prompt lost its start because the model's longest text is too short."""
    if not hasattr(opened, "tok_encode") or len(arguments) < 2 or not isinstance(arguments[0], str):
        return False  # an endpoint's, or a text that is read in windows
    prompt, rest = arguments
    length = len(opened.tok_encode(prompt))
    if isinstance(rest, dict):
        length += int(rest.get("max_gen_toks", opened.max_gen_toks))
    else:
        length += len(opened.tok_encode(rest, add_special_tokens=False))
    return bool(length > opened.max_length)
