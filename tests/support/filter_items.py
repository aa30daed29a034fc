"""Responses as filters see them, one at a time, written by hand."""

from retort.data.filters.candidate import Candidate
from retort.data.task_types import load
from retort.records import Example, Response

QUESTION = "What is one and one, and why is that so?"
MATH = load("math")
ENGLISH = "The answer is two, because one and one more make two altogether."
CHINESE = "答案是二，因为一个苹果再加上一个苹果，就得到两个苹果，这是很容易理解的道理。"


def item(text="", prompt=QUESTION, task=MATH, expected=None, **more) -> Candidate:
    """One response alone; `more` goes to whichever of the three records has such a field."""
    of_example = {k: more.pop(k) for k in ("options",) if k in more}
    of_item = {k: more.pop(k) for k in ("second", "score", "rationale") if k in more}
    chat = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    example = Example("a", "train", chat, expected, **of_example)
    tokens = more.pop("num_tokens", 1)
    response = Response("a", text, [], "stop", 1, tokens, **more)
    return Candidate(example, response, task, text, **of_item)
