"""Graders of OpenAI's Evals and fine-tuning API, read as that API gives them, as metrics.

Source: the guide to graders and the API reference of Evals (developers.openai.com, as of 2026-11).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from retort.data.formats._chat import text_of
from retort.errors import SpecError, did_you_mean
from retort.metrics.graders import formula, similarity, templates
from retort.metrics.kinds import GRADED
from retort.records import Message

NUMBERED = "score."  # how the names begin of graders whose scores are no shares
PASSED = ".passed"
# Where graders lie in what the API gives: an eval, a list of evals, a fine-tuning job.
HOLDERS = ("testing_criteria", "data", "method", "reinforcement", "grader")
ROLES = {"developer": "system"}


class Shape(BaseModel):
    """What all graders have; keys that change no score here are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str = ""
    pass_threshold: float | None = None


class StringCheck(Shape):
    """1 where a comparison of two texts holds, else 0."""

    type: Literal["string_check"]
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(Shape):
    """How alike two texts are, from 0 to 1."""

    type: Literal["text_similarity"]
    input: str
    reference: str
    evaluation_metric: similarity.Metric


class ModelGrader(Shape):
    """What a model is asked, as a chat."""

    model: str
    input: list[Message]

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> list[Message]:
        if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
            raise ValueError("give a list of messages with role and content")
        return [
            {
                "role": ROLES.get(turn.get("role", ""), turn.get("role")),
                "content": text_of(turn.get("content"), place),
            }
            for place, turn in enumerate(given, start=1)
        ]


class LabelModel(ModelGrader):
    """1 where a model gives an answer one of the passing labels, else 0."""

    type: Literal["label_model"]
    labels: list[str]
    passing_labels: list[str]

    @field_validator("passing_labels")
    @classmethod
    def _are_labels(cls, given: list[str], info: Any) -> list[str]:
        if wrong := set(given) - set(info.data.get("labels", given)):
            raise ValueError(f"{', '.join(sorted(wrong))}: none of the labels")
        return given


class ScoreModel(ModelGrader):
    """A model's score, no lower and no higher than the range."""

    type: Literal["score_model"]
    range: tuple[float, float] = (0.0, 1.0)

    @field_validator("range", mode="before")
    @classmethod
    def _default(cls, given: Any) -> Any:
        return (0.0, 1.0) if given is None else given


class Python(Shape):
    """The score that a function `grade(sample, item)` returns."""

    type: Literal["python"]
    source: str


Simple = Annotated[
    StringCheck | TextSimilarity | LabelModel | ScoreModel | Python, Field(discriminator="type")
]


class Multi(Shape):
    """A formula of the scores of other graders."""

    type: Literal["multi"]
    graders: dict[str, Simple]
    calculate_output: str


Grader = StringCheck | TextSimilarity | LabelModel | ScoreModel | Python | Multi
KINDS: dict[str, type[Shape]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "label_model": LabelModel,
    "score_model": ScoreModel,
    "python": Python,
    "multi": Multi,
}


def read(path: str) -> list[Grader]:
    """Returns the graders of a file, in its order, each with a name of its own.

    Raises `SpecError` that says which grader is wrong, where, and what is allowed.
    """
    where = f"evaluate.graders.file: {path}"
    try:
        raw = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise SpecError(f"{where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{where} is no JSON: {error}") from error
    found = [_grader(each, where) for each in _found(raw)]
    if not found:
        raise SpecError(f"{where} holds no grader; give an eval, a list of graders, or one")
    names = [metric_of(grader) for grader in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"{where}: two graders named {twice[0].partition('.')[2]}; rename one")
    return found


def metric_of(grader: Grader) -> str:
    """Returns the name of a grader's metric, of letters that MLflow takes: `grader.NAME` where its
    score is a share from 0 to 1, else `score.NAME`."""
    is_share = not isinstance(grader, Python | Multi)
    if isinstance(grader, ScoreModel):
        is_share = grader.range[0] >= 0 and grader.range[1] <= 1
    return f"{GRADED if is_share else NUMBERED}{_plain(grader.name)}"


def passed_metric_of(grader: Grader) -> str | None:
    """Returns the name of the share of answers that reach a grader's threshold, if it has one."""
    has_threshold = grader.pass_threshold is not None
    return f"{GRADED}{_plain(grader.name)}{PASSED}" if has_threshold else None


def deciding(found: list[Grader], main: str) -> str:
    """Returns the metric of the grader that decides: `main` is its name, with `.passed` behind it
    for the share of answers that reach its threshold. Raises `SpecError` for an unknown one."""
    known: dict[str, str] = {}
    for grader in found:
        known[grader.name] = known[_plain(grader.name)] = metric_of(grader)
        if passed := passed_metric_of(grader):
            known[grader.name + PASSED] = known[_plain(grader.name) + PASSED] = passed
    if main not in known:
        near, names = did_you_mean(main, known), ", ".join(known)
        raise SpecError(f"evaluate.graders.main: no grader '{main}'{near}; known: {names}")
    return known[main]


def leaves(graders: list[Grader]) -> Iterator[Grader]:
    """Yields the graders, those inside a multi in its place."""
    for grader in graders:
        if isinstance(grader, Multi):
            yield from grader.graders.values()
        else:
            yield grader


def item_variables(graders: list[Grader]) -> dict[str, str]:
    """Returns the variables of rows that templates name, each with a grader that does."""
    return {
        path[1]: grader.name
        for grader in leaves(graders)
        for text in _texts_of(grader)
        for path in templates.paths(text)
        if path[0] == "item"
    }


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _found(raw: Any) -> list[Any]:
    """Returns the graders in what the API gives."""
    if isinstance(raw, list):
        return [grader for each in raw for grader in _found(each)]
    if isinstance(raw, dict):
        for holder in HOLDERS:
            if isinstance(raw.get(holder), list | dict):
                return _found(raw[holder])
    return [raw]


def _grader(raw: Any, where: str) -> Grader:
    if not isinstance(raw, dict):
        raise SpecError(f"{where}: a grader is an object, not {str(raw)[:40]!r}")
    kind = str(raw.get("type"))
    name = str(raw.get("name") or kind)
    at = f"{where}: grader '{name}'"
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        raise SpecError(f"{at}: unknown type '{kind}'{near}; known: {', '.join(KINDS)}")
    try:
        grader: Any = TypeAdapter(KINDS[kind]).validate_python({**raw, "name": name})
        for each in leaves([grader]):
            for text in _texts_of(each):
                templates.check(text)
            if isinstance(each, TextSimilarity):
                similarity.check(each.evaluation_metric)
        if isinstance(grader, Multi):
            formula.parse(grader.calculate_output, list(grader.graders))
    except ValidationError as error:
        (first, *_) = error.errors()
        at += "".join(f".{part}" for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"{at}: {message}") from None
    except ValueError as error:
        raise SpecError(f"{at}: {error}") from error
    result: Grader = grader
    return result


def _texts_of(grader: Grader) -> list[str]:
    """Returns the templates of a grader."""
    if isinstance(grader, StringCheck | TextSimilarity):
        return [grader.input, grader.reference]
    if isinstance(grader, ModelGrader):
        return [turn["content"] for turn in grader.input]
    return []
