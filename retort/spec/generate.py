"""The knobs of the teacher: what answers, how, and what it may cost.

`runtime` sub-sections hold what changes speed or place but not results; they stay out of the
fingerprint, so that a job on a larger machine keeps the answers that were paid for.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from retort.spec.engine import GenerateRuntime
from retort.spec.section import MAX_SEED, Section, knob
from retort.spec.spending import TeacherSpending
from retort.spec.teachers import NAME, OneTeacher, Route, complete


class Generate(Section):
    """The teacher answers every train and validation example."""

    teacher: str = knob(
        ...,
        "path, hub id or name at the endpoint",
        "The model to imitate; not given where there are several teachers.",
    )
    engine: str = knob("auto", "name", "What runs the teacher; auto: vllm if installed.")
    endpoint: str | None = knob(
        None,
        "URL",
        "Address for the engines openai and anthropic; if not given, that of OPENAI_BASE_URL or "
        "ANTHROPIC_BASE_URL, else the provider's own.",
    )
    api_key_env: str | None = knob(
        None,
        "name",
        "Environment variable that holds the endpoint's key; never the key itself.",
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
    )
    mode: Literal["answer", "score"] = knob(
        "answer", "name", "answer: the teacher writes; score: it rates the rows' own answers."
    )
    n: int = knob(1, "responses", "Responses to each example.", ge=1, le=128)
    turns: Literal["auto", "all", "last"] = knob(
        "auto",
        "name",
        "all: the teacher answers each user turn, seeing its own earlier replies; last: the last "
        "one, after the row's replies; auto: all for conversation.",
    )
    temperature: float = knob(0.0, "1", "Sampling temperature; 0 is greedy.", ge=0, le=2)
    top_p: float = knob(1.0, "probability", "Nucleus of the sampling.", gt=0, le=1)
    frequency_penalty: float = knob(
        0.0, "1", "Taken off a token's logit for each time it was written.", ge=-2, le=2
    )
    presence_penalty: float = knob(
        0.0, "1", "Taken off the logit of a token that was written at all.", ge=-2, le=2
    )
    stop: tuple[str, ...] = knob((), "texts", "An answer ends before any of these.")
    reasoning: Literal["none", "chain_of_thought", "chain_of_density"] = knob(
        "none",
        "name",
        "What the teacher is told to do before it answers; the student is not told. "
        "chain_of_density: for summaries. curate.rationale says what is learned of it.",
    )
    instruction: str | None = knob(
        None, "text", "Sent to the teacher after each question, instead of reasoning's own text."
    )
    max_tokens: int = knob(512, "tokens", "Longest answer.", ge=1)
    max_tokens_retry: int | None = knob(
        None, "tokens", "Answers cut off at max_tokens are continued once, up to this length.", ge=1
    )
    max_model_len: int | None = knob(
        None, "tokens", "Longest prompt plus answer; the model's own limit if not given.", ge=2
    )
    top_k: int = knob(
        16,
        "tokens",
        "Teacher log-probabilities stored for each generated token, of an endpoint at most 20; 0 "
        "stores text only.",
        ge=0,
        le=100,
    )
    dtype: str = knob("auto", "name", "Precision of the weights; auto: as stored.")
    seed: int = knob(0, "1", "Seed of the sampling.", ge=0, le=MAX_SEED)
    min_success_ratio: float = knob(
        0.7, "ratio of responses", "Fewer accepted responses than this fail the stage.", ge=0, le=1
    )
    shard_size: int = knob(4096, "examples", "Examples in one file of the artifact.", ge=1)
    spending: TeacherSpending = TeacherSpending()
    runtime: GenerateRuntime = GenerateRuntime()
    teachers: dict[Annotated[str, Field(pattern=NAME)], OneTeacher] = knob(
        {},
        "sections",
        "Several teachers by their names, in place of `teacher`: what each does not set is this "
        "section's. The first one's knobs are then this section's own.",
        added_later=True,
    )
    route: Route | None = knob(
        None,
        "section",
        "Whose answers are learned, where there are several teachers.",
        added_later=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _first_teacher_is_the_teacher(cls, raw: Any) -> Any:
        return complete(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _fits_together(self) -> "Generate":
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n > 1 asks for the same answer again; set a temperature above 0")
        if self.n > 1 and self.mode == "score":
            raise ValueError("mode: score rates the one answer of a row; set n: 1")
        if self.max_tokens_retry is not None and self.max_tokens_retry <= self.max_tokens:
            raise ValueError("max_tokens_retry must be above max_tokens")
        if self.stop and self.top_k:
            raise ValueError(
                "stop cuts the text between tokens, so that no signal belongs to it; set top_k: 0"
            )
        if self.instruction and self.mode == "score":
            raise ValueError("mode: score asks nothing, so there is no place for an instruction")
        if self.route and self.route.by == "all" and (self.n > 1 or not self.top_k):
            raise ValueError(
                "route: all fuses the distributions of one answer, and needs n: 1 and a top_k"
            )
        return self

    def taught_by(self, name: str) -> "Generate":
        """Returns the section as it is for one of several teachers, which is its first.

        With `route: all` every teacher but the first one scores that one's answers.
        """
        assert self.route
        order = (name, *(other for other in self.route.order if other != name))
        own = {key: getattr(self.teachers[name], key) for key in OneTeacher.model_fields}
        route = self.route.model_copy(update={"order": order})
        mode = "score" if self.route.by == "all" and name != self.route.order[0] else self.mode
        return self.model_copy(update={**own, "route": route, "mode": mode})
