"""The score of one answer by one grader; what a model or code said of it comes from outside."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from retort.metrics.graders import (
    Grader,
    LabelModel,
    ModelGrader,
    Multi,
    Python,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    formula,
    similarity,
)
from retort.metrics.graders.templates import MissingError, fill, item_of, sample_of
from retort.records import Example, JsonObject, Message, Response, content_id

RESULT = re.compile(r'"result"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
# A number that stands alone, is no part of a word and no percentage.
NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w|\.\d|\s*%)")
AROUND_LABEL = " \t\n.,:;!?*_`'\""
OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda given, wanted: given == wanted,
    "ne": lambda given, wanted: given != wanted,
    "like": lambda given, wanted: wanted in given,
    "ilike": lambda given, wanted: wanted.casefold() in given.casefold(),
}
Outside = Mapping[str, str | float]  # what models and code gave, by key


@dataclass(frozen=True)
class Case:
    """An answer to be graded: what templates can name of its example and of itself."""

    item: JsonObject
    sample: JsonObject

    @classmethod
    def of(cls, example: Example, response: Response) -> "Case":
        """Returns the case of a model's response to an example."""
        return cls(item_of(example), sample_of(response))

    def filled(self, template: str) -> str:
        """Returns a template with its variables replaced. Raises `MissingError`."""
        return fill(template, {"item": self.item, "sample": self.sample})


def chat_of(grader: ModelGrader, case: Case) -> list[Message]:
    """Returns the chat that asks a model about an answer. Raises `MissingError`.

    The form of the reply is the one that OpenAI asks of its own models.
    """
    if isinstance(grader, LabelModel):
        labels = ", ".join(orjson.dumps(label).decode() for label in grader.labels)
        what, kind = "LABEL", f"LABEL being one of {labels}"
    else:
        assert isinstance(grader, ScoreModel)
        low, high = grader.range
        what, kind = "N", f"N being a number from {low:g} to {high:g}"
    form = (
        'Reply with JSON of this form: {"steps": [{"description": "...", "conclusion": "..."}], '
        f'"result": {what}}}, {kind}.'
    )
    chat = [{**turn, "content": case.filled(turn["content"])} for turn in grader.input]
    if chat and chat[-1]["role"] == "user":
        return [*chat[:-1], {**chat[-1], "content": f"{chat[-1]['content']}\n\n{form}"}]
    return [*chat, {"role": "user", "content": form}]


def call_of(grader: Python, case: Case) -> JsonObject:
    """Returns what the code of a grader is called with."""
    return {"source": grader.source, "sample": case.sample, "item": case.item}


def grade(grader: Grader, case: Case, outside: Outside) -> float | None:
    """Returns the score of an answer.

    None where the row lacks what the grader names, or where the model that it asks was not
    reached; 0 where the answer lacks it, as OpenAI scores what is invalid.
    """
    if isinstance(grader, Multi):
        scores = {name: grade(each, case, outside) for name, each in grader.graders.items()}
        known = {name: score for name, score in scores.items() if score is not None}
        tree = _tree(grader.calculate_output, tuple(grader.graders))
        return formula.value(tree, known) if len(known) == len(scores) else None
    try:
        return _grade(grader, case, outside)
    except MissingError as error:
        return None if error.namespace == "item" else 0.0


def _grade(grader: Grader, case: Case, outside: Outside) -> float | None:
    if isinstance(grader, StringCheck):
        compared = case.filled(grader.input), case.filled(grader.reference)
        return float(OPERATIONS[grader.operation](*compared))
    if isinstance(grader, TextSimilarity):
        compared = case.filled(grader.input), case.filled(grader.reference)
        return similarity.similarity(grader.evaluation_metric, *compared)
    if isinstance(grader, Python):
        value = outside.get(content_id(call_of(grader, case)))
        return None if value is None else float(value)
    assert isinstance(grader, ModelGrader)
    reply = outside.get(content_id(chat_of(grader, case)))
    return None if reply is None else _read(grader, str(reply))


def _read(grader: ModelGrader, reply: str) -> float:
    """Returns the score in a model's reply: of the last result in it, or of all of it; the lowest
    where it is none of the labels, or not one finite number, which a range then bounds."""
    found = RESULT.findall(reply)
    result = found[-1].strip('"') if found else reply.strip()
    if isinstance(grader, LabelModel):
        return float(_label(grader.labels, result) in grader.passing_labels)
    assert isinstance(grader, ScoreModel)
    low, high = grader.range
    numbers = [float(number) for number in NUMBER.findall(result)]
    is_read = len(numbers) == 1 and math.isfinite(numbers[0])
    return min(max(numbers[0], low), high) if is_read else low


def _label(labels: list[str], result: str) -> str | None:
    """Returns the label that a result is, or else the only one that it is but for case and the
    marks around it."""
    for label in labels:
        if result in (label, orjson.dumps(label).decode().strip('"')):
            return label
    bare = result.strip(AROUND_LABEL).casefold()
    near = [label for label in labels if bare and label.strip(AROUND_LABEL).casefold() == bare]
    return near[0] if len(near) == 1 else None


@lru_cache
def _tree(text: str, names: tuple[str, ...]) -> Any:
    return formula.parse(text, names)
