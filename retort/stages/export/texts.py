"""Texts on which two tokenizers are compared: the job's own, and ten thousand of every kind.

None holds a zero byte, which ends a text in the runtimes that are written in C.
"""

import random
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import islice

import yaml

from retort.records import Message, chat_text
from retort.stages.stage import Stage, stream_examples

NUM_TEXTS, MOST_OWN, MOST_CHATS = 10_000, 2_000, 200
SPACES = " \t\n\r\u00a0\u2003\u3000\u200b\u2028\u0085\x0b\x0c"
ZERO = "\0"


def of_job(stage: Stage) -> Iterator[str]:
    """Yields the texts of a job's examples, prompts and references."""
    for example in stream_examples(stage.input("prepare"), "train", "validation", "test"):
        yield from filter(None, (chat_text(example.messages), example.reference))


def chats_of_job(stage: Stage) -> list[list[Message]]:
    """Returns the first chats of a job's examples, those without tools and calls of them."""
    examples = stream_examples(stage.input("prepare"), "test", "validation", "train")
    plain = (
        example.messages
        for example in examples
        if not example.tools and all(set(turn) <= {"role", "content"} for turn in example.messages)
    )
    return list(islice(plain, MOST_CHATS))


def of_all_kinds(own: Iterable[str], marks: list[str], number: int = NUM_TEXTS) -> list[str]:
    """Returns some of the job's own texts first, then texts of many languages, code, white space,
    emoji, what broken UTF-8 leaves, and the special tokens `marks`, whole and in part."""
    found, draw = [text.replace(ZERO, "") for text in islice(own, MOST_OWN)], random.Random(0)
    while len(found) < number:
        found.append(_text(draw, marks))
    return found


@cache
def pieces() -> dict[str, list[str]]:
    """Returns what texts are made of, by kind: sentences, code, and odd characters."""
    raw = (files("retort.stages.export") / "texts.yaml").read_text("utf-8")
    found: dict[str, list[str]] = yaml.safe_load(raw)
    return found


def _text(draw: random.Random, marks: list[str]) -> str:
    parts: list[str] = []
    for _ in range(draw.randint(1, 6)):
        kind = draw.random()
        if kind < 0.4:
            parts.append(_part(draw, draw.choice(pieces()["sentences"])))
        elif kind < 0.55:
            parts.append(_part(draw, draw.choice(pieces()["code"])))
        elif kind < 0.7:
            parts.append("".join(draw.choices(SPACES, k=draw.randint(1, 5))))
        elif kind < 0.75:
            parts.append(" " * draw.randint(1, 20) + "\n" * draw.randint(0, 4))
        elif kind < 0.9 or not marks:
            parts.append(draw.choice(pieces()["odd"]))
        else:
            mark = draw.choice(marks)
            parts.append(mark if kind < 0.97 else mark[: draw.randint(1, len(mark))])
        parts.append(draw.choice(("", "", " ")))
    return "".join(parts)


def _part(draw: random.Random, text: str) -> str:
    """Returns a part of a text that begins and ends anywhere, at times in capitals."""
    start = draw.randrange(len(text))
    piece = text[start : start + draw.randint(1, 40)]
    return piece.upper() if draw.random() < 0.1 else piece
