"""The flat form of a job (teacher_model, student_model, training_data ...), read as the same spec.

Also what all foreign forms share: placing a value in our sections, with the name its user gave it.
"""

from typing import Any, NamedTuple

from retort.errors import SpecError, did_you_mean
from retort.records import JsonObject
from retort.spec import catalogue

# flat key -> section.key of the spec
KEYS = {
    "name": "name",
    "teacher_model": "generate.teacher",
    "student_model": "train.student",
    "training_data": "prepare.train",
    "validation_data": "prepare.validation",
    "test_data": "prepare.test",
    "task_type": "prepare.task_type",
}
HYPERPARAMETERS = {
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "num_epochs": "train.num_epochs",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "max_length": "train.max_length",
    "temperature": "generate.temperature",
    "top_p": "generate.top_p",
    "max_tokens": "generate.max_tokens",
    "seed": "train.seed",
}


class Expansion(NamedTuple):
    """A foreign form as our sections, a note on each value, and the user's names of the keys."""

    sections: JsonObject
    notes: list[str]
    names: dict[str, str]


def is_flat(raw: JsonObject) -> bool:
    """Whether a mapping is the flat form: it names a teacher_model or a student_model."""
    return "teacher_model" in raw or "student_model" in raw


def expand(raw: JsonObject) -> Expansion:
    """Returns the flat form as sections, with a note on each value.

    `hyperparameters.temperature` is both the teacher's sampling temperature and, for the stored
    signal, the distillation temperature. Where the catalogue knows that the tokenizers differ, the
    student learns from text alone. Raises `SpecError` for an unknown key.
    """
    made = Expansion({}, [], {})
    hyperparameters = mapping(raw.get("hyperparameters"), "hyperparameters")
    refuse_unknown(raw, [*KEYS, "hyperparameters"], "")
    refuse_unknown(hyperparameters, HYPERPARAMETERS, "hyperparameters.")
    for key in (key for key in raw if key in KEYS):
        place(made, KEYS[key], key, raw[key])
    if reason := catalogue.why_text_alone(raw.get("teacher_model"), raw.get("student_model")):
        put(made.sections, "generate.top_k", 0)
        made.notes.append(f"generate.top_k is 0, the student learns from text: {reason}")
    for key, value in hyperparameters.items():
        place(made, HYPERPARAMETERS[key], f"hyperparameters.{key}", value)
        if key == "temperature" and number(value) != 0 and not reason:
            made.sections.setdefault("train", {})["losses"] = [
                {"name": "cross_entropy", "weight": 0.2},
                {"name": "forward_kl", "weight": 0.8, "temperature": value},
            ]
            made.names["train.losses.1.temperature"] = f"hyperparameters.{key}"
            made.notes.append(
                f"hyperparameters.temperature: {value} is also train.losses[1].temperature "
                "(forward_kl)"
            )
    if "name" not in made.sections:
        student = str(raw.get("student_model", "student")).rstrip("/").rsplit("/", 1)[-1]
        name = f"{student}-distilled"
        place(made, "name", "student_model", name, f"name is {name}, from student_model")
    return made


def place(made: Expansion, ours: str, theirs: str, value: Any, note: str | None = None) -> None:
    """Sets a value under our dotted key, with a note and the user's name of the key.

    Raises `SpecError` if another key of the user's has set it already.
    """
    if ours in made.names:
        raise SpecError(f"{made.names[ours]} and {theirs} both set {ours}; keep one of them")
    put(made.sections, ours, value)
    made.names[ours] = theirs
    made.notes.append(note or f"{theirs}: {' '.join(str(value).split())} is {ours}")


def put(sections: JsonObject, dotted: str, value: Any) -> None:
    """Sets the value of a dotted key, making the sections on the way."""
    *parents, last = dotted.split(".")
    for parent in parents:
        sections = sections.setdefault(parent, {})
    sections[last] = value


def mapping(value: Any, where: str) -> JsonObject:
    """Returns a value that must be a mapping; None is an empty one.

    Raises `SpecError`, which does not show the value: it may be a secret.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be a mapping of keys to values, not {_kind(value)}")
    return value


def refuse_unknown(section: JsonObject, allowed: Any, prefix: str) -> None:
    """Raises `SpecError` for the first key that is not allowed, with the nearest allowed one."""
    for key in section:
        if key not in allowed:
            raise SpecError(
                f"unknown key '{prefix}{key}'{did_you_mean(str(key), allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )


def number(value: Any) -> float | None:
    """Returns a value that is a number, or a text of one, as float; else None."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _kind(value: Any) -> str:
    return {"str": "a text", "list": "a list", "int": "a number", "float": "a number"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
