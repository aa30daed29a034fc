"""What of `train` can fail later, checked before a run: losses, student, live teacher, machines."""

from pathlib import Path

from retort.errors import SpecError
from retort.plugins import check_function, check_options
from retort.processes import nodes
from retort.spec import JobSpec
from retort.stages.engine_settings import engine_of, model_line
from retort.stages.train.layout import layout_of
from retort.store import model_folder


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each thing that was checked and is well; raises `SpecError`."""
    for loss in spec.losses:
        check_function("loss", loss.name, "retort.losses")
        own = type(loss).model_fields
        check_options("loss", loss.name, "retort.losses", loss.options, own)
    student = model_folder.check(spec.train.student, "train.student")
    objective = " + ".join(f"{loss.weight:g} {loss.name}" for loss in spec.losses)
    lines = [f"objective {objective}", model_line("train.student", spec.train.student, student)]
    if spec.is_live:
        lines.append(_check_live(spec))
    if spec.distils and not engine_of(spec).REMOTE:
        teacher = model_folder.locate(spec.generate.teacher, "generate.teacher")
        check_pair(spec, teacher, student)
        lines.append("teacher and student share their token map and chat template")
    return [*lines, *_check_nodes(spec)]


def _check_live(spec: JobSpec) -> str:
    """Returns a line on the teacher that is asked while the student learns."""
    from retort.stages.train.endpoint_teacher import is_remote

    if is_remote(spec):
        where = f"its endpoint, {spec.train.live_top_k} log-probabilities a token"
    else:
        where = "memory beside it"
    return f"train.teacher: live; the teacher is asked while the student learns, in {where}"


def check_pair(spec: JobSpec, teacher: Path, student: Path) -> None:
    """Raises `SpecError` where the student cannot read the teacher's distribution: their token maps
    or chat templates differ, or the signal would be the whole vocabulary."""
    (teacher_map, size), (student_map, _) = (
        model_folder.token_map(teacher),
        model_folder.token_map(student),
    )
    text_alone = "train.losses: [{name: cross_entropy}]" if spec.is_live else "generate.top_k: 0"
    way_out = (
        f"the student cannot learn from the teacher's signal; set {text_alone} to learn from its "
        "text alone, or take a student of the same family"
    )
    if teacher_map != student_map:
        raise SpecError(f"{teacher} and {student} have different tokenizers, so {way_out}")
    if model_folder.template_sha256(teacher) != model_folder.template_sha256(student):
        raise SpecError(f"{teacher} and {student} have different chat templates, so {way_out}")
    if spec.uses_signal and spec.generate.top_k >= size:
        raise SpecError(
            f"generate.top_k: {spec.generate.top_k} is not below the vocabulary's {size} tokens"
        )


def _check_nodes(spec: JobSpec) -> list[str]:
    """Returns a line where the student trains on several machines. Raises `SpecError` where these
    could not meet."""
    layout = layout_of(spec.train)
    if layout.num_nodes == 1:
        return []
    port = nodes.endpoint()[1]
    return [
        f"train.runtime.num_nodes: {layout.num_nodes}; the other {layout.num_nodes - 1}, with "
        f"`retort node` and the same store, will be waited for at port {port}"
    ]
