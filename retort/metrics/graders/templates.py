"""Templates of graders: `{{item.column}}` and `{{sample.output_text}}`, with paths into values."""

import re
from typing import Any

import orjson

from retort.data.reasoning import think
from retort.records import Example, JsonObject, Response, question_text

PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
STEP = re.compile(r"\.?([^.\[\]]+)|\[\s*(?:(\d+)|'([^']*)'|\"([^\"]*)\")\s*\]")
SAMPLE = ("output_text", "output_json", "output_tools", "choices")
Path = tuple[str, ...]
Namespaces = dict[str, JsonObject]


class MissingError(ValueError):
    """What a path leads to is not there; `namespace` is item or sample."""

    def __init__(self, path: Path):
        super().__init__(f"no {'.'.join(path)}")
        self.namespace = path[0]


def check(template: str) -> None:
    """Raises `ValueError` for a variable that is unknown, whatever the row and the answer."""
    for path in paths(template):
        name = ".".join(path)
        if path[0] not in ("item", "sample") or len(path) < 2:
            raise ValueError(
                f"unknown variable {{{{{name}}}}}; write {{{{item.COLUMN}}}} for what a row holds, "
                f"or {{{{sample.NAME}}}} with NAME one of {', '.join(SAMPLE)}"
            )
        if path[0] == "sample" and path[1] not in SAMPLE:
            raise ValueError(f"unknown variable {{{{{name}}}}}; sample has {', '.join(SAMPLE)}")


def paths(template: str) -> list[Path]:
    """Returns the variables of a template, each as its steps. Raises `ValueError` for no path."""
    return [_path(place[1]) for place in PLACE.finditer(template)]


def fill(template: str, values: Namespaces) -> str:
    """Returns a template with its variables replaced: texts as they are, other values as JSON.

    Raises `MissingError` for one that is not there.
    """
    return PLACE.sub(lambda place: _text(_value(values, _path(place[1]))), template)


def item_of(example: Example) -> JsonObject:
    """Returns what `item` stands for: the example's metadata, and beside it what is asked (`input`
    as text, `messages`) and known of it (`expected`, `reference`, `answers`, `id`)."""
    known = {
        "id": example.id,
        "input": question_text(example.messages),
        "messages": example.messages,
        "expected": example.expected,
        "reference": example.reference,
        "answers": example.answers,
        "metadata": example.metadata,
    }
    return {name: value for name, value in known.items() if value is not None} | example.metadata


def sample_of(response: Response) -> JsonObject:
    """Returns what `sample` stands for; `output_json` only where the answer is JSON."""
    text = think(response.text)[1]
    message = {"role": "assistant", "content": text, "tool_calls": response.tool_calls or []}
    choice = {"index": 0, "message": message, "finish_reason": response.finish_reason}
    sample = {"output_text": text, "output_tools": response.tool_calls or [], "choices": [choice]}
    try:
        return sample | {"output_json": orjson.loads(text)}
    except orjson.JSONDecodeError:
        return sample


def _path(text: str) -> Path:
    steps, at = list[str](), 0
    while at < len(text):
        step = STEP.match(text, at)
        if step is None:
            break
        steps.append(next(part for part in step.groups() if part is not None))
        at = step.end()
    if at < len(text) or not steps:
        raise ValueError(f"{{{{{text}}}}} is no variable; write it as {{{{item.column[0].name}}}}")
    return tuple(steps)


def _value(values: Namespaces, path: Path) -> Any:
    value: Any = values
    for step in path:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise MissingError(path)
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
