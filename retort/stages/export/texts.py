"""Texts on which two tokenizers are compared: the job's own, and ten thousand of every kind."""

import random
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from itertools import islice

from retort.records import chat_text
from retort.stages.stage import Stage, stream_examples

NUM_TEXTS, MOST_OWN = 10_000, 2_000
WORDS = (files("retort.stages.export") / "words.txt").read_text("utf-8").split()
SPACES = (
    " ",
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    " \n ",
    "\r\n",
    "\u00a0",
    "\u3000",
    "",
)
PLANES = ((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x5FF), (0x900, 0xDFF), (0x4E00, 0x9FFF))
ASTRAL = (0x1F300, 0x1FAFF)


def of_job(stage: Stage) -> Iterator[str]:
    """Yields the texts of a job's examples, prompts and references."""
    for example in stream_examples(stage.input("prepare"), "train", "validation", "test"):
        yield from filter(None, (chat_text(example.messages), example.reference))


def of_all_kinds(own: Iterable[str], marks: list[str]) -> list[str]:
    """Returns some of the job's own texts first, then words of many languages, code, numbers,
    emoji, white space, odd characters, bytes that are no UTF-8, and the special tokens `marks`."""
    found, rng = list(islice(own, MOST_OWN)), random.Random(0)
    makers: list[Callable[[random.Random, list[str]], str]] = [
        _words,
        _characters,
        _broken,
        _marked,
    ]
    while len(found) < NUM_TEXTS:
        found.append(rng.choice(makers)(rng, marks))
    return found


def _words(rng: random.Random, _: list[str]) -> str:
    parts = [rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 24))]
    return rng.choice(SPACES) + "".join(parts)


def _characters(rng: random.Random, _: list[str]) -> str:
    low, high = rng.choice((*PLANES, ASTRAL))
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40)))


def _broken(rng: random.Random, marks: list[str]) -> str:
    """Bytes that are no UTF-8, as a program reads them: with the sign for what is unreadable."""
    whole = _words(rng, marks).encode()
    at = rng.randrange(len(whole) + 1)
    return (whole[:at] + rng.randbytes(3) + whole[at + 1 :]).decode(errors="replace")


def _marked(rng: random.Random, marks: list[str]) -> str:
    if not marks:
        return _words(rng, marks)
    return _words(rng, marks) + rng.choice(marks) + _words(rng, marks)
