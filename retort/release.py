"""release: the student as a Hugging Face folder with its model card, ready to be registered.

The weights lie once, here; the registry points to them. A refused student is kept and tagged, so
that it can be looked at, and is never promoted.
"""

from typing import Any

from retort.comparison import caption, table, verdict
from retort.context import Stage


def release(stage: Stage) -> dict[str, Any]:
    """Writes `model/` and `gate.json`; returns what the registry is told."""
    reported = stage.input("report").read_json("report.json")
    stage.out.write_json("gate.json", reported["gate"])
    with stage.input("train").local_copy("student") as student:
        stage.out.put_tree(student, "model")
    stage.out.write("model/README.md", model_card(stage, reported).encode())
    stage.report.progress(1, 1, "model")
    return {
        "registered_model": stage.spec.release.registered_model or stage.spec.name,
        "source": f"{stage.out.uri}/model",
        "gate_passed": reported["gate"]["passed"],
    }


def model_card(stage: Stage, reported: dict[str, Any]) -> str:
    """Returns the model card: what it is, what it scored, what it was made from."""
    heading, *body = table(reported)
    rows = ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# {stage.spec.name}",
            "",
            f"Distilled from `{reported['models']['teacher']['model'].rsplit('/', 1)[-1]}` into "
            f"`{reported['models']['base']['model'].rsplit('/', 1)[-1]}` by Retort. "
            f"{verdict(reported)}",
            "",
            "| " + " | ".join(heading) + " |",
            "|" + "---|" * len(heading),
            *rows,
            "",
            caption(reported),
            "",
        ]
    )
