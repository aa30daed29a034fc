"""The answers side by side, the worst first: as many as a page can hold.

What does not fit is left out from the end, where nothing is wrong, and counted.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import TypeAdapter

from retort.records import Example, question_text
from retort.stages.report.measurements import Answered

MOST_BYTES = 3_800_000
MOST_CHARACTERS = 4_000
RIGHT_OR_WRONG = {
    "lost": "teacher right, student wrong",
    "neither": "both wrong",
    "won": "student right, teacher wrong",
    "both": "both right",
}
BETTER_OR_WORSE = {
    "lost": "teacher better",
    "won": "student better",
    "both": "equal",
}
UNSCORED = {"unscored": "not scored"}


@dataclass(frozen=True)
class ComparedAnswers:
    """An example with the answers and scores of all models; `kind` says who was right."""

    id: str
    kind: str
    question: str
    expected: str | None
    answers: dict[str, str]
    scores: dict[str, float | None]
    slices: dict[str, str]


@dataclass(frozen=True)
class SideBySide:
    """The examples that a page shows, and of all examples the `counts` by kind; `kinds` names the
    kinds there are."""

    metric: str
    kinds: dict[str, str]
    counts: dict[str, int]
    num_examples: int
    num_left_out: int
    rows: list[ComparedAnswers]


def read_side_by_side(raw: Mapping[str, Any]) -> SideBySide:
    """Returns the examples of an examples.json."""
    return TypeAdapter(SideBySide).validate_python(raw)


def side_by_side(answered: Answered, most_bytes: int = MOST_BYTES) -> SideBySide:
    """Returns as many examples as fit into so many bytes of a page.

    First comes where the student lost most against the teacher; last, where nothing is wrong.
    """
    scores = [
        {role: answered.score(role, example) for role in answered.texts}
        for example in answered.examples
    ]
    values = {value for row in scores for value in row.values() if value is not None}
    names = RIGHT_OR_WRONG if values <= {0.0, 1.0} else BETTER_OR_WORSE
    kinds = [_kind(row, names) for row in scores]
    order = sorted(range(len(kinds)), key=lambda at: _rank(kinds[at], scores[at]))
    rows: list[ComparedAnswers] = []
    size = 0
    for at in order:
        row = _row(answered, answered.examples[at], scores[at], kinds[at])
        size += len(embedded(row)) + 1
        if size > most_bytes:
            break
        rows.append(row)
    counts = Counter(kinds)
    return SideBySide(
        metric=answered.metric,
        kinds={kind: name for kind, name in {**names, **UNSCORED}.items() if counts[kind]},
        counts=dict(counts),
        num_examples=len(kinds),
        num_left_out=len(kinds) - len(rows),
        rows=rows,
    )


def embedded(value: Any) -> str:
    """Returns JSON that can stand within a page: it holds nothing that could end its element."""
    text = orjson.dumps(value).decode()
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _kind(scores: dict[str, float | None], names: dict[str, str]) -> str:
    teacher, student = scores["teacher"], scores["student"]
    if teacher is None or student is None:
        return "unscored"
    if teacher != student:
        return "lost" if teacher > student else "won"
    return "neither" if teacher == 0 and "neither" in names else "both"


def _rank(kind: str, scores: dict[str, float | None]) -> tuple[int, float, float]:
    """Returns what sorts an example: lost, wrong, won, then what is not known, then right."""
    teacher, student = scores["teacher"] or 0.0, scores["student"] or 0.0
    return {"unscored": 1, "both": 2}.get(kind, 0), student - teacher, student


def _row(
    answered: Answered, example: Example, scores: dict[str, float | None], kind: str
) -> ComparedAnswers:
    return ComparedAnswers(
        id=example.id,
        kind=kind,
        question=cut(question_text(example.messages)),
        expected=None if example.expected is None else cut(example.expected),
        answers={role: cut(texts[example.id]) for role, texts in answered.texts.items()},
        scores=scores,
        slices=answered.slices_of(example),
    )


def cut(text: str) -> str:
    """Returns a text of bearable length that says how much of it is missing."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} … ({len(text) - MOST_CHARACTERS:,} more characters)"
