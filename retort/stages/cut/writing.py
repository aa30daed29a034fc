"""Cuts the teacher, in a child process, and writes the student before it learned."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from retort.data import encoding
from retort.events import Reporter
from retort.processes.libraries import resolve_device, stay_offline
from retort.records import JsonObject
from retort.stages.cut import layers, rows, width
from retort.stages.cut.shape import AXES, LAYER, Plan, config_of, plan_of
from retort.stages.stage import from_arguments
from retort.store import model_folder


def make(arguments: JsonObject, report: Reporter) -> JsonObject:
    """Writes the folder `student/` of the stage's artifact; returns the stage's facts."""
    stage = from_arguments(arguments, report)
    knobs, folder = stage.spec.cut, Path(stage.spec.generate.teacher)
    assert knobs
    stay_offline(str(folder))
    plan = plan_of(stage.spec)
    device = resolve_device(stage.spec.train.runtime.device)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if device == "cpu" else "auto"
    ).to(device)
    tokenizer = encoding.load_tokenizer(str(folder))
    batches = rows.stored(stage, tokenizer, plan.config.vocab_size, device)
    teacher = layers.Teacher(model, plan.layers_at, batches)
    choice = layers.choose(teacher, plan.student.layers, knobs.metric, report)
    kept_axes = width.indices(teacher, choice.layers, plan.teacher, plan.student)
    with tempfile.TemporaryDirectory(prefix="retort-cut-") as scratch:
        save(Path(scratch), model.cpu(), plan, choice.layers, kept_axes)
        model_folder.copy_tokenizer(folder, Path(scratch))
        size = model_folder.size(Path(scratch))
        stage.out.put_tree(Path(scratch), "student")
    shown = ", ".join(map(str, choice.layers))
    report.note(f"layers {shown} of {plan.teacher.layers} stay, chosen by {choice.by}")
    return {
        **asdict(choice),
        "num_layers": plan.teacher.layers,
        "num_rows": sum(len(batch.input_ids_BT) for batch in batches),
        "num_tokens": teacher.num_tokens,
        "teacher": asdict(plan.teacher),
        "student": asdict(plan.student),
        "parameters_before": plan.parameters,
        "parameters_after": size["parameters"],
    }


def save(
    folder: Path, model: Any, plan: Plan, kept: Sequence[int], axes: list[width.Indices] | None
) -> None:
    """Writes the model of a teacher's weights: those layers, and what stays of each axis, in the
    precision in which the teacher is stored."""
    config = config_of(plan.config, plan.student, kept)
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        found = LAYER.search(name)
        if found is None:
            weights[name] = _narrow(name, weight, axes[0] if axes else {})
        elif (layer := int(found[1])) in kept:
            number = kept.index(layer)
            at = slice(*found.span(1))
            renamed = f"{name[: at.start]}{number}{name[at.stop :]}"
            weights[renamed] = _narrow(name, weight, axes[number] if axes else {})
    with torch.device("meta"):  # no weights beside the teacher's
        student = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    student.load_state_dict(weights, assign=True)
    student.tie_weights()
    student.generation_config = model.generation_config
    student.to(plan.config.dtype or torch.float32).save_pretrained(folder)


def _narrow(name: str, weight: Tensor, kept: width.Indices) -> Tensor:
    """Returns the part of a weight that stays."""
    for index, axis in enumerate(AXES.get(name.split(".")[-2], ())[: weight.ndim]):
        if axis in kept:
            weight = weight.index_select(index, kept[axis])
    return weight.clone()
