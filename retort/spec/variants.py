"""A job with other values of the knobs that its sweep tries, and which knobs may be tried."""

import json
import math
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from retort.errors import SpecError, did_you_mean
from retort.records import JsonObject
from retort.spec.job import JobSpec
from retort.spec.sweep import Range, Sweep

ASKS = "it would have the teacher asked again, and a sweep reads the answers that are stored"
OTHERS = "it changes nothing of what the student learns"
# Why a knob, or all those in it, cannot be tried.
REFUSED = {
    "prepare": ASKS,
    "generate": f"{ASKS}; train.top_k reads fewer of the stored log-probabilities",
    "curate.judge": "it would have another model asked",
    "curate.second_teacher": "it would have another model asked",
    "curate.min_kept": OTHERS,
    "train.student": "a sweep is about one base; run a job for each",
    "train.teacher": ASKS,
    "train.live_top_k": ASKS,
    "train.on_policy": ASKS,
    "train.controls": OTHERS,
    "train.runtime": OTHERS,
    "train.stop_after": "the rungs of the sweep set it",
    "train.cool_down": "the rungs of the sweep set it",
}
TRIED = ("train", "curate")
# Filters that have a model asked.
ASKING = ("judged", "teachers_agree")


def sweep_of(spec: JobSpec) -> Sweep:
    """Returns what a job's sweep tries. Raises `SpecError` where it has none."""
    if spec.sweep is None:
        raise SpecError(
            f"{spec.name}: the job file has no section sweep; say there what to try, such as "
            "sweep: {over: {train.learning_rate: {low: 1e-5, high: 1e-3, log: true}}}"
        )
    return spec.sweep


def variant(spec: JobSpec, values: JsonObject) -> JobSpec:
    """Returns the job with other values of some knobs, by their paths. It sweeps nothing.

    Raises `SpecError` where it is no valid job.
    """
    raw = spec.model_dump(mode="json", exclude_unset=True)
    raw.pop("sweep", None)
    if any(path.startswith("train.losses.") for path in values):
        raw["train"]["losses"] = [loss.model_dump(mode="json") for loss in spec.losses]
    for path, value in values.items():
        _put(raw, path, value)
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        said = error.errors()[0]
        where = ".".join(str(part) for part in said["loc"])
        reason = f"{where}: {said['msg']}".removeprefix(": ").replace("Value error, ", "")
        shown = ", ".join(f"{path}: {json.dumps(value)}" for path, value in values.items())
        raise SpecError(f"sweep.over: with {shown} the job is not valid: {reason}") from None


def value_of(spec: JobSpec, path: str) -> Any:
    """Returns the value of a knob of a job; None where what holds it is not set."""
    at: Any = spec.model_dump(mode="json")
    at["train"]["losses"] = [loss.model_dump(mode="json") for loss in spec.losses]
    for part in path.split("."):
        if isinstance(at, list):
            at = at[int(part)] if int(part) < len(at) else None
        else:
            at = at.get(part) if isinstance(at, dict) else None
    return at


def is_whole(path: str) -> bool:
    """Whether a knob takes whole numbers alone."""
    kinds = _annotation(path)
    return int in kinds and float not in kinds


def check(spec: JobSpec) -> list[JobSpec]:
    """Returns the job with each value that its sweep tries, one at a time.

    Raises `SpecError` for what cannot be tried without asking a teacher, and for values with which
    the job would be none.
    """
    if spec.sweep is None:
        return []
    if spec.is_live or spec.train.on_policy:
        cause = "train.on_policy" if spec.train.on_policy else "train.teacher: live"
        raise SpecError(
            f"sweep: {cause} has the teacher asked in every training; take it out for the sweep, "
            "and add it to the winner"
        )
    if spec.train.stop_after:
        raise SpecError(
            "sweep: train.stop_after ends every training early, and the rungs of the sweep set it; "
            "take it out"
        )
    if not spec.prepare.has("validation"):
        raise SpecError(
            "sweep: the trials are compared by the validation examples, and there are none; set "
            "prepare.validation_ratio: 0.1, or name rows in prepare.validation"
        )
    found = []
    for path, values in spec.sweep.over.items():
        _check_path(path)
        bounds = values
        if isinstance(values, Range):
            if not {int, float} & _annotation(path):
                raise SpecError(f"sweep.over.{path}: takes no range; list its values")
            bounds = (values.low, values.high)
            if is_whole(path):
                bounds = (math.ceil(values.low), math.floor(values.high))
            if bounds[0] > bounds[1]:
                raise SpecError(f"sweep.over.{path}: no whole number is in the range")
        for value in bounds:
            tried = variant(spec, {path: value})
            _check_variant(path, tried)
            found.append(tried)
    return found


def _check_path(path: str) -> None:
    section = path.partition(".")[0]
    for refused, reason in REFUSED.items():
        if path == refused or path.startswith(f"{refused}."):
            raise SpecError(f"sweep.over.{path}: cannot be tried: {reason}")
    if section not in TRIED and section in JobSpec.model_fields:
        raise SpecError(f"sweep.over.{path}: cannot be tried: {OTHERS}")
    _annotation(path)


def _check_variant(path: str, tried: JobSpec) -> None:
    if tried.is_live:
        raise SpecError(f"sweep.over.{path}: cannot be tried: {ASKS}")
    names = [chosen.name for chosen in tried.curate.filters if chosen.name in ASKING]
    if path.startswith("curate.filters") and names:
        raise SpecError(
            f"sweep.over.{path}: {names[0]} cannot be tried: it would have another model asked"
        )


def _annotation(path: str) -> set[Any]:
    """Returns the types of a knob's values. Raises `SpecError` for a knob that does not exist."""
    model: Any = JobSpec
    kinds: tuple[Any, ...] = ()
    for part in path.split("."):
        if part.isdigit() and kinds:  # a place in a list
            continue
        fields = model.model_fields if model else {}
        if part not in fields:
            if model and model.model_config.get("extra") == "allow":  # an option of a function
                return {int, float, str}
            allowed = sorted(fields)
            raise SpecError(
                f"sweep.over.{path}: there is no such knob{did_you_mean(part, allowed)}; "
                "`retort schema` shows all"
            )
        annotation = fields[part].annotation
        kinds = (annotation, *get_args(annotation))
        found = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        model = found[0] if found else None
    return {kind for kind in kinds if isinstance(kind, type)}


def _put(raw: JsonObject, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    at: Any = raw
    for part in parents:
        if isinstance(at, list):
            at = _item(at, part, path)
            continue
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
    if isinstance(at, list):
        _item(at, last, path)
        at[int(last)] = value
    else:
        at[last] = value


def _item(items: list[Any], place: str, path: str) -> Any:
    if not place.isdigit() or int(place) >= len(items):
        raise SpecError(
            f"sweep.over.{path}: there is no place {place} in this list, which has {len(items)}; "
            "they are counted from 0"
        )
    return items[int(place)]
