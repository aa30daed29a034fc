"""The Azure ML job file (`type: distillation`), accepted unchanged, as the same spec.

The surprise: the file may hold the teacher's key. It goes into this process's environment and
nowhere else, neither into the spec nor into a sentence.
"""

import os
import re
from importlib.metadata import entry_points
from typing import Any

from retort.errors import SpecError, did_you_mean
from retort.spec.azure_keys import CONNECTION_KEYS, HUB_IDS, IGNORED, READ, SETTINGS, TASK_TYPES
from retort.spec.flat import Expansion, mapping, number, place, put, refuse_unknown
from retort.spec.train import Train

KEY_ENV = "RETORT_TEACHER_API_KEY"
NO_KEYS = ("", "EXAMPLE_API_KEY")
CONNECTION = "teacher_model_endpoint_connection"
REMOTE = ("openai", "anthropic")  # engines whose model is a name at an endpoint
CHAT_PATH = "/chat/completions"
FITS = {
    "chain_of_thought": "all tasks but summarization; set enable_chain_of_density there",
    "chain_of_density": "summarization alone; set it to false",
}
_taken_from_files: set[str] = set()


def is_azure(raw: dict[str, Any]) -> bool:
    """Whether a mapping is an Azure ML distillation job."""
    return str(raw.get("type")).lower() == "distillation"


def is_url(model: str) -> bool:
    """Whether a model given on the command line is the address of an endpoint."""
    return model.lower().startswith(("http://", "https://"))


def chat_endpoint(url: str) -> str:
    """Returns the endpoint that engine openai is given: without the path of its chats."""
    return url.rstrip("/").removesuffix(CHAT_PATH)


def expand(raw: dict[str, Any], teacher: str | None, student: str | None) -> Expansion:
    """Returns the job file as our sections, and one sentence for each value: what it became.

    `teacher` and `student` are those of the command line: what the file says of them need not be
    usable then. A real key is put into the environment. Raises `SpecError`.
    """
    made = Expansion({}, [], {})
    refuse_unknown(raw, (*READ, *IGNORED), "")
    _task_type(made, raw)
    for key, ours in (
        ("training_data", "prepare.train"),
        ("validation_data", "prepare.validation"),
    ):
        place(made, ours, key, _data_path(key, raw.get(key)))
    _teacher(made, raw, teacher)
    _student(made, raw.get("student_model"), student)
    for section in SETTINGS:
        _settings(made, raw, section)
    _signal(made)
    _names(made, raw)
    for key in (key for key in raw if key in IGNORED):
        made.notes.append(f"{key}: accepted, it changes nothing here")
    return made


def _task_type(made: Expansion, raw: dict[str, Any]) -> None:
    what = str(_required(raw, "data_generation_type")).lower()
    if what == "data_generation":
        raise SpecError(
            "data_generation_type: data_generation was declared there and never built; here the "
            "rows bring the questions: give them in training_data, without answers, and set "
            "data_generation_type: label_generation"
        )
    if what != "label_generation":
        raise SpecError(f"data_generation_type: {what}; allowed: label_generation")
    made.notes.append("data_generation_type: label_generation, the teacher answers every row")
    task = str(_required(raw, "data_generation_task_type"))
    if task.lower() not in TASK_TYPES:
        raise SpecError(
            f"data_generation_task_type: {task}{did_you_mean(task.lower(), TASK_TYPES)}; "
            f"allowed: {', '.join(TASK_TYPES)}"
        )
    ours = TASK_TYPES[task.lower()]
    note = f"data_generation_task_type: {task} is prepare.task_type {ours}"
    place(made, "prepare.task_type", "data_generation_task_type", ours, note)


def _data_path(key: str, given: Any) -> str:
    """Returns the path or URL of a data input. Raises `SpecError` where it leads nowhere."""
    if isinstance(given, dict):
        refuse_unknown(given, ("type", "path", "mode"), f"{key}.")
        kind, given = given.get("type", "uri_file"), given.get("path")
        if kind not in ("uri_file", "uri_folder"):
            raise SpecError(f"{key}.type: {kind}; allowed: uri_file, uri_folder")
    if not isinstance(given, str) or not given.strip():
        raise SpecError(f"{key}: missing; give {{type: uri_file, path: rows.jsonl}}")
    path = given.strip()
    readable = {entry.name for entry in entry_points(group="fsspec.specs")}
    if path.startswith("azureml:") and not (
        path.startswith("azureml://") and "azureml" in readable
    ):
        install = ", or install azureml-fsspec" if path.startswith("azureml://") else ""
        raise SpecError(
            f"{key}: {path} is data of an Azure workspace, which is not read from here; download "
            f"it and give the path of the file, or give its az:// or abfs:// address{install}"
        )
    return path.removeprefix("file:") if not path.startswith("file://") else path


def _teacher(made: Expansion, raw: dict[str, Any], teacher: str | None) -> None:
    """Reads the connection: a name, an endpoint and a key, unless --teacher says otherwise."""
    given = mapping(raw.get(CONNECTION), CONNECTION)
    refuse_unknown(given, CONNECTION_KEYS, f"{CONNECTION}.")
    if teacher and not is_url(teacher):
        made.notes.append(f"{CONNECTION} is not asked: --teacher says who is")
        return
    kind = given.get("type", "serverless")
    if kind != "serverless":
        raise SpecError(f"{CONNECTION}.type: {kind}; allowed: serverless (or use --teacher)")
    name = _required(given, "name", f"{CONNECTION}.")
    place(made, "generate.teacher", f"{CONNECTION}.name", name)
    note = f"{CONNECTION}.type: {kind} is generate.engine openai"
    place(made, "generate.engine", f"{CONNECTION}.type", "openai", note)
    if teacher:
        made.notes.append(f"{CONNECTION}: its endpoint is not asked and its key not sent")
        return
    url = chat_endpoint(str(_required(given, "endpoint", f"{CONNECTION}.")))
    shown = url.rpartition("@")[2].partition("?")[0]
    note = f"{CONNECTION}.endpoint is generate.endpoint: {shown}"
    place(made, "generate.endpoint", f"{CONNECTION}.endpoint", url, note)
    note = f"{CONNECTION}.api_key {_keep(given)}"
    place(made, "generate.api_key_env", f"{CONNECTION}.api_key", KEY_ENV, note)


def has_own_key() -> bool:
    """Whether the user has put a key into the environment; not one that came from a file."""
    return os.environ.get(KEY_ENV, "") not in ("", *_taken_from_files)


def _keep(connection: dict[str, Any]) -> str:
    """Puts a real key into the environment; returns what is said of it, without it."""
    key = str(connection.get("api_key") or "").strip()
    if not has_own_key():
        os.environ.pop(KEY_ENV, None)  # of a job before, which may have asked another endpoint
    if key in NO_KEYS:
        return f"holds no key: the one in the environment variable {KEY_ENV} is sent"
    if has_own_key():
        return f"is not sent, for {KEY_ENV} is set and is; take the key out of the file"
    os.environ[KEY_ENV] = key
    _taken_from_files.add(key)
    return f"is sent and stored nowhere; take it out of the file and set {KEY_ENV} instead"


def _student(made: Expansion, given: Any, student: str | None) -> None:
    if isinstance(given, dict):
        refuse_unknown(given, ("type", "path", "mode"), "student_model.")
        given = given.get("path")
    if student:
        made.notes.append(f"student_model: {given} is not used: --student says which model is")
        return
    model = str(_required({"student_model": given}, "student_model"))
    if not model.startswith("azureml:"):
        place(made, "train.student", "student_model", model)
        return
    found = re.search(r"/models/([^/]+)", model) or re.match(r"azureml:([^:/]+)", model)
    name = found[1] if found else model
    hub_id = HUB_IDS.get(name.lower())
    which = f"the hub id {hub_id}" if hub_id else "its hub id (org/name)"
    raise SpecError(
        f"student_model: {model} is a name in an Azure registry, which is not read from here; "
        f"give --student with {which}, or with the path of a folder that holds the model"
    )


def _settings(made: Expansion, raw: dict[str, Any], section: str) -> None:
    """Places every value of a section of theirs; a value of nothing stays our default."""
    given, path = raw, ""
    for part in section.split("."):
        path = f"{path}.{part}".lstrip(".")
        if path == "teacher_model_settings":
            inner = [s.split(".")[1] for s in SETTINGS if s.startswith(path)]
            refuse_unknown(mapping(raw.get(part), path), inner, f"{path}.")
        given = mapping(given.get(part), path)
    table = SETTINGS[section]
    refuse_unknown(given, table, f"{section}.")
    for key, value in given.items():
        theirs = f"{section}.{key}"
        if value is None:
            made.notes.append(f"{theirs}: nothing, {table[key]} stays as it is")
        elif key.startswith("enable_"):
            _reasoning(made, theirs, value)
        elif key == "learning_rate_multiplier":
            _learning_rate(made, theirs, value)
        else:
            plural = key == "stop" and isinstance(value, str)
            place(made, table[key], theirs, [value] if plural else value)


def _reasoning(made: Expansion, theirs: str, value: Any) -> None:
    """Reads enable_chain_of_thought or enable_chain_of_density."""
    told = str(value).lower()
    if told not in ("true", "false"):
        raise SpecError(f"{theirs}: {value}; allowed: true, false")
    chain = theirs.rpartition("enable_")[2]
    summarises = made.sections["prepare"]["task_type"] == "summarization"
    if told == "false":
        made.notes.append(f"{theirs}: false, the teacher is not told to")
    elif summarises != (chain == "chain_of_density"):
        raise SpecError(f"{theirs}: true is for {FITS[chain]}")
    else:
        note = (
            f"{theirs}: true is generate.reasoning {chain}, and curate.rationale drop as it was "
            "there: only the answer is learned; field would keep the reasoning beside it, think "
            "have it learned"
        )
        place(made, "generate.reasoning", theirs, chain, note)
        put(made.sections, "curate.rationale", "drop")


def _learning_rate(made: Expansion, theirs: str, value: Any) -> None:
    default, factor = Train.model_fields["learning_rate"].default, number(value)
    rate = value if factor is None else float(f"{factor * default:.12g}")
    note = f"{theirs}: {value} is train.learning_rate {rate}, so much of our default {default}"
    place(made, "train.learning_rate", theirs, rate, note)


def _signal(made: Expansion) -> None:
    """Text alone is learned from an endpoint, and where the student learns another text."""
    remote = made.sections.get("generate", {}).get("engine") == "openai"
    if remote or "curate" in made.sections:
        put(made.sections, "generate.top_k", 0)
        why = "an endpoint gives no distribution" if remote else "the rationale is dropped"
        made.notes.append(f"generate.top_k is 0: {why}, so the student learns from text alone")


def _names(made: Expansion, raw: dict[str, Any]) -> None:
    outputs = mapping(raw.get("outputs"), "outputs")
    refuse_unknown(outputs, ("registered_model",), "outputs.")
    model = mapping(outputs.get("registered_model"), "outputs.registered_model")
    refuse_unknown(model, ("type", "name", "path", "mode"), "outputs.registered_model.")
    if registered := model.get("name"):
        place(made, "release.registered_model", "outputs.registered_model.name", registered)
    given = str(raw.get("name") or registered or "distillation")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-._")[:64] or "distillation"
    changed = "" if name == raw.get("name") else f" (from {raw.get('name') or 'the model'})"
    place(made, "name", "name", name, f"name is {name}{changed}")


def _required(given: dict[str, Any], key: str, prefix: str = "") -> Any:
    if given.get(key) in (None, ""):
        raise SpecError(f"{prefix}{key}: missing; the job file must say it")
    return given[key]
