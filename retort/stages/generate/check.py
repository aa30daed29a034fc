"""What of `generate` can fail later, checked before a run: the teacher, what its engine can do."""

from pathlib import Path

from retort.engines import resolve
from retort.engines.openai import MOST_LISTED
from retort.errors import SpecError
from retort.spec import JobSpec
from retort.stages import teacher_requests
from retort.stages.engine_settings import engine_of, model_line, settings_of
from retort.stages.teachers import DIFFERENT, each_job
from retort.store import model_folder


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each thing that was checked and is well; raises `SpecError`."""
    lines = []
    for name, own in each_job(spec).items():
        lines += [f"teacher {name}: {line}" if name else line for line in _check(own)]
    _check_tokens(spec)
    return [*lines, *_costs(spec)]


def _costs(spec: JobSpec) -> list[str]:
    """Returns a line with what several teachers may cost together."""
    teachers = spec.generate.teachers
    costs = {name: own.spending.max_cost for name, own in teachers.items()}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    if len(known) < 2:
        return []
    each = ", ".join(f"{cost:g} for {name}" for name, cost in known.items())
    if known == costs and len(set(known.values())) == 1:
        each = f"{next(iter(known.values())):g} for each of {len(known)} teachers"
    return [f"generate.spending: max_cost {each}: {sum(known.values()):g} together"]


def _check_tokens(spec: JobSpec) -> None:
    """Raises `SpecError` where several teachers are to give signals of different tokens."""
    if len(spec.generate.teachers) < 2 or not spec.generate.top_k:
        return
    jobs = each_job(spec)
    if remote := [name for name, own in jobs.items() if engine_of(own).REMOTE]:
        raise SpecError(
            "generate.teachers: signals of several teachers need one known token map, and that of "
            f"a model behind an endpoint ({', '.join(remote)}) is not known; set generate.top_k: 0 "
            "to learn from their text alone"
        )
    folders = {
        name: model_folder.locate(own.generate.teacher, "generate.teacher")
        for name, own in jobs.items()
    }
    maps = {name: model_folder.token_map(folder)[0] for name, folder in folders.items()}
    if len(set(maps.values())) > 1:
        raise SpecError(f"generate.teachers: {DIFFERENT.format(', '.join(maps))}")


def _check(spec: JobSpec) -> list[str]:
    engine = engine_of(spec)
    teacher_requests.instruction_of(spec)
    route = spec.generate.route
    if spec.generate.mode == "score" and not engine.SCORES:
        who = f"route: all, in which teacher {route.order[0]} scores," if route else "mode: score"
        raise SpecError(
            f"generate.{who} needs the teacher's distribution of given text, which this "
            "engine does not give; use vllm or transformers"
        )
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(spec.generate, name) and not getattr(engine, "PENALTIES", True):
            raise SpecError(f"generate.{name}: this engine does not know it; set it to 0")
    name = f"engine {resolve(spec.generate.engine, spec.generate.top_k)} for the teacher"
    if engine.REMOTE:
        lines = [name, engine.check(settings_of(spec, ""))]
        if spec.generate.top_k > MOST_LISTED:
            lines.append(
                f"generate.top_k: {spec.generate.top_k}; an endpoint lists at most {MOST_LISTED} "
                f"log-probabilities a token, so {MOST_LISTED} are asked for"
            )
        return lines
    teacher = model_folder.check(spec.generate.teacher, "generate.teacher")
    _check_length(spec, teacher)
    return [name, model_line("generate.teacher", spec.generate.teacher, teacher)]


def _check_length(spec: JobSpec, teacher: Path) -> None:
    knobs, short = spec.generate, model_folder.short_length(teacher)
    is_vllm = resolve(knobs.engine, knobs.top_k) == "vllm"
    if short and knobs.top_k and is_vllm and (knobs.max_model_len or short + 1) > short:
        raise SpecError(
            f"generate.max_model_len: {knobs.max_model_len}; {teacher} has two sets of rope "
            f"factors, and above {short} vllm uses the long set for short chats too, which the "
            f"student does not: the signal would be off. Set it to at most {short}, use engine: "
            "transformers, or set generate.top_k: 0"
        )
