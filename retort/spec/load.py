"""From a job file and the options of the command line to a JobSpec, with errors one can act on."""

import copy
import difflib
import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from retort.errors import SpecError, did_you_mean
from retort.records import JsonObject
from retort.spec import azure, catalogue, documents, flat
from retort.spec.flat import Expansion, mapping
from retort.spec.job import JobSpec
from retort.spec.teachers import shared_knobs

# Values that may be paths relative to the job file. A model may also be a hub id, or its name at
# an endpoint.
DATA_PATHS = (
    ("prepare", "train"),
    ("prepare", "validation"),
    ("prepare", "test"),
    ("prepare", "decontaminate", "against"),
    ("evaluate", "graders", "file"),
)
MODEL_PATHS = (
    ("generate", "teacher"),
    ("train", "student"),
    ("expand", "writer", "model"),
    ("curate", "judge", "model"),
    ("curate", "second_teacher", "model"),
    ("evaluate", "judge", "model"),
    ("evaluate", "graders", "judge", "model"),
)
# Where a model at an endpoint is.
ADDRESS = ("engine", "endpoint", "api_key_env")
# The variable that names a folder of models; jobs name them by their folders or hub ids.
MODELS_FOLDER = "RETORT_MODELS_FOLDER"
MAX_SHOWN = 200  # characters of a value in a message
# The type in the job file of each form of a source of rows, of a student, or of what a sweep tries,
# by pydantic's name; a source of traffic is a dict as well.
FORMS: dict[str, type] = {
    "str": str,
    "tuple[str, ...]": list,
    "HubDataset": dict,
    "Student": dict,
    "Traffic": dict,
    "tuple[any, ...]": list,
    "Range": dict,
}


def load(
    path: str | Path,
    overrides: list[str] | None = None,
    teacher: str | None = None,
    student: str | None = None,
) -> tuple[JobSpec, list[str]]:
    """Returns the spec of a job file in any of its forms, and notes on how its values were read.

    Relative paths in the file and in overrides are relative to the file; `teacher` and `student`,
    which replace the file's, are relative to the working directory. A teacher that is a URL is an
    endpoint. Raises `SpecError` with the key, the value, what is allowed and, for a name, the
    nearest known one.
    """
    path = Path(path)
    made = _expand(_read(path), teacher, student)
    if teacher:
        _use_teacher(made, teacher)
    if student:
        mapping(made.sections.setdefault("train", {}), "train")["student"] = _here(student)
        made.names["train.student"] = "--student"
    for override in overrides or []:
        _override(made, override)
    _anchor(made, path.resolve().parent)
    return build(made.sections, str(path), made.names), made.notes


def build_at(raw: JsonObject, folder: Path) -> JobSpec:
    """Returns the spec of a mapping in any form of a job; its paths are relative to a folder.

    Raises `SpecError` as `load` does.
    """
    made = _expand(copy.deepcopy(raw), None, None)
    _anchor(made, folder)
    return build(made.sections, "job", made.names)


def build(raw: JsonObject, where: str = "spec", names: dict[str, str] | None = None) -> JobSpec:
    """Returns the spec of a mapping. Raises `SpecError` that lists every mistake in it.

    `names` are the keys as the user wrote them, if they differ from ours, by ours.
    """
    made = _expand(raw, None, None)
    try:
        return JobSpec.model_validate(made.sections)
    except ValidationError as error:
        meant = [item for item in error.errors() if _is_meant(item, made.sections)]
        written = {**made.names, **(names or {})}
        lines = [f"  {_explain(item, written)}" for item in meant or error.errors()]
        raise SpecError(f"{where} is not a valid job:\n" + "\n".join(lines)) from None


def _expand(raw: JsonObject, teacher: str | None, student: str | None) -> Expansion:
    if azure.is_azure(raw):
        return azure.expand(raw, teacher, student)
    return flat.expand(raw) if flat.is_flat(raw) else Expansion(raw, [], {})


def _read(path: Path) -> JsonObject:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"no job file at {path}; give the path of a YAML job spec") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    raw = documents.parse(text, str(path), is_json=path.suffix.lower() == ".json")
    if not isinstance(raw, dict):
        raise SpecError(f"{path} must be a mapping of sections, it is a {type(raw).__name__}")
    return raw


def _override(made: Expansion, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"--set {text}: write it as section.key=value")
    *parents, last = key.strip().split(".")
    at: Any = made.sections
    for parent in parents:
        at = at.setdefault(parent, {}) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        raise SpecError(f"--set {text}: '{key}' does not lead to a knob; see `retort schema`")
    at[last] = documents.parse(value, f"--set {text}: the value")
    made.names.pop(key.strip(), None)


def _use_teacher(made: Expansion, teacher: str) -> None:
    """Sets the teacher of the command line: an endpoint, a folder on this machine or a hub id.

    The job's own key belongs to another endpoint and is not sent to this one.
    """
    knobs = mapping(made.sections.setdefault("generate", {}), "generate")
    is_remote = bool(knobs.pop("endpoint", None)) or knobs.get("engine") in azure.REMOTE
    knobs.pop("api_key_env", None)
    if azure.is_url(teacher):
        knobs |= {"endpoint": azure.chat_endpoint(teacher), "top_k": 0}
        knobs["engine"] = knobs["engine"] if knobs.get("engine") in azure.REMOTE else "openai"
        made.names["generate.endpoint"] = "--teacher"
        if azure.has_own_key():
            knobs["api_key_env"] = azure.KEY_ENV
        sent = "is sent there" if azure.has_own_key() else "would be sent there if it were set"
        made.notes.append(f"--teacher is generate.endpoint; the key in {azure.KEY_ENV} {sent}")
        return
    if is_remote:
        knobs["engine"] = "auto"
    knobs["teacher"] = _here(teacher)
    made.names["generate.teacher"] = "--teacher"


def _here(model: str) -> str:
    """Returns a folder named on the command line as an absolute path; a hub id unchanged."""
    path = _whole(Path(), model)
    is_path = path.exists() or model.startswith((".", "/", "~"))
    return str(path.resolve()) if is_path else model


def _anchor(made: Expansion, folder: Path) -> None:
    """Makes the paths of a job absolute, except those of the command line, which are already."""
    for *parents, key in (*DATA_PATHS, *MODEL_PATHS, *_teachers(made.sections)):
        holder: Any = made.sections
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or key not in holder:
            continue
        if parents[1:2] == ["teachers"]:  # what it does not set is the section's
            shared = shared_knobs(made.sections["generate"], holder)
            holder |= {k: shared[k] for k in ADDRESS if k in shared and k not in holder}
        if (*parents, key) in DATA_PATHS:
            holder[key] = _data(holder[key], folder)
            continue
        where = ".".join((*parents, key))
        if note := catalogue.resolve(holder, key, where, folder):
            made.notes.append(note)
        if parents[1:2] == ["teachers"] and "top_k" in holder:  # it is the section's
            made.sections["generate"].setdefault("top_k", holder.pop("top_k"))
        if (engine := holder.get("engine")) in azure.REMOTE and not holder.get("endpoint"):
            _use_base_url(made, holder, f"{engine}".upper() + "_BASE_URL", ".".join(parents))
        if made.names.get(f"{parents[-1]}.{key}") not in ("--teacher", "--student"):
            is_remote = holder.get("endpoint") or holder.get("engine") in azure.REMOTE
            holder[key] = holder[key] if is_remote else _model(holder[key], folder)
    curate = made.sections.get("curate")
    filters = curate.get("filters") if isinstance(curate, dict) else None
    for chosen in filters if isinstance(filters, list) else []:
        if isinstance(chosen, dict):
            chosen |= {k: _data(v, folder) for k, v in chosen.items() if k.endswith("_file")}


def _teachers(sections: JsonObject) -> list[tuple[str, ...]]:
    """Returns the knobs that name one of several teachers."""
    generate = sections.get("generate")
    teachers = generate.get("teachers") if isinstance(generate, dict) else None
    named = teachers if isinstance(teachers, dict) else {}
    return [("generate", "teachers", name, "teacher") for name in named]


def _use_base_url(made: Expansion, holder: JsonObject, variable: str, section: str) -> None:
    """Sets the endpoint that the providers' own clients take from the environment, too."""
    if url := os.environ.get(variable):
        holder["endpoint"] = url
        made.notes.append(f"{section}.endpoint is {azure.shown(url)}, from {variable}")


def _data(value: Any, folder: Path) -> Any:
    """Returns a source of rows with absolute paths: a path, a list, a dataset or traffic."""
    if isinstance(value, list):
        return [_data(item, folder) for item in value]
    if isinstance(value, dict) and "dataset" in value:
        return {**value, "dataset": _model(value["dataset"], folder)}
    if isinstance(value, dict) and "traffic" in value:
        return {**value, "traffic": _data(value["traffic"], folder)}
    if not isinstance(value, str) or "://" in value:
        return value
    return str(_whole(folder, value).resolve())


def _whole(folder: Path, value: str) -> Path:
    """Returns a path relative to a folder, or an absolute one. Raises `SpecError` for no path."""
    try:
        path = folder / Path(value).expanduser()
        path.resolve().exists()
    except (ValueError, RuntimeError, OSError) as error:  # a zero byte, ~nobody, too long a name
        raise SpecError(f"{value[:80]!r} is no path: {error}") from None
    return path


def _model(value: Any, folder: Path) -> Any:
    """Returns an absolute path if the value is a path, beside the job or in the folder of models;
    and a hub id unchanged."""
    if not isinstance(value, str) or "://" in value:
        return value
    beside = _whole(folder, value)
    if beside.exists() or value.startswith((".", "~", "models/")):
        return str(beside.resolve())
    for name in (value, value.rpartition("/")[2]):
        kept = Path(os.environ.get(MODELS_FOLDER) or os.devnull) / name
        if kept.is_dir():
            return str(kept.resolve())
    return value


def _is_meant(item: Any, raw: Any) -> bool:
    """Whether an error is about the form that a value has, where there are several."""
    at = raw
    for part in item["loc"]:
        if part in FORMS:
            is_traffic = isinstance(at, dict) and "traffic" in at
            if part in ("HubDataset", "Traffic") and is_traffic != (part == "Traffic"):
                return False
            return FORMS[part] is (type(at) if type(at) in FORMS.values() else str)
        try:
            at = at[part]
        except (LookupError, TypeError):
            return True
    return True


def _explain(item: Any, names: dict[str, str]) -> str:
    location = tuple(part for part in item["loc"] if part not in FORMS)
    where = _named(location, names)
    if item["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(location[:-1]))
        hint = did_you_mean(str(location[-1]), allowed)
        return f"{where}: unknown key{hint}; allowed: {', '.join(allowed)}"
    value = item.get("input")
    if item["type"] == "missing":
        written = [key for key in value or () if isinstance(key, str)]
        near = difflib.get_close_matches(str(location[-1]), written, n=1)
        hint = f"; '{near[0]}' is not '{location[-1]}'" if near else ""
        return f"{where}: missing, and it has no default{hint}; see `retort schema`"
    if location[-1:] == ("api_key_env",):
        return f"{where}: give the name of an environment variable, such as TEACHER_API_KEY"
    # Neither a whole section nor an address is shown: it may hold a secret.
    is_secret = isinstance(value, dict) or location[-1:] == ("endpoint",)
    shown = "" if is_secret else f" (it is {_shown(value)})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}{_hint(item, value)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def _hint(item: Any, value: Any) -> str:
    """Returns what to do about a word that YAML does not take for what its writer meant."""
    if item["type"] == "string_type" and isinstance(value, bool | int | float | date):
        return "; YAML takes it for another kind of value: put it in quotes to make it a text"
    if item["type"].endswith("_parsing") and re.fullmatch(r"\d+(:\d+)+", str(value)):
        return "; write one number, such as seconds; only a text may be written so, in quotes"
    return ""


def _named(location: tuple[Any, ...], names: dict[str, str]) -> str:
    """Returns the key of an error as the user wrote it, with ours if that is another."""
    ours = ".".join(str(part) for part in location) or "spec"
    for length in range(len(location), 0, -1):
        theirs = names.get(".".join(str(part) for part in location[:length]))
        if theirs:
            return ours if theirs == ours else f"{theirs} ({ours})"
    return ours


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = JobSpec
    for part in location:
        if part not in model.model_fields:  # a place in a list, or one of several teachers
            continue
        annotation = model.model_fields[part].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
