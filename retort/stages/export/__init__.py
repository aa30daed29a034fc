"""export: the student written in one format, for a runtime that others use.

Each format is an artifact of its own, so that a further one is made beside those that are there.
Whether the file is as good as the student is not said here: evaluate measures it as what it is.
"""

from retort import processes
from retort.errors import EngineDiedError, StoreError
from retort.records import JsonObject
from retort.stages.export.writing import write
from retort.stages.stage import Stage


def export(stage: Stage) -> JsonObject:
    """Writes `model/` in the one format that the stage's spec names; returns its facts.

    A format that cannot be written ends no job: the facts say why, and the next run tries again.
    Raises `EngineDiedError` where the process was killed or had too little memory, as other stages
    do: that says nothing of the format.
    """
    (name,) = stage.spec.export.formats
    runtime, arguments = stage.spec.evaluate.runtime.model_dump(), {"arguments": stage.arguments()}
    try:
        facts = processes.run(write, arguments, stage.report, stage.log, runtime)
    except (StoreError, EngineDiedError):
        raise
    except Exception as error:  # of whatever kind the format's library raises
        stage.report.note(f"warning: {name} cannot be written: {error}")
        return {"format": name, "failed": f"it cannot be written: {error}", "num_unreached": 1}
    for text in filter(None, (facts[part]["difference"] for part in ("tokenizer", "template"))):
        stage.report.note(f"warning: {facts['format']}: {text}; it is measured, and not released")
    stage.report.note(f"{facts['format']}: {facts['weights_bytes'] / 1e6:,.2f} MB")
    return facts
