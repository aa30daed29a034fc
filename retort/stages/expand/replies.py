"""From a model's reply to the prompts in it: a list of any form, JSON, or one text.

It never fails. A reply in which nothing is found holds no prompt.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from retort.data.reasoning import think

FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
# 1.  2)  (3)  4:  #5  -  *  and the same after a word such as Prompt, or in bold
ITEM = re.compile(
    r"^[ \t>]*(?:\*\*|__|#+[ \t]*)?(?:(?:prompt|task|question|problem|example|persona)[ \t]*#?"
    r"\d+[ \t]*[.:)\]-]+|\(?#?\d+[.:)\]]+(?!\d)|[-*\u2022\u2013](?=[ \t]))(?:\*\*|__)?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# What models write before a prompt, though nobody asked for it.
LABEL = re.compile(
    r"^(?:\*\*|__|#+[ \t]*)?(?:(?:re-?written|new|created|evolved)[ \t]+)?"
    r"(?:prompt|task|question|problem|instruction)[ \t]*#*[ \t]*:(?:\*\*|__)?\s*",
    re.IGNORECASE,
)
# The keys of a prompt, and of a list of them, in a JSON object.
KEYS = ("prompt", "question", "instruction", "task", "problem", "text", "input", "persona")
QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u00ab": "\u00bb"}


def texts_in(reply: str, is_list: bool) -> list[str]:
    """Returns the prompts in a reply; `is_list` says that several were asked for."""
    text = think(reply)[1].strip()
    if fenced := FENCE.search(text):
        text = fenced[1].strip()
    value = json_in(text) if is_list or text.startswith(("[", "{")) else None
    if value is not None:
        found = list(_strings(value))
    elif is_list:
        found = _items(text)
    else:
        found = [text]
    return [plain for each in found if (plain := _plain(each))]


def json_in(text: str) -> Any:
    """Returns the JSON array or object that begins a line of a text, of several objects a list;
    None where there is none. Numbers, such as a set in a prompt, are no prompts."""
    for mark in re.finditer(r"^[\[{]", text, re.MULTILINE):
        try:
            value, end = json.JSONDecoder().raw_decode(text, mark.start())
        except (ValueError, RecursionError):
            continue
        rest = text[end:].strip()
        if isinstance(value, dict) and rest.startswith("{"):  # an object a line
            further = json_in(rest)
            return [value, *(further if isinstance(further, list) else [further or {}])]
        if isinstance(value, dict) or all(isinstance(each, str | dict) for each in value):
            return value
    return None


def values_in(reply: str) -> dict[str, list[str]]:
    """Returns the attributes in a reply, each with its values: a JSON object of lists, or lines
    such as `topic: sports, food`. One with a single value tells nothing apart."""
    text = think(reply)[1].strip()
    if fenced := FENCE.search(text):
        text = fenced[1].strip()
    value = json_in(text)
    found: dict[str, list[str]] = {}
    if isinstance(value, dict):
        found = {key: list(_strings(inside)) for key, inside in value.items()}
    elif value is None:
        for line in ITEM.sub("", text).splitlines():
            name, colon, values = line.partition(":")
            if colon and len(name.split()) <= 4:
                found[name] = values.split(",")
    plain = {_plain(name): [v for v in map(_plain, values) if v] for name, values in found.items()}
    return {name: [*dict.fromkeys(v)] for name, v in plain.items() if name and len(set(v)) > 1}


def _strings(value: Any) -> Iterator[str]:
    """Yields the prompts in a JSON value: texts, or the first text of a known key."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        known = [value[key] for key in KEYS if isinstance(value.get(key), str)]
        yield from known[:1]
        for each in value.values() if not known else ():
            if isinstance(each, list | dict):
                yield from _strings(each)


def _items(text: str) -> list[str]:
    """Returns the items of a numbered or marked list, which may have several lines, without what
    stands before it; of a text without marks, its paragraphs."""
    marks = list(ITEM.finditer(text))
    if not marks:
        return [part for part in re.split(r"\n\s*\n", text) if not part.rstrip().endswith(":")]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]


def _plain(text: str) -> str:
    """Returns a text without its label, and without the marks or quotes around the whole."""
    text = LABEL.sub("", text.strip()).strip()
    for mark in ("**", "__"):
        if text.startswith(mark) and text.endswith(mark) and text.count(mark) == 2:
            text = text[2:-2].strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text
