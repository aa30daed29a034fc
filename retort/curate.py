"""curate: which responses the student may learn from. Kept + rejected = responses, always."""

from collections import Counter
from typing import Any

from retort import task_types
from retort.context import Stage, read_examples, read_responses
from retort.errors import DataError
from retort.records import Decision, Example, Response, write_lines
from retort.registry import find_file, find_function
from retort.task_types import TaskType


def curate(stage: Stage) -> dict[str, Any]:
    """Writes one decision for each response; returns counts and the reasons.

    Raises `DataError` when fewer train responses are kept than `curate.min_kept`.
    """
    knobs = stage.spec.curate
    task_type = find_file("task type", stage.spec.prepare.task_type, task_types)
    examples = {e.id: e for e in read_examples(stage.input("prepare"), "train", "validation")}
    responses = read_responses(stage.input("generate"))
    if {response.example_id for response in responses} != set(examples):
        raise DataError("generate: responses and examples do not match by id; use --force generate")
    chosen = [(name, find_function("filter", name, "retort.filters")) for name in knobs.filters]
    decisions = [judge(examples[r.example_id], r, task_type, chosen) for r in responses]
    stage.out.write("decisions.jsonl", write_lines(decisions))
    stage.report.progress(len(decisions), len(decisions), "responses")
    reasons = Counter(f"{d.filter}: {d.reason}" for d in decisions if not d.kept)
    splits = {r.id: examples[r.example_id].split for r in responses}
    kept = Counter(splits[d.id] for d in decisions if d.kept)
    if kept["train"] < knobs.min_kept:
        raise DataError(
            f"curate kept {kept['train']} train responses, fewer than curate.min_kept="
            f"{knobs.min_kept}; rejected: {dict(reasons.most_common(5))}"
        )
    return {
        "num_responses": len(responses),
        "num_kept": sum(kept.values()),
        "num_kept_train": kept["train"],
        "num_rejected": sum(reasons.values()),
        "reasons": dict(reasons.most_common()),
    }


def judge(
    example: Example, response: Response, task_type: TaskType, chosen: list[tuple[str, Any]]
) -> Decision:
    """Returns the decision on one response: the first filter with a reason rejects it."""
    for name, rejects in chosen:
        reason = rejects(example, response, task_type)
        if reason is not None:
            return Decision(response.id, False, name, reason)
    return Decision(response.id, True)
