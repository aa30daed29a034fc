"""Everything that can fail later, checked now: spec, data, models, store, disk. Loads no model.

Called before every run and by `retort validate`.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from retort import asks, models, task_types
from retort.engines import resolve
from retort.errors import SpecError, StoreError
from retort.prepare import check_counts, read_rows
from retort.registry import check_function, find_file
from retort.spec import JobSpec
from retort.storage import Store, read_url

# fp32 weights and the two averages of AdamW in the checkpoint, and the student saved twice
BYTES_PER_PARAMETER = 12 + 2 * 4
MIN_FREE_BYTES = 200_000_000


def sources(spec: JobSpec) -> dict[str, str]:
    """Returns the digest of everything the spec points to, by the knob that points to it.

    Raises `SpecError` for a file or a model that is not there.
    """
    found: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        path = getattr(spec.prepare, split)
        found[f"prepare.{split}"] = _file_digest(path, f"prepare.{split}") if path else "none"
    found["generate.engine"] = resolve(spec.generate.engine, spec.generate.top_k)
    found["evaluate.engine"] = resolve(spec.evaluate.engine, 0)
    found["generate.teacher"] = asks.teacher_digest(spec)
    found["train.student"] = models.digest(spec.train.student, "train.student")
    return found


def check(spec: JobSpec, store: Store) -> list[str]:
    """Returns one line for each thing that was checked and is well.

    Raises `SpecError`, `DataError` or `StoreError` for the first that is not.
    """
    return [
        *_check_names(spec),
        *_check_models(spec),
        *_check_data(spec),
        *_check_store(spec, store),
    ]


def _check_names(spec: JobSpec) -> list[str]:
    find_file("task type", spec.prepare.task_type, task_types)
    for name in spec.curate.filters:
        check_function("filter", name, "retort.filters")
    for loss in spec.losses:
        check_function("loss", loss.name, "retort.losses")
    engine = resolve(spec.generate.engine, spec.generate.top_k)
    losses = " + ".join(f"{loss.weight:g} {loss.name}" for loss in spec.losses)
    return [
        f"task type {spec.prepare.task_type}",
        f"engine {engine} for the teacher, {resolve(spec.evaluate.engine, 0)} for the comparison",
        f"objective {losses}",
    ]


def _check_models(spec: JobSpec) -> list[str]:
    engine, lines = asks.engine_of(spec), []
    if spec.generate.mode == "score" and not engine.SCORES:
        raise SpecError(
            "generate.mode: score needs the teacher's distribution of given text, which this "
            "engine does not give; use vllm or transformers"
        )
    student = models.check(spec.train.student, "train.student")
    if engine.REMOTE:
        lines.append(engine.check(asks.settings_of(spec, "")))
    else:
        teacher = models.check(spec.generate.teacher, "generate.teacher")
        lines.append(_line("generate.teacher", spec.generate.teacher, teacher))
        _check_length(spec, teacher)
        if spec.uses_signal:
            _check_pair(spec, teacher, student)
            lines.append("teacher and student share their token map and chat template")
    return [*lines, _line("train.student", spec.train.student, student)]


def _check_length(spec: JobSpec, teacher: Path) -> None:
    knobs, short = spec.generate, models.short_length(teacher)
    is_vllm = resolve(knobs.engine, knobs.top_k) == "vllm"
    if short and knobs.top_k and is_vllm and (knobs.max_model_len or short + 1) > short:
        raise SpecError(
            f"generate.max_model_len: {knobs.max_model_len}; {teacher} has two sets of rope "
            f"factors, and above {short} vllm uses the long set for short chats too, which the "
            f"student does not: the signal would be off. Set it to at most {short}, use engine: "
            "transformers, or set generate.top_k: 0"
        )


def _line(key: str, model: str, folder: Path) -> str:
    return f"{key} {model}: {models.size(folder)['parameters']:,} parameters"


def _check_pair(spec: JobSpec, teacher: Path, student: Path) -> None:
    (teacher_map, size), (student_map, _) = models.token_map(teacher), models.token_map(student)
    way_out = (
        "the student cannot learn from the teacher's signal; set generate.top_k: 0 to learn from "
        "its text alone, or take a student of the same family"
    )
    if teacher_map != student_map:
        raise SpecError(f"{teacher} and {student} have different tokenizers, so {way_out}")
    if models.template_sha256(teacher) != models.template_sha256(student):
        raise SpecError(f"{teacher} and {student} have different chat templates, so {way_out}")
    if spec.generate.top_k >= size:
        raise SpecError(
            f"generate.top_k: {spec.generate.top_k} is not below the vocabulary's {size} tokens"
        )


def _check_data(spec: JobSpec) -> list[str]:
    examples, quarantined, read = read_rows(spec)
    check_counts(spec, examples, quarantined, read)
    lines = [
        f"prepare.{split} {getattr(spec.prepare, split)}: {len(rows):,} examples, "
        f"{sum(row.expected is not None for row in rows):,} with an expected answer"
        for split, rows in examples.items()
    ]
    if quarantined:
        first = quarantined[0]
        lines.append(
            f"{len(quarantined)} bad rows would be quarantined, the first: "
            f"{first.file}:{first.line}: {first.reason}"
        )
    return lines


def _check_store(spec: JobSpec, store: Store) -> list[str]:
    store.probe()
    if not store.is_local:
        return [f"store {store.uri}: can be written"]
    need = MIN_FREE_BYTES + BYTES_PER_PARAMETER * _parameters(spec)
    free = shutil.disk_usage(store.uri).free
    if free < need:
        raise StoreError(
            f"store {store.uri}: {free / 1e9:.1f} GB free, this job needs about {need / 1e9:.1f} "
            "GB; free some, or use --store on another disk"
        )
    return [f"store {store.uri}: can be written, {free / 1e9:.0f} GB free"]


def _parameters(spec: JobSpec) -> int:
    found: dict[str, Any] = models.size(models.locate(spec.train.student, "train.student"))
    return int(found["parameters"])


def _file_digest(path: str, where: str) -> str:
    try:
        return hashlib.sha256(read_url(path)).hexdigest()
    except FileNotFoundError:
        raise SpecError(f"{where}: no file {path}; paths are relative to the job file") from None
    except (OSError, ImportError, ValueError) as error:
        raise SpecError(f"{where}: {path} cannot be read: {error}") from error
