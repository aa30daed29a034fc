"""From a YAML file and --set overrides to a JobSpec, with errors that a person can act on."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from retort.errors import SpecError, did_you_mean
from retort.spec.flat import expand, is_flat
from retort.spec.job import JobSpec

# Values that may be paths relative to the job file. A model may also be a hub id.
DATA_PATHS = (("prepare", "train"), ("prepare", "validation"), ("prepare", "test"))
MODEL_PATHS = (("generate", "teacher"), ("train", "student"))


def load(path: str | Path, overrides: list[str] | None = None) -> tuple[JobSpec, list[str]]:
    """Returns the spec of a job file, and notes on what a shorthand became.

    Relative paths in the file are relative to the file. Raises `SpecError` in one message that
    names the key, the value, what is allowed and, for a name, the nearest one.
    """
    path = Path(path)
    raw = _read_yaml(path)
    raw, notes = expand(raw) if is_flat(raw) else (raw, [])
    for override in overrides or []:
        _override(raw, override)
    _anchor(raw, path.resolve().parent)
    return build(raw, str(path)), notes


def build(raw: dict[str, Any], where: str = "spec") -> JobSpec:
    """Returns the spec of a mapping. Raises `SpecError` that lists every mistake in it."""
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {_explain(item, raw)}" for item in error.errors()]
        raise SpecError(f"{where} is not a valid job:\n" + "\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"no job file at {path}; give the path of a YAML job spec") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path} must be a mapping of sections, it is a {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"--set {text}: write it as section.key=value")
    *parents, last = key.strip().split(".")
    at: Any = raw
    for parent in parents:
        at = at.setdefault(parent, {}) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        raise SpecError(f"--set {text}: '{key}' does not lead to a knob; see `retort schema`")
    at[last] = yaml.safe_load(value)


def _anchor(raw: dict[str, Any], folder: Path) -> None:
    for section, key in DATA_PATHS + MODEL_PATHS:
        holder = raw.get(section)
        value = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(value, str) or "://" in value or Path(value).is_absolute():
            continue
        beside = (folder / value).resolve()
        is_data = (section, key) in DATA_PATHS
        if is_data or beside.exists() or value.startswith((".", "models/")):
            holder[key] = str(beside)  # type: ignore[index]


def _explain(item: Any, raw: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "spec"
    if item["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(item["loc"][:-1]))
        name = str(item["loc"][-1])
        hint = did_you_mean(name, allowed)
        return f"{where}: unknown key{hint}; allowed: {', '.join(allowed)}"
    if item["type"] == "missing":
        return f"{where}: missing, and it has no default; see `retort schema`"
    value = item.get("input")
    if item["loc"][-1:] == ("api_key_env",):
        return f"{where}: give the name of an environment variable, such as TEACHER_API_KEY"
    shown = f" (it is {json.dumps(value, default=str)})" if item["loc"] else ""
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = JobSpec
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)]
        model = inner[0] if inner else annotation
    return list(model.model_fields) if issubclass(model, BaseModel) else []
