"""The Azure ML job file (`type: distillation`), accepted unchanged and read as the same spec.

Note: the file may hold the teacher's key. It goes into the environment of this process and nowhere
else, neither into the spec nor into a note.
"""

import os
import re
from importlib.metadata import entry_points
from typing import Any

from retort.errors import SpecError, did_you_mean
from retort.records import JsonObject
from retort.spec import catalogue
from retort.spec.azure_keys import CONNECTION_KEYS, IGNORED, READ, SETTINGS, TASK_TYPES
from retort.spec.flat import Expansion, mapping, number, place, put, refuse_unknown
from retort.spec.train import Train

KEY_ENV = "RETORT_TEACHER_API_KEY"
NO_KEYS = ("", "EXAMPLE_API_KEY")
CONNECTION = "teacher_model_endpoint_connection"
REMOTE = ("openai", "anthropic")  # engines whose model is a name at an endpoint
CHAT_PATH = "/chat/completions"
FITS = {
    "chain_of_thought": "all tasks but summarization; for that set enable_chain_of_density",
    "chain_of_density": "summarization only; set it to false",
}
_taken_from_files: set[str] = set()


def is_azure(raw: JsonObject) -> bool:
    """Whether a mapping is an Azure ML distillation job."""
    return str(raw.get("type")).lower() == "distillation"


def is_url(model: str) -> bool:
    """Whether a model given on the command line is the address of an endpoint."""
    return model.lower().startswith(("http://", "https://"))


def chat_endpoint(url: str) -> str:
    """Returns the endpoint for engine openai: the URL without the path of chat completions."""
    return url.rstrip("/").removesuffix(CHAT_PATH)


def shown(url: str) -> str:
    """Returns an address without what may be secret in it."""
    return url.rpartition("@")[2].partition("?")[0]


def expand(raw: JsonObject, teacher: str | None, student: str | None) -> Expansion:
    """Returns the job file as our sections, with a note on each value.

    `teacher` and `student` are those of the command line; the file's own need not be usable then.
    A real key is put into the environment. Raises `SpecError`.
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
        made.notes.append(f"{key}: accepted and ignored")
    return made


def _task_type(made: Expansion, raw: JsonObject) -> None:
    what = str(_required(raw, "data_generation_type")).lower()
    if what == "data_generation":
        raise SpecError(
            "data_generation_type: data_generation was never available; give the questions, "
            "without answers, as training_data and set data_generation_type: label_generation"
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


def _data_path(key: str, value: Any) -> str:
    """Returns the path or URL of a data input. Raises `SpecError` for one that cannot be read."""
    if isinstance(value, dict):
        refuse_unknown(value, ("type", "path", "mode"), f"{key}.")
        kind, value = value.get("type", "uri_file"), value.get("path")
        if kind not in ("uri_file", "uri_folder"):
            raise SpecError(f"{key}.type: {kind}; allowed: uri_file, uri_folder")
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{key}: missing; give {{type: uri_file, path: rows.jsonl}}")
    path = value.strip()
    readable = {entry.name for entry in entry_points(group="fsspec.specs")}
    if path.startswith("azureml:") and not (
        path.startswith("azureml://") and "azureml" in readable
    ):
        install = ", or install azureml-fsspec" if path.startswith("azureml://") else ""
        raise SpecError(
            f"{key}: {path} is data of an Azure workspace, which cannot be read from here; "
            f"download it and give the path, or give its az:// or abfs:// address{install}"
        )
    return path.removeprefix("file:") if not path.startswith("file://") else path


def _teacher(made: Expansion, raw: JsonObject, teacher: str | None) -> None:
    """Reads the connection, a name, an endpoint and a key, unless --teacher replaces it."""
    connection = mapping(raw.get(CONNECTION), CONNECTION)
    refuse_unknown(connection, CONNECTION_KEYS, f"{CONNECTION}.")
    if teacher and not is_url(teacher):
        made.notes.append(f"{CONNECTION} is ignored: --teacher replaces it")
        return
    kind = connection.get("type", "serverless")
    if kind != "serverless":
        raise SpecError(f"{CONNECTION}.type: {kind}; allowed: serverless (or use --teacher)")
    name = _required(connection, "name", f"{CONNECTION}.")
    place(made, "generate.teacher", f"{CONNECTION}.name", name)
    note = f"{CONNECTION}.type: {kind} is generate.engine openai"
    place(made, "generate.engine", f"{CONNECTION}.type", "openai", note)
    if teacher:
        made.notes.append(f"{CONNECTION}: its endpoint and key are ignored")
        return
    url = chat_endpoint(str(_required(connection, "endpoint", f"{CONNECTION}.")))
    note = f"{CONNECTION}.endpoint is generate.endpoint: {shown(url)}"
    place(made, "generate.endpoint", f"{CONNECTION}.endpoint", url, note)
    note = f"{CONNECTION}.api_key {_keep(connection)}"
    place(made, "generate.api_key_env", f"{CONNECTION}.api_key", KEY_ENV, note)


def has_own_key() -> bool:
    """Whether the user has set a key in the environment; keys from job files do not count."""
    return os.environ.get(KEY_ENV, "") not in ("", *_taken_from_files)


def _keep(connection: JsonObject) -> str:
    """Puts a real key into the environment; returns a note on it that does not show it."""
    key = str(connection.get("api_key") or "").strip()
    if not has_own_key():
        os.environ.pop(KEY_ENV, None)  # a key of an earlier job belongs to its endpoint
    if key in NO_KEYS:
        return f"holds no key: the one in the environment variable {KEY_ENV} is sent"
    if has_own_key():
        return f"is ignored: the key in {KEY_ENV} is sent; remove the key from the file"
    os.environ[KEY_ENV] = key
    _taken_from_files.add(key)
    return f"is sent and not stored; remove it from the file and set {KEY_ENV} instead"


def _student(made: Expansion, value: Any, student: str | None) -> None:
    if isinstance(value, dict):
        refuse_unknown(value, ("type", "path", "mode"), "student_model.")
        value = value.get("path")
    if student:
        made.notes.append(f"student_model: {value} is ignored: --student replaces it")
        return
    model = str(_required({"student_model": value}, "student_model"))
    if not model.startswith("azureml:"):
        place(made, "train.student", "student_model", model)
        return
    match = re.search(r"/models/([^/]+)", model) or re.match(r"azureml:([^:/]+)", model)
    name = match[1] if match else model
    known = catalogue.find(name)
    if known and known.hub:
        note = f"student_model: {name} of the Azure registry is train.student: {known}"
        place(made, "train.student", "student_model", known.hub, note)
        return
    near = did_you_mean(name.lower(), catalogue.open_names())
    raise SpecError(
        f"student_model: {model} is a name in an Azure registry, which cannot be read from here"
        f"{near}; give --student with its hub id (org/name), or with the path of a folder that "
        "holds the model"
    )


def _settings(made: Expansion, raw: JsonObject, section: str) -> None:
    """Places every value of one of their sections; a null leaves our default."""
    values, path = raw, ""
    for part in section.split("."):
        path = f"{path}.{part}".lstrip(".")
        if path == "teacher_model_settings":
            inner = [s.split(".")[1] for s in SETTINGS if s.startswith(path)]
            refuse_unknown(mapping(raw.get(part), path), inner, f"{path}.")
        values = mapping(values.get(part), path)
    table = SETTINGS[section]
    refuse_unknown(values, table, f"{section}.")
    for key, value in values.items():
        theirs = f"{section}.{key}"
        if value is None:
            made.notes.append(f"{theirs}: null, {table[key]} keeps its default")
        elif key.startswith("enable_"):
            _reasoning(made, theirs, value)
        elif key == "learning_rate_multiplier":
            _learning_rate(made, theirs, value)
        else:
            plural = key == "stop" and isinstance(value, str)
            place(made, table[key], theirs, [value] if plural else value)


def _reasoning(made: Expansion, theirs: str, value: Any) -> None:
    """Reads enable_chain_of_thought or enable_chain_of_density."""
    flag = str(value).lower()
    if flag not in ("true", "false"):
        raise SpecError(f"{theirs}: {value}; allowed: true, false")
    chain = theirs.rpartition("enable_")[2]
    summarises = made.sections["prepare"]["task_type"] == "summarization"
    if flag == "false":
        made.notes.append(f"{theirs}: false, the teacher gets no such instruction")
    elif summarises != (chain == "chain_of_density"):
        raise SpecError(f"{theirs}: true is for {FITS[chain]}")
    else:
        note = (
            f"{theirs}: true is generate.reasoning {chain}, with curate.rationale drop as in Azure:"
            " only the answer is learned; field also stores the reasoning, think has it learned too"
        )
        place(made, "generate.reasoning", theirs, chain, note)
        put(made.sections, "curate.rationale", "drop")


def _learning_rate(made: Expansion, theirs: str, value: Any) -> None:
    default, factor = Train.model_fields["learning_rate"].default, number(value)
    rate = value if factor is None else float(f"{factor * default:.12g}")
    note = f"{theirs}: {value} is train.learning_rate {rate}, a multiple of our {default}"
    place(made, "train.learning_rate", theirs, rate, note)


def _signal(made: Expansion) -> None:
    """Sets generate.top_k to 0 if no signal can be learned: only the text is."""
    remote = made.sections.get("generate", {}).get("engine") == "openai"
    if remote or "curate" in made.sections:
        put(made.sections, "generate.top_k", 0)
        why = "an endpoint is asked for text" if remote else "the rationale is dropped"
        made.notes.append(f"generate.top_k is 0: {why}, so the student learns from text alone")


def _names(made: Expansion, raw: JsonObject) -> None:
    outputs = mapping(raw.get("outputs"), "outputs")
    refuse_unknown(outputs, ("registered_model",), "outputs.")
    model = mapping(outputs.get("registered_model"), "outputs.registered_model")
    refuse_unknown(model, ("type", "name", "path", "mode"), "outputs.registered_model.")
    if registered := model.get("name"):
        place(made, "release.registered_model", "outputs.registered_model.name", registered)
    wanted = str(raw.get("name") or registered or "distillation")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-._")[:64] or "distillation"
    changed = "" if name == raw.get("name") else f" (from {raw.get('name') or 'the model'})"
    place(made, "name", "name", name, f"name is {name}{changed}")


def _required(section: JsonObject, key: str, prefix: str = "") -> Any:
    if section.get(key) in (None, ""):
        raise SpecError(f"{prefix}{key}: missing; add it to the job file")
    return section[key]
