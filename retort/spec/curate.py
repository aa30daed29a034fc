"""The knobs of curation: which responses are kept, and which part of them is learned."""

from typing import Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from retort.records import JsonObject
from retort.spec.engine import EngineRuntime
from retort.spec.section import Section, knob
from retort.spec.spending import Spending


class Filter(Section):
    """A filter of curation, by the name of its function, with the function's options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = knob(..., "name", "The filter.")

    @property
    def options(self) -> JsonObject:
        """The options besides the name."""
        return dict(self.model_extra or {})


class ConsultedModel(Section):
    """A further model that is asked about the responses."""

    model: str = knob(..., "path, hub id or name at the endpoint", "The model.")
    engine: str = knob("auto", "name", "What runs it; auto: vllm if installed.")
    endpoint: str | None = knob(None, "URL", "Address for the engines openai and anthropic.")
    api_key_env: str | None = knob(
        None,
        "name",
        "Environment variable that holds the endpoint's key; never the key itself.",
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
    )
    max_tokens: int = knob(512, "tokens", "Longest answer.", ge=1)
    max_model_len: int | None = knob(None, "tokens", "Longest prompt plus answer.", ge=2)
    spending: Spending = Spending()
    runtime: EngineRuntime = EngineRuntime()


class Judge(ConsultedModel):
    """A model that rates each response that the filters before `judged` let through."""

    rubric: str = knob(
        "Is the answer correct, complete and helpful?", "text", "What a good answer is."
    )


class Curate(Section):
    """Which responses the student learns from, and which part of them."""

    filters: tuple[Filter, ...] = knob(
        (),
        "names",
        "Filters in order, each a name or {name, its options}; the first reason wins. Empty: the "
        "task type's own.",
    )
    rationale: Literal["keep", "drop", "field", "think"] = knob(
        "keep",
        "name",
        "The reasoning before the answer. keep: learned as written; drop: only the answer is; "
        "field: as drop, kept beside it; think: learned between <think> tags.",
    )
    balance: Literal["none", "oversample", "weights"] = knob(
        "none",
        "name",
        "oversample: rows of smaller groups are shown as often as those of the largest; weights: "
        "each group gets the same share of as many rows as there are.",
    )
    judge: Judge | None = knob(
        None, "section", "The model that rates responses, for the filter judged."
    )
    second_teacher: ConsultedModel | None = knob(
        None, "section", "A second model that answers, for the filter teachers_agree."
    )
    min_kept: int = knob(1, "rows", "Fewer kept train responses than this stop the job.", ge=1)

    @field_validator("filters", mode="before", json_schema_input_type=tuple[str | Filter, ...])
    @classmethod
    def _names_alone(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        return [{"name": item} if isinstance(item, str) else item for item in given]

    @model_validator(mode="after")
    def _fits_together(self) -> "Curate":
        names = [chosen.name for chosen in self.filters]
        for name, needed in (("judged", "judge"), ("teachers_agree", "second_teacher")):
            if name in names and getattr(self, needed) is None:
                raise ValueError(f"the filter {name} needs curate.{needed}; name a model there")
        return self
