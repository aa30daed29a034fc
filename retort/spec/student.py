"""The knobs of a student that is cut from its teacher: what stays of it, and by which measure."""

from typing import Literal

from pydantic import model_validator

from retort.spec.section import Section, knob


class Width(Section):
    """How wide the student is; what is not given stays as wide as it is in the teacher."""

    hidden_size: int | None = knob(None, "numbers", "Width of the hidden states.", ge=1)
    intermediate_size: int | None = knob(None, "channels", "Feed-forward channels a layer.", ge=1)
    num_attention_heads: int | None = knob(
        None,
        "heads",
        "Attention heads a layer. A multiple of the teacher's key-value heads: equally many stay "
        "of each group; else whole groups go, each with its key-value head.",
        ge=1,
    )


class FromTeacher(Section):
    """The layers, channels and heads of the teacher that matter most, by stored answers."""

    layers: int | None = knob(None, "layers", "How many of its layers stay.", ge=1)
    parameters: float | None = knob(
        None,
        "ratio of the teacher's",
        "In place of layers: as many stay as fit into this share of its parameters, after width.",
        gt=0,
        lt=1,
    )
    width: Width = Width()
    metric: Literal["kl", "block_influence"] = knob(
        "kl",
        "name",
        "Which layers go. kl: one after the other, each time that whose absence raises the KL to "
        "the stored signal least; block_influence: those that change their input least, by one "
        "pass.",
    )
    num_rows: int = knob(64, "rows", "Kept answers on which all is measured.", ge=1, le=4096)

    @model_validator(mode="after")
    def _cuts_something(self) -> "FromTeacher":
        if self.layers and self.parameters:
            raise ValueError("layers and parameters both say how many layers stay; keep one")
        if not (self.layers or self.parameters) and self.width == Width():
            raise ValueError("nothing would be cut; give layers, parameters or width")
        return self


class Student(Section):
    """A student without a base of its own."""

    from_teacher: FromTeacher = knob(..., "section", "It is cut from its teacher.")
