"""train: the student learns from the kept responses and the teacher's signal, in a child process.

The loop is in loop.py, what it is fed in rows.py, what survives a kill in checkpoint.py.
"""

from typing import Any

from retort import child
from retort.context import Stage


def train(stage: Stage) -> dict[str, Any]:
    """Writes the student as a Hugging Face folder `student/`; returns counts and last losses."""
    facts: dict[str, Any] = child.run(
        "retort.train.loop:fit",
        {"arguments": stage.arguments()},
        stage.report,
        stage.log,
        stage.spec.train.runtime.model_dump(),
    )
    return facts
