"""The formats that a student is exported to. One file each.

A format is written `FORMAT:QUANTIZATION` in the spec (`gguf:q4_0`); FORMAT is the name of a file
here. An export is a folder: what its runtime loads, and the student's tokenizer beside it.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from retort.errors import SpecError
from retort.plugins import find_file, unknown
from retort.records import JsonObject, Message

Importance = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Student:
    """What is exported: a folder in the layout of Hugging Face.

    `importance` is the mean squared input of each linear layer, one number an input channel, by the
    layer's name (`model.layers.0.mlp.up_proj`, `lm_head`); empty where it was not measured.
    """

    folder: Path
    importance: Importance = field(default_factory=dict)


class FormatModule(Protocol):
    """What a format's file offers."""

    QUANTIZATIONS: tuple[str, ...]  # what may stand behind the colon
    WEIGHS: tuple[str, ...]  # the quantizations that round by the importance of a layer's inputs
    ENGINE: str  # the engine that answers with an export: the runtime that its users use

    def check(self, student: Path, quantization: str) -> None:
        """Raises `SpecError` where the format cannot express a model, or a package is missing.

        Reads configuration files only. The message names the family, and says what to do.
        """

    def write(self, student: Student, quantization: str, out: Path) -> JsonObject:
        """Writes the export into the empty folder `out` and returns facts about it, as JSON."""

    def token_ids(self, out: Path, texts: list[str]) -> list[list[int]] | None:
        """Returns the ids that the runtime's own tokenizer gives for each text, without marks of
        beginning or end; texts may spell out special tokens, which then become those.

        None where the runtime cannot read this tokenizer, so that ids have to be handed over.
        """

    def prompts(self, out: Path, chats: list[list[Message]]) -> list[str] | None:
        """Returns each chat as the runtime renders it by the export's own template, up to the start
        of the answer; None where it cannot."""


def find_format(name: str) -> tuple[FormatModule, str]:
    """Returns the module of `FORMAT:QUANTIZATION`, and the quantization.

    Raises `SpecError` for an unknown one.
    """
    kind, _, quantization = name.partition(":")
    module: FormatModule = find_file("export format", kind, importlib.import_module(__name__))
    if quantization not in module.QUANTIZATIONS:
        names = list(module.QUANTIZATIONS)
        raise SpecError(unknown(f"quantization of {kind}", quantization, names))
    return module, quantization
