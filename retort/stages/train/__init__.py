"""train: the student learns from the kept responses and the teacher's signal, in a child process.

The loop is in loop.py, what it is fed in rows.py and batches.py, the model (and its adapters) in
student.py, a live teacher in teacher.py, head and losses in objective.py and head.py, several
processes in layout.py and ranks.py, what survives a kill in checkpoint.py and curve.py.
"""

from typing import Any

from retort import processes
from retort.events import Reporter
from retort.stages.stage import Stage
from retort.stages.train.layout import layout_of


def train(stage: Stage) -> dict[str, Any]:
    """Writes the student as a Hugging Face folder `student/`; returns counts and last losses."""
    runtime = stage.spec.train.runtime.model_dump()
    layout = layout_of(stage.spec.train)
    runtime |= {"num_processes": layout.num_processes_here, "num_nodes": layout.num_nodes}
    return processes.run(
        fit,
        {"arguments": stage.arguments()},
        stage.report,
        stage.log,
        runtime,
    )


def fit(arguments: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """The child's side: what `loop.fit` returns. torch is loaded in the child alone."""
    from retort.stages.train import loop

    return loop.fit(arguments, report)
