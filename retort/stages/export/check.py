"""Checks before a run what could fail later in `export`: the formats, their packages, the family.

The student's folder is its base's, whose shape it keeps.
"""

from retort.spec import JobSpec
from retort.stages.export.formats import find_format
from retort.store import model_folder


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each format that can be written. Raises `SpecError` for another."""
    if not spec.export.formats:
        return []
    student = model_folder.locate(spec.base, "train.student")
    lines = []
    for name in spec.export.formats:
        module, quantization = find_format(name)
        module.check(student, quantization)
        lines.append(f"export {name}, answered by {module.ENGINE}")
    return lines
