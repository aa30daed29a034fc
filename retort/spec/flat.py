"""The flat form of a job (teacher_model, student_model, training_data ...) as the same spec."""

from typing import Any

from retort.errors import SpecError, did_you_mean

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


def is_flat(raw: dict[str, Any]) -> bool:
    """Whether a mapping is the flat form: it names a teacher_model or a student_model."""
    return "teacher_model" in raw or "student_model" in raw


def expand(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the flat form as sections, and one sentence for each value: what it became.

    `hyperparameters.temperature` is both the teacher's sampling temperature and, for the stored
    signal, the distillation temperature. Raises `SpecError` for an unknown key.
    """
    spec: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in raw.items():
        if key == "hyperparameters":
            continue
        _place(spec, notes, KEYS, key, value)
    for key, value in (raw.get("hyperparameters") or {}).items():
        _place(spec, notes, HYPERPARAMETERS, key, value)
        if key == "temperature" and float(value) > 0:
            spec.setdefault("train", {})["losses"] = [
                {"name": "cross_entropy", "weight": 0.2},
                {"name": "forward_kl", "weight": 0.8, "temperature": value},
            ]
            notes.append(f"temperature: {value} is also train.losses[1].temperature (forward_kl)")
    if "name" not in spec:
        student = str(raw.get("student_model", "student")).rstrip("/").rsplit("/", 1)[-1]
        spec["name"] = f"{student}-distilled"
        notes.append(f"name is {spec['name']}, from student_model")
    return spec, notes


def _place(
    spec: dict[str, Any], notes: list[str], table: dict[str, str], key: str, value: Any
) -> None:
    if key not in table:
        raise SpecError(
            f"unknown key '{key}' in the flat form{did_you_mean(key, table)}; "
            f"allowed: {', '.join(table)}"
        )
    section, _, field = table[key].partition(".")
    if field:
        spec.setdefault(section, {})[field] = value
    else:
        spec[section] = value
    notes.append(f"{key}: {value} is {table[key]}")
