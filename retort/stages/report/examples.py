"""The answers side by side, the worst first: as many as a page can hold.

The surprise: the bytes are counted as the page embeds them, and what does not fit is left out from
the end, where nothing is wrong, and counted.
"""

from collections import Counter
from typing import Any

import orjson

from retort.records import Example, Message
from retort.stages.report.answers import Answered

Row = dict[str, Any]

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


def side_by_side(answered: Answered, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Returns `rows`, each an example with the answers and scores of all models, and of all rows
    the `counts` by kind, whose names are in `kinds`, and `num_left_out`.

    First comes where the student lost most against the teacher; last, where nothing is wrong.
    """
    scores = [
        {role: answered.score(role, example) for role in answered.texts}
        for example in answered.examples
    ]
    told = {value for row in scores for value in row.values() if value is not None}
    names = RIGHT_OR_WRONG if told <= {0.0, 1.0} else BETTER_OR_WORSE
    found = list(zip(answered.examples, scores, strict=True))
    kinds = [_kind(row, names) for row in scores]
    order = sorted(range(len(found)), key=lambda at: _rank(kinds[at], scores[at]))
    rows, size = [], 0
    for at in order:
        row = _row(answered, *found[at], kinds[at])
        size += len(embedded(row)) + 1
        if size > most_bytes:
            break
        rows.append(row)
    counts = Counter(kinds)
    return {
        "metric": answered.metric,
        "kinds": {kind: name for kind, name in {**names, **UNSCORED}.items() if counts[kind]},
        "counts": dict(counts),
        "num_examples": len(found),
        "num_left_out": len(found) - len(rows),
        "rows": rows,
    }


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


def _row(answered: Answered, example: Example, scores: dict[str, float | None], kind: str) -> Row:
    return {
        "id": example.id,
        "kind": kind,
        "question": cut(question(example.messages)),
        "expected": None if example.expected is None else cut(example.expected),
        "answers": {role: cut(texts[example.id]) for role, texts in answered.texts.items()},
        "scores": scores,
        "slices": answered.slices_of(example),
    }


def question(messages: list[Message]) -> str:
    """Returns what was asked: the user's words, or the whole chat where there are more turns."""
    turns = [message for message in messages if message.get("role") != "system"] or messages
    if len(turns) == 1:
        return _said(turns[0])
    return "\n\n".join(f"{turn.get('role')}: {_said(turn)}" for turn in turns)


def _said(message: Message) -> str:
    said, calls = message.get("content"), message.get("tool_calls")
    text = said if isinstance(said, str) else orjson.dumps(said).decode() if said else ""
    return f"{text}\n{orjson.dumps(calls).decode()}".strip() if calls else text


def cut(text: str) -> str:
    """Returns a text of bearable length that says how much of it is missing."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} … ({len(text) - MOST_CHARACTERS:,} more characters)"
