"""What the stages of an on-policy round do when an earlier round said that the rounds end."""

from retort.records import JsonObject
from retort.spec import rounds
from retort.stages.stage import Stage


def ended(stage: Stage) -> str | None:
    """Returns why the rounds ended before this one; None where they go on, or outside of them."""
    is_part = any(name.startswith((rounds.ROLLOUTS, rounds.SCORES)) for name in stage.inputs)
    answers = stage.name == "generate" and not is_part
    name = rounds.before(stage.inputs) if is_part or answers else None
    reason: str | None = stage.facts(name).get("ended") if name else None
    return reason


def pass_on(stage: Stage, reason: str) -> JsonObject:
    """Writes the student of the round before as that of this one; returns the stage's facts."""
    name = rounds.before(stage.inputs)
    assert name
    with stage.input(name).local_copy("student") as folder:
        stage.out.put_tree(folder, "student")
    for file in ("history.json", "phases.json", "mask_audit.txt"):
        if stage.input(name).has(file):
            stage.out.write(file, stage.input(name).read(file))
    stage.report.note(f"not made, for the rounds ended: {reason}")
    return stage.facts(name)
