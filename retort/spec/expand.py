"""The knobs of expansion: how many prompts there shall be, who writes them, and in which ways."""

from typing import Literal

from pydantic import field_validator

from retort.spec.curate import ConsultedModel
from retort.spec.section import MAX_SEED, Section, knob

Way = Literal["self_instruct", "attributes", "evolve", "persona"]
WAYS: tuple[Way, ...] = ("self_instruct", "attributes", "evolve", "persona")


class Expand(Section):
    """A model writes more training prompts of the kind of the job's rows."""

    to: int = knob(
        ...,
        "rows",
        "Training rows in the end, those of prepare.train included.",
        ge=2,
        le=10_000_000,
    )
    by: tuple[Way, ...] = knob(
        WAYS,
        "names",
        "self_instruct: continues a list of prompts; attributes: writes to drawn combinations of "
        "topic, length and the like; evolve: rewrites one prompt; persona: writes what a described "
        "person would ask. Used in turn.",
        min_length=1,
    )
    instructions: str | None = knob(
        None, "text", "Told to the writer with every request: what the prompts are for."
    )
    writer: ConsultedModel | None = knob(
        None, "section", "Another model that writes the prompts; the teacher if not given."
    )
    per_request: int = knob(
        4, "prompts", "Prompts that a request asks for; evolve asks for one.", ge=1, le=64
    )
    max_tokens: int = knob(1024, "tokens", "Longest reply of the teacher as writer.", ge=1)
    temperature: float = knob(
        0.7, "1", "Of the writer, and of the teacher's answers that must agree.", gt=0, le=2
    )
    top_p: float = knob(1.0, "probability", "Nucleus of the same sampling.", gt=0, le=1)
    seed: int = knob(0, "1", "Seed of the draws and of the sampling.", ge=0, le=MAX_SEED)
    samples: int = knob(
        3,
        "answers",
        "The teacher answers each new prompt so often, and it stays where all mean the same; only "
        "of task types whose answers can be verified. 0: no check.",
        ge=0,
        le=32,
    )
    min_new: float = knob(
        0.2,
        "ratio of prompts",
        "A batch of which a smaller share can be used is the last one.",
        ge=0,
        le=1,
    )

    @field_validator("by")
    @classmethod
    def _each_way_once(cls, value: tuple[Way, ...]) -> tuple[Way, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a way is named twice; name each once")
        return value

    @field_validator("samples")
    @classmethod
    def _one_always_agrees(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one answer always agrees with itself; set 2 or more, or 0")
        return value
