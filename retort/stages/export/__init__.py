"""export: the student written in one format, for a runtime that others use.

Each format is an artifact of its own, so that a further one is made beside those that are there.
Whether the file is as good as the student is not said here: evaluate measures it as what it is.
"""

from typing import Any

from retort import processes
from retort.stages.export.writing import write
from retort.stages.stage import Stage


def export(stage: Stage) -> dict[str, Any]:
    """Writes `model/` in the one format that the stage's spec names; returns its facts."""
    runtime = stage.spec.evaluate.runtime.model_dump()
    facts = processes.run(write, {"arguments": stage.arguments()}, stage.report, stage.log, runtime)
    for text in filter(None, (facts[part]["difference"] for part in ("tokenizer", "template"))):
        stage.report.note(f"warning: {facts['format']}: {text}; it is measured, and not released")
    stage.report.note(f"{facts['format']}: {facts['weights_bytes'] / 1e6:,.2f} MB")
    return facts
