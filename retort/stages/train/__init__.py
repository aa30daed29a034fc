"""train: the student learns from the kept responses and the teacher's signal, in a child process.

loop.py holds the loop; training_rows.py and batches.py make its input; student.py opens and saves
the model and its adapters; teacher.py asks a live teacher; objective.py and head.py compute the
losses; layout.py and distributed.py place several processes; checkpoint.py and curve.py write what
a killed run continues from.
"""

from retort import processes
from retort.events import Reporter
from retort.processes.libraries import import_torch, lean_imports
from retort.records import JsonObject
from retort.stages import rounds
from retort.stages.engine_settings import on_cluster
from retort.stages.stage import Stage
from retort.stages.train.layout import layout_of


def train(stage: Stage) -> JsonObject:
    """Writes the student as a Hugging Face folder `student/`; returns counts and last losses."""
    if reason := rounds.ended(stage):
        return rounds.pass_on(stage, reason)
    runtime, layout = on_cluster(stage.spec, stage.spec.train.runtime), layout_of(stage.spec.train)
    runtime |= {"num_processes": layout.num_processes_here, "num_nodes": layout.num_nodes}
    runtime["libraries"] = import_torch
    return processes.run(
        fit,
        {"arguments": stage.arguments()},
        stage.report,
        stage.log,
        runtime,
    )


def fit(arguments: JsonObject, report: Reporter) -> JsonObject:
    """Returns what `loop.fit` returns. It runs in the child, the only process to load torch."""
    with lean_imports():
        from retort.stages.train import loop

    return loop.fit(arguments, report)
