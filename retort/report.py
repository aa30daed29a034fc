"""report: what was gained and what was lost, pulled from the other stages' manifests.

No stage knows that the report exists. What belongs to one run only (its MLflow and Prefect ids)
is added when the job finishes, so that a cached report tells of the run that shows it.
"""

from typing import Any

from retort import card, task_types
from retort.comparison import caption, compare, judge, table, verdict, warnings
from retort.context import Stage, held_out_split, read_examples
from retort.records import Example, Response, read_lines
from retort.spec import training_of

STAGES_READ = ("prepare", "generate", "curate", "train")


def report(stage: Stage) -> dict[str, Any]:
    """Writes `report.json` and `report.md`; returns the comparison and the gate's verdict."""
    evaluated, curated = stage.facts("evaluate"), stage.input("curate")
    comparison = compare(evaluated["models"], evaluated["differences"])
    gate = judge(comparison, stage.spec.report.gate)
    content = {
        "name": stage.spec.name,
        "task_type": stage.spec.prepare.task_type,
        "models": evaluated["models"],
        "comparison": comparison,
        "gate": gate,
        "training": {
            "warnings": [*warnings(comparison), *_training_warnings(stage)],
            "controls": {name: _counts(stage, training_of(name)) for name in stage.spec.controls},
        },
        "data": {"split": evaluated["split"], "num_examples": evaluated["num_examples"]}
        | {name: _counts(stage, name) for name in STAGES_READ}
        | {"card": curated.read_json("data_card.json")},
    }
    stage.out.write("data_card.svg", curated.read("data_card.svg"))
    stage.out.write_json("report.json", content)
    stage.out.write("report.md", markdown(content, _side_by_side(stage)).encode())
    stage.report.progress(1, 1, "report")
    return {"comparison": comparison, "gate": gate}


def markdown(content: dict[str, Any], examples: list[dict[str, str]]) -> str:
    """Returns the report as a page."""
    heading, *body = table(content)
    lines = [f"# {content['name']}", "", f"**{verdict(content)}**", ""]
    lines += ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    lines += ["", caption(content), "", "## Gate", ""]
    for check in content["gate"]["checks"]:
        mark = "passed" if check["passed"] else "**refused**"
        measured = "nothing" if check["measured"] is None else f"{check['measured']:.3f}"
        lines.append(f"- {check['name']}: required {check['required']}; {measured}: {mark}")
    lines += ["", card.page(content["data"]["card"])]
    lines += ["", "The same as a picture: `data_card.svg`, beside this page.", ""]
    if warned := content["training"]["warnings"]:
        lines += ["## Training", "", *(f"- warning: {text}" for text in warned), ""]
    if examples:
        lines += ["## Examples, where student and teacher differ first", ""]
    for example in examples:
        lines += [f"**{example['question']}** (expected: {example['expected']})", ""]
        lines += [f"- {role}: {example[role]}" for role in content["models"]]
        lines.append("")
    return "\n".join(lines) + "\n"


def _side_by_side(stage: Stage) -> list[dict[str, str]]:
    """Returns some examples with each model's answer; those where student and teacher differ."""
    task_type = task_types.load(stage.spec.prepare.task_type)
    evaluated = stage.input("evaluate")
    answers = {
        role: {r.id: r.text for r in read_lines(Response, evaluated.read(f"answers-{role}.jsonl"))}
        for role in stage.spec.roles
    }
    held_out = read_examples(stage.input("prepare"), held_out_split(stage.spec))
    asked = [example for example in held_out if example.id in answers["student"]]

    def same(example: Example) -> bool:
        texts = [answers[role][example.id] for role in ("teacher", "student")]
        given = [task_type.answer(text, example) for text in texts]
        return bool(given[0] == given[1])

    chosen = sorted(asked, key=same)[: stage.spec.report.num_examples]
    return [
        {
            "question": e.messages[-1]["content"],
            "expected": e.expected or "unknown",
            **{role: " ".join(answers[role][e.id].split()) for role in answers},
        }
        for e in chosen
    ]


def _training_warnings(stage: Stage) -> list[str]:
    """Returns what the trainings warned of, and which control had less to learn from: one that
    went wrong is easily beaten."""
    own = stage.facts("train")
    found = list(own.get("warnings", []))
    for name in stage.spec.controls:
        control = stage.facts(training_of(name))
        found += [f"{name}: {text}" for text in control.get("warnings", [])]
        if control["num_train"] < own["num_train"]:
            found.append(
                f"{name} learned from {control['num_train']:,} rows and the student from "
                f"{own['num_train']:,}; the others have no answer that {name} could learn"
            )
    return found


def _counts(stage: Stage, name: Any) -> dict[str, Any]:
    """Returns the counts among a stage's facts."""
    facts = stage.facts(name)
    return {key: v for key, v in facts.items() if key.startswith("num_") or key == "reasons"}
