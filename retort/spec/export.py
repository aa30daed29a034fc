"""The knobs of the exports: which formats the student is written in, beside its own."""

import re

from pydantic import field_validator

from retort.spec.section import Section, knob

NAME = re.compile(r"[a-z][a-zA-Z0-9_.]*:[a-z0-9_]+")


class Export(Section):
    """The student as files for other runtimes, each measured as what it is."""

    formats: tuple[str, ...] = knob(
        (),
        "names",
        "Formats, each FORMAT:QUANTIZATION: gguf:q8_0, gguf:q4_0, onnx:int4, "
        "compressed_tensors:w8a8 and so on (docs/export.md).",
    )
    importance: bool = knob(
        True,
        "yes or no",
        "Measure which inputs of each layer matter on training chats, and round the others first.",
    )
    num_examples: int = knob(
        128, "examples", "Training chats on which importance is measured.", ge=1, le=100_000
    )

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        for name in formats:
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no FORMAT:QUANTIZATION such as gguf:q4_0")
        if len(set(formats)) < len(formats):
            raise ValueError("a format is named twice; name each once")
        return formats


def role_of(name: str) -> str:
    """Returns the name of an exported student among the compared models: gguf-q4_0."""
    return name.replace(":", "-").replace(".", "-")
