"""cut: the student as the part of its teacher that matters most, measured on the stored answers.

shape.py says what can be cut and what stays; rows.py reads the stored answers; layers.py chooses
layers, width.py channels, heads and hidden numbers; writing.py writes the folder. The method is
Minitron's (arXiv:2407.14679), with the stored signal in place of the teacher's own.
"""

from retort import processes
from retort.events import Reporter
from retort.processes.libraries import import_torch, lean_imports
from retort.records import JsonObject
from retort.stages.engine_settings import on_cluster
from retort.stages.stage import Stage


def cut(stage: Stage) -> JsonObject:
    """Writes the student before it learned as a Hugging Face folder `student/`; returns what was
    chosen, by which measure, and its size."""
    runtime = on_cluster(stage.spec, stage.spec.train.runtime) | {"libraries": import_torch}
    runtime |= {"num_processes": 1, "num_nodes": 1}
    return processes.run(make, {"arguments": stage.arguments()}, stage.report, stage.log, runtime)


def make(arguments: JsonObject, report: Reporter) -> JsonObject:
    """Returns what `writing.make` returns. It runs in the child, the only process to load torch."""
    with lean_imports():
        from retort.stages.cut import writing

    return writing.make(arguments, report)
