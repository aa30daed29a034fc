"""Everything that can fail later, checked now: spec, data, models, store, disk. Loads no model.

Called before every run and by `retort validate`.
"""

import shutil
from pathlib import Path
from typing import Any

from retort.data import sources as data
from retort.data import task_types
from retort.data.filters import candidate
from retort.engines import find_engine, resolve
from retort.errors import SpecError, StoreError
from retort.jobs import devices
from retort.plugins import check_function, check_options, source_digest
from retort.processes import nodes
from retort.records import SPLITS, sha256_of
from retort.spec import Asked, JobSpec
from retort.stages import teacher_requests
from retort.stages.judge import as_teacher
from retort.stages.prepare.rows import Reader, preview
from retort.store import Store, model_folder

# fp32 weights and the two averages of AdamW in the checkpoint, and the student saved twice
BYTES_PER_PARAMETER = 12 + 2 * 4
BYTES_PER_PARAMETER_OF_CONTROL = 4
MIN_FREE_BYTES = 200_000_000
# Rows of each file that are looked at before a run; prepare reads them all.
PREVIEW_ROWS = 10_000


def sources(spec: JobSpec) -> dict[str, str]:
    """Returns the digest of everything the spec points to, by the knob that points to it.

    Raises `SpecError` for a file or a model that is not there.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        source, where = getattr(spec.prepare, split), f"prepare.{split}"
        found[where] = data.digest(source, where) if source is not None else "none"
    if against := spec.prepare.decontaminate.against:
        where = "prepare.decontaminate.against"
        found[where] = data.digest(against, where)
    for stage, names in _plug_ins(spec).items():
        digests = {name: source_digest(name) for name in names if ":" in name or "." in name}
        digests |= _filter_files(spec) if stage == "curate" else {}
        if digests:
            found[f"{stage}.plug_ins"] = sha256_of(digests)
    for where, who in spec.asked.items():
        engine = resolve(who.engine, 0)
        model = teacher_requests.model_digest(find_engine(engine), who.model, who.endpoint, where)
        found[where] = f"{engine}: {model}"
    found["generate.engine"] = resolve(spec.generate.engine, spec.generate.top_k)
    found["evaluate.engine"] = resolve(spec.evaluate.engine, 0)
    found["generate.teacher"] = teacher_requests.teacher_digest(spec)
    found["train.student"] = model_folder.digest(spec.train.student, "train.student")
    return found


def _plug_ins(spec: JobSpec) -> dict[str, list[str]]:
    """Returns the names of all plug-ins of a job by the stage whose result they decide."""
    return {
        "prepare": [spec.prepare.task_type, spec.prepare.format, *spec.prepare.scrub],
        "curate": [spec.prepare.task_type, *(chosen.name for chosen in spec.curate.filters)],
        "train": [loss.name for loss in spec.losses],
        "evaluate": [spec.prepare.task_type, *spec.evaluate.metrics],
    }


def _filter_files(spec: JobSpec) -> dict[str, str]:
    """Returns the digest of each file that an option of a filter names: those ending in _file."""
    return {
        f"{chosen.name}.{option}": data.digest(path, f"curate.filters {chosen.name}.{option}")
        for chosen in spec.curate.filters
        for option, path in chosen.options.items()
        if option.endswith("_file") and path
    }


def check(spec: JobSpec, store: Store) -> list[str]:
    """Returns one line for each thing that was checked and is well.

    Raises `SpecError`, `DataError` or `StoreError` for the first that is not.
    """
    return [
        *_check_names(spec),
        *_check_models(spec),
        *_check_data(spec),
        *_check_store(spec, store),
        *_check_nodes(spec, store),
    ]


def _check_names(spec: JobSpec) -> list[str]:
    task_types.load(spec.prepare.task_type)
    teacher_requests.instruction_of(spec)
    for name in spec.prepare.scrub:
        check_function("scrubber", name, "retort.data.scrubbers")
    if spec.prepare.format != "auto":
        check_function("format", spec.prepare.format, "retort.data.formats")
    for chosen in spec.curate.filters:
        candidate.check(chosen.name, chosen.options)
    for loss in spec.losses:
        check_function("loss", loss.name, "retort.losses")
        own = type(loss).model_fields
        check_options("loss", loss.name, "retort.losses", loss.options, own)
    for name in spec.evaluate.metrics:
        check_function("metric", name, "retort.metrics")
    engine = resolve(spec.generate.engine, spec.generate.top_k)
    losses = " + ".join(f"{loss.weight:g} {loss.name}" for loss in spec.losses)
    return [
        f"task type {spec.prepare.task_type}",
        f"engine {engine} for the teacher, {resolve(spec.evaluate.engine, 0)} for the comparison",
        f"objective {losses}",
    ]


def _check_models(spec: JobSpec) -> list[str]:
    engine, lines = teacher_requests.engine_of(spec), []
    if spec.generate.mode == "score" and not engine.SCORES:
        raise SpecError(
            "generate.mode: score needs the teacher's distribution of given text, which this "
            "engine does not give; use vllm or transformers"
        )
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(spec.generate, name) and not getattr(engine, "PENALTIES", True):
            raise SpecError(f"generate.{name}: this engine does not know it; set it to 0")
    if spec.is_live:
        lines.append(_check_live(spec))
    student = model_folder.check(spec.train.student, "train.student")
    if engine.REMOTE:
        lines.append(engine.check(teacher_requests.settings_of(spec, "")))
    else:
        teacher = model_folder.check(spec.generate.teacher, "generate.teacher")
        lines.append(_line("generate.teacher", spec.generate.teacher, teacher))
        _check_length(spec, teacher)
        if spec.distils:
            _check_pair(spec, teacher, student)
            lines.append("teacher and student share their token map and chat template")
    lines += [_check_asked(spec, where, who) for where, who in spec.asked.items()]
    lines += devices.check(spec)
    return [*lines, _line("train.student", spec.train.student, student)]


def _check_live(spec: JobSpec) -> str:
    """Returns a line on the teacher that is asked while the student learns."""
    from retort.stages.train.endpoint_teacher import is_remote

    if is_remote(spec):
        where = f"its endpoint, {spec.train.live_top_k} log-probabilities a token"
    else:
        where = "memory beside it"
    return f"train.teacher: live; the teacher is asked while the student learns, in {where}"


def _check_asked(spec: JobSpec, where: str, who: Asked) -> str:
    """Returns a line on a further model that is asked."""
    engine = find_engine(resolve(who.engine, 0))
    if engine.REMOTE:
        return f"{where}: {engine.check(teacher_requests.settings_of(as_teacher(spec, who), ''))}"
    return _line(where, who.model, model_folder.check(who.model, where))


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


def _line(key: str, model: str, folder: Path) -> str:
    return f"{key} {model}: {model_folder.size(folder)['parameters']:,} parameters"


def _check_pair(spec: JobSpec, teacher: Path, student: Path) -> None:
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


def _check_data(spec: JobSpec) -> list[str]:
    counts, recognised, longer = preview(spec, PREVIEW_ROWS)
    _check_labels(spec)
    _check_gold(spec)
    lines = []
    for split in SPLITS:
        if spec.prepare.has(split):
            origin = data.describe(getattr(spec.prepare, split) or spec.prepare.train)
            some = f" of the first {PREVIEW_ROWS:,}" if split in longer else ""
            lines.append(
                f"prepare.{split} {origin}: {counts.examples[split]:,} good rows{some}, "
                f"{counts.expected[split]:,} with an expected answer"
            )
    forms = ", ".join(f"{count:,} as {form}" for form, count in recognised.most_common())
    lines.append(f"rows recognised: {forms}")
    if counts.num_bad:
        lines.append(
            f"{counts.num_bad} bad rows would be quarantined, the first: {counts.first_bad}"
        )
    return lines


def _check_labels(spec: JobSpec) -> None:
    """Raises `SpecError` when labels are to be learned but no train row has any.

    It reads up to the first row that has, so all rows only where it refuses.
    """
    if all(loss.name != "label_distribution" for loss in spec.losses):
        return
    found = (r.example for r in Reader(spec).rows() if r.split == "train" and r.example)
    if not any(example.options for example in found):
        raise SpecError(
            "train.losses: label_distribution learns which answer of a closed set the teacher "
            f"prefers, but no train row of task type {spec.prepare.task_type} has such a set. It "
            "is for nli, and for qa where rows have choices or prepare.labels says which answers "
            "there are; set those, or name another loss"
        )


def _check_gold(spec: JobSpec) -> None:
    """Raises `SpecError` when the control gold has no train row's own answer to learn.

    It reads up to the first row that has one. Where the teacher answers turn by turn, a row of
    several turns is not learned: its own answer follows its own replies, not the teacher's.
    """
    if "gold" not in spec.controls:
        return
    turns, is_chat = spec.generate.turns, spec.prepare.task_type == "conversation"
    by_turn = turns == "all" or (turns == "auto" and is_chat)
    for example in (r.example for r in Reader(spec).rows() if r.split == "train"):
        if example is None or (example.reference is None and example.expected is None):
            continue
        roles = [message["role"] for message in example.messages]
        replied = "tool" not in roles and "assistant" in roles[roles.index("user") :]
        if not (by_turn and replied):
            return
    raise SpecError(
        "train.controls: gold learns the rows' own answers, but no train row has one"
        f"{' after a single turn' if by_turn else ''}; give the rows answers, or take gold out of "
        "train.controls"
    )


def _check_store(spec: JobSpec, store: Store) -> list[str]:
    store.probe()
    if not store.is_local:
        return [f"store {store.uri}: can be written"]
    each = BYTES_PER_PARAMETER + BYTES_PER_PARAMETER_OF_CONTROL * len(spec.controls)
    need = MIN_FREE_BYTES + each * _parameters(spec)
    free = shutil.disk_usage(store.uri).free
    if free < need:
        raise StoreError(
            f"store {store.uri}: {free / 1e9:.1f} GB free, this job needs about {need / 1e9:.1f} "
            "GB; free some, or use --store on another disk"
        )
    return [f"store {store.uri}: can be written, {free / 1e9:.0f} GB free"]


def _check_nodes(spec: JobSpec, store: Store) -> list[str]:
    """Returns a line where the student trains on several machines. Raises `SpecError` where these
    could not meet."""
    from retort.stages.train.layout import layout_of

    layout = layout_of(spec.train)
    if layout.num_nodes == 1:
        return []
    port = nodes.endpoint()[1]
    line = (
        f"train.runtime.num_nodes: {layout.num_nodes}; the other {layout.num_nodes - 1}, with "
        f"`retort node`, will be waited for at port {port}"
    )
    where = f", each with {store.uri} as a folder that all share" if store.is_local else ""
    return [line + where]


def _parameters(spec: JobSpec) -> int:
    found: dict[str, Any] = model_folder.size(
        model_folder.locate(spec.train.student, "train.student")
    )
    return int(found["parameters"])
