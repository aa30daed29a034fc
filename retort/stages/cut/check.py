"""The check of `cut` before a run: the teacher, its family, and the shape that is asked for."""

from pathlib import Path

from retort.errors import SpecError
from retort.spec import JobSpec
from retort.stages.cut.shape import WHERE, plan_of
from retort.stages.engine_settings import engine_of


def check(spec: JobSpec, is_store_local: bool) -> list[str]:
    """Returns a line on what will be cut; none where the base is given. Raises `SpecError` where
    the teacher cannot be cut, or not so."""
    if spec.cut is None:
        return []
    teacher = spec.generate.teacher
    if engine_of(spec).REMOTE:
        raise SpecError(
            f"{WHERE}: the teacher {teacher} is at an endpoint, which gives no weights; name its "
            "folder in generate.teacher with engine vllm or transformers, or a base in "
            "train.student"
        )
    if not Path(teacher).is_dir():
        raise SpecError(
            f"{WHERE}: {teacher} is no folder of this machine, and its weights are cut here; "
            f"fetch it (hf download {teacher} --local-dir teacher) and name the folder in "
            "generate.teacher"
        )
    if spec.cluster.ray and not is_store_local:
        raise SpecError(
            f"{WHERE}: on a Ray cluster the cut student has to lie where every node sees it; use "
            "a --store on a shared disk, or a base in train.student"
        )
    plan = plan_of(spec)
    share = plan.parameters_after / plan.parameters
    wide = {
        name: (before, after)
        for name, before in vars(plan.teacher).items()
        if (after := getattr(plan.student, name)) != before
    }
    changes = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in wide.items())
    return [
        f"{WHERE}: {plan.config.model_type}, {changes or 'nothing less'}; "
        f"{plan.parameters_after:,} of {plan.parameters:,} parameters ({share:.1%})"
    ]
