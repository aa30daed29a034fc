"""What can be cut: the families with the axes of their weights, and the shape that a job asks for.

It reads configurations and the heads of weight files alone, so that a run can be checked before.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from retort.errors import SpecError
from retort.spec import FromTeacher, JobSpec, Width
from retort.store import model_folder

WHERE = "train.student.from_teacher"
# By `model_type`: the module that holds the layers.
FAMILIES = dict.fromkeys(
    (
        *("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral"),
        *("phi3", "qwen2", "qwen3", "smollm3", "deepseek_v3"),
    ),
    "model.layers",
) | {"gpt2": "transformer.h"}
# How the name of a layer's weight begins.
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
DEPTH_ALONE = ("deepseek_v3", "gpt2")
# In vLLM a head of these has hidden_size / num_attention_heads numbers, whatever head_dim says.
HEADS_SHARE_WIDTH = ("qwen2",)
# The axes of a module's weight, rows first; a bias has the first alone. What is not here keeps its
# shape: a norm inside attention has the size of a head.
NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")
AXES: dict[str, tuple[str, ...]] = {
    "embed_tokens": ("vocabulary", "hidden"),
    "lm_head": ("vocabulary", "hidden"),
    "q_proj": ("query", "hidden"),
    "k_proj": ("key", "hidden"),
    "v_proj": ("key", "hidden"),
    "qkv_proj": ("query_key_value", "hidden"),
    "o_proj": ("hidden", "query"),
    "gate_proj": ("channels", "hidden"),
    "up_proj": ("channels", "hidden"),
    "gate_up_proj": ("gate_up", "hidden"),
    "down_proj": ("hidden", "channels"),
    "norm": ("hidden",),
    **{f"{name}_layernorm": ("hidden",) for name in NORMS},
}


@dataclass(frozen=True)
class Shape:
    """How many of each a model has; `groups` are its key-value heads."""

    layers: int
    hidden: int
    channels: int
    heads: int
    groups: int
    head_size: int

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each axis that can be cut."""
        query, key = self.heads * self.head_size, self.groups * self.head_size
        return {
            "hidden": self.hidden,
            "query": query,
            "key": key,
            "query_key_value": query + 2 * key,
            "channels": self.channels,
            "gate_up": 2 * self.channels,
        }


@dataclass(frozen=True)
class Plan:
    """A teacher's configuration, its shape and the student's, and their parameters."""

    config: Any  # transformers' configuration
    teacher: Shape
    student: Shape
    parameters: int
    parameters_after: int

    @property
    def layers_at(self) -> str:
        """The name of the module that holds the layers."""
        return FAMILIES[self.config.model_type]


def num_parameters(spec: JobSpec) -> int:
    """Returns the parameters of a job's base, also where that is still to be cut."""
    if spec.cut is not None:
        return plan_of(spec).parameters_after
    return int(model_folder.size(model_folder.locate(spec.base, "train.student"))["parameters"])


def plan_of(spec: JobSpec) -> Plan:
    """Returns what a job makes of its teacher. Raises `SpecError` for a family that cannot be cut,
    and for a shape that the teacher does not contain or transformers does not allow."""
    knobs = spec.cut
    assert knobs
    folder = model_folder.locate(spec.generate.teacher, "generate.teacher")
    config = read_config(folder)
    teacher = shape_of(config)
    wide = _with_width(teacher, knobs.width, config.model_type)
    count = counter(folder, teacher)
    student = replace(wide, layers=_num_layers(knobs, teacher, wide, count))
    config_of(config, student, range(student.layers))
    return Plan(config, teacher, student, count(teacher), count(student))


def read_config(folder: Path) -> Any:
    """Returns the configuration of a teacher that can be cut. Raises `SpecError` for another."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise SpecError(f"{folder}/config.json cannot be read: {error}") from None
    if config.model_type not in FAMILIES:
        raise SpecError(
            f"{WHERE}: the family {config.model_type} of {folder} cannot be cut; those that can "
            f"are {', '.join(sorted(FAMILIES))}: take a teacher of these, or a base in "
            "train.student"
        )
    if getattr(config, "quantization_config", None):
        raise SpecError(
            f"{WHERE}: the weights in {folder} are quantized, and only whole numbers can be cut; "
            "take the teacher's folder in bfloat16, or a base in train.student"
        )
    return config


def shape_of(config: Any) -> Shape:
    """Returns the shape that a configuration describes."""
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        channels=getattr(config, "intermediate_size", 0),
        heads=heads,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _with_width(teacher: Shape, width: Width, family: str) -> Shape:
    if width == Width():
        return teacher
    if family in DEPTH_ALONE:
        raise SpecError(
            f"{WHERE}.width: the family {family} can be cut in depth alone; give layers or "
            "parameters, and no width"
        )
    for name, most in (
        ("hidden_size", teacher.hidden),
        ("intermediate_size", teacher.channels),
        ("num_attention_heads", teacher.heads),
    ):
        if (getattr(width, name) or 0) > most:
            raise SpecError(
                f"{WHERE}.width.{name}: {getattr(width, name)}; the teacher has {most}, and a cut "
                "adds nothing"
            )
    heads, hidden = width.num_attention_heads or teacher.heads, width.hidden_size or teacher.hidden
    if family in HEADS_SHARE_WIDTH and hidden != heads * teacher.head_size:
        raise SpecError(
            f"{WHERE}.width: in vLLM {family} shares its hidden_size among its heads, which have "
            f"{teacher.head_size} numbers each; with hidden_size: {hidden} and "
            f"num_attention_heads: {heads} they would not: give hidden_size: "
            f"{heads * teacher.head_size}, or other heads"
        )
    return replace(
        teacher,
        hidden=hidden,
        channels=width.intermediate_size or teacher.channels,
        heads=heads,
        groups=_num_groups(teacher, heads),
    )


def _num_groups(teacher: Shape, heads: int) -> int:
    """Returns how many key-value heads stay beside so many heads: all, where equally many heads
    stay of each group, else those of whole groups."""
    each = teacher.heads // teacher.groups
    if heads % teacher.groups == 0:
        return teacher.groups
    if heads % each == 0:
        return heads // each
    allowed = [n for n in range(1, teacher.heads + 1) if not (n % teacher.groups and n % each)]
    raise SpecError(
        f"{WHERE}.width.num_attention_heads: {heads}; the teacher has {teacher.groups} key-value "
        f"heads with {each} heads each, of which {', '.join(map(str, allowed))} can stay"
    )


def _num_layers(
    knobs: FromTeacher, teacher: Shape, wide: Shape, count: Callable[[Shape], int]
) -> int:
    """Returns how many layers stay: those asked for, or as many as fit."""
    if knobs.layers is not None and knobs.layers > wide.layers:
        raise SpecError(
            f"{WHERE}.layers: {knobs.layers}; the teacher has {wide.layers}; give fewer"
        )
    if knobs.parameters is None:
        return knobs.layers or wide.layers
    shares = {n: count(replace(wide, layers=n)) / count(teacher) for n in range(wide.layers, 0, -1)}
    fitting = [n for n, share in shares.items() if share <= knobs.parameters]
    if not fitting:
        raise SpecError(
            f"{WHERE}.parameters: {knobs.parameters:g}; one layer and all that is no layer have "
            f"{shares[1]:.3f} of the teacher's parameters; give at least that, or a smaller width"
        )
    return fitting[0]


def counter(folder: Path, teacher: Shape) -> Callable[[Shape], int]:
    """Returns a function that counts the parameters of a shape.

    Where layers differ in size the largest are counted, because any may stay.
    """
    stored = list(model_folder.tensors(folder))

    def count(shape: Shape) -> int:
        others, layers = 0, Counter[int]()
        for name, sizes, _ in stored:
            number = math.prod(_sizes(name, sizes, teacher, shape))
            if found := LAYER.search(name):
                layers[int(found[1])] += number
            else:
                others += number
        # Layers after the last, which predict further tokens, are none of the model's own.
        of_model = sorted((layers[index] for index in range(teacher.layers)), reverse=True)
        return others + sum(of_model[: shape.layers])

    return count


def _sizes(name: str, sizes: Sequence[int], teacher: Shape, student: Shape) -> Iterator[int]:
    """Yields the sizes of a weight of the student."""
    before, after = teacher.sizes, student.sizes
    for size, axis in zip_longest(sizes, AXES.get(name.split(".")[-2], ())[: len(sizes)]):
        yield size if before.get(axis) == after.get(axis) else after[axis]


def config_of(config: Any, student: Shape, kept: Sequence[int]) -> Any:
    """Returns the configuration of the student with these layers of the teacher.

    Raises `SpecError` where transformers does not allow it.
    """
    values = copy.deepcopy(config.to_dict())
    number = config.num_hidden_layers
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    for name, value in values.items():
        if "layer" in name and isinstance(value, list) and len(value) == number:
            values[name] = [value[index] for index in kept]
    if "first_k_dense_replace" in values:
        values["first_k_dense_replace"] = sum(i < config.first_k_dense_replace for i in kept)
    if replace(student, layers=number) != shape_of(config):
        values |= {
            "hidden_size": student.hidden,
            "intermediate_size": student.channels,
            "num_attention_heads": student.heads,
            "num_key_value_heads": student.groups,
            "head_dim": student.head_size,
        }
    try:
        return type(config).from_dict(values)
    except Exception as error:  # of whatever kind the family's own checks raise
        reason = " ".join(str(error).split())
        raise SpecError(
            f"{WHERE}.width: transformers refuses this shape of a {config.model_type}: {reason}"
        ) from None
