"""Rows asked as the task types ask them, for the tests of prompts, answers and rationales."""

from retort.data.task_types import conversation, math, nli, qa, summarization
from retort.records import Example, Row
from retort.spec import Prepare

BUILT_IN = (nli, qa, math, conversation, summarization)
EXAMPLE = Example("a", "test", [{"role": "user", "content": "?"}])


def prompt(task_type, fields=None, messages=None, **knobs):
    given = Prepare(train="train.jsonl", **knobs)
    return task_type.prompt(Row(messages=messages, fields=fields or {}), given)


def content(task_type, fields, **knobs):
    (turn,) = prompt(task_type, fields, **knobs).messages
    assert turn["role"] == "user"
    return turn["content"]


def turns(*texts):
    """A chat: user, assistant, user ..."""
    return [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(texts)
    ]


PAIR = {"premise": "It rains.", "hypothesis": "It is wet."}
CHOOSE = {"question": "Capital of Italy?", "choices": ["Paris", "Rome", "Bern"]}
