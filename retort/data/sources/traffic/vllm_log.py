"""Logs of vLLM's server: requests and their answers, which stand in lines of their own.

With `--enable-log-requests --enable-log-outputs --log-level DEBUG` the body of each request is
logged (`Request ID JSON body: {...}`), with its answer (`Generated response ID: output: '...'`).
Older versions log the prompt alone, as the chat template wrote it: ChatML and Llama 3 are read.
Source: vllm/entrypoints/serve/utils/request_logger.py (0.32), vllm/entrypoints/logger.py (before).
The lines may be JSON (`message`, with a time); the date of plain lines has no year, so that they
have no time.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from retort.data.sources.json_lines import lines
from retort.data.sources.source_row import SourceRow, bad
from retort.data.sources.traffic.call import EMBEDDINGS, Call, LeftOut, asked, seconds_of
from retort.records import JsonObject

TEXT = r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
BODY = re.compile(r"Request (\S+) JSON body: (\{.*)", re.DOTALL)
PROMPT = re.compile(rf"(?:Received request|Request) (\S+?):? (?:details: )?prompt: {TEXT}, ")
ANSWER = re.compile(rf"Generated response (\S+)( \(streaming delta\))?.*?: output: {TEXT}, ")
LOGGED = re.compile(rb"(Received request|Generated response|Request) \S+(:| \(| details| JSON)")
PLACE = rb"(\(\w+ pid=\d+\) )?(INFO|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./]+:\d+\] "
IN_JSON = rb'\{(?=[^\n]*"name": ?"vllm)[^\n]*"message": ?"'
BEGINS = re.compile(rb"^(" + PLACE + rb"|" + IN_JSON + rb")" + LOGGED.pattern, re.MULTILINE)
TIMES = ("asctime", "timestamp", "time", "@timestamp")
PREFIX = re.compile(r"^(chatcmpl|cmpl|resp)-")
# What chat templates write around a turn: its role, and its text.
TEMPLATES = (
    re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.DOTALL),
)
MARKS = ("<|", "[INST]", "<start_of_turn>", "<\uff5c")


@dataclass
class Logged:
    """A request that waits for its answer, and where it stands."""

    line: int
    raw: bytes
    seconds: float | None
    body: JsonObject | None = None
    prompt: str | None = None
    answer: str | None = None


def is_log(head: bytes) -> bool:
    """Whether a file that begins so is a log of vLLM."""
    return LOGGED.search(head) is not None and BEGINS.search(head) is not None


def logged_calls(
    file: str, blocks: Iterable[bytes], most: int
) -> Iterator[tuple[SourceRow, Call | LeftOut]]:
    """Yields the calls of a log in the order of their answers, those without one at the end, each
    with the row that it began with; other lines are skipped."""
    waiting: dict[str, Logged] = {}
    for number, (raw, error) in enumerate(lines(blocks, most), 1):
        if LOGGED.search(raw) is None:
            continue
        if error is not None:
            yield bad(file, number, raw, error), LeftOut(error)
            continue
        message, seconds = _message(raw.decode(errors="replace"))
        for identity, fields in _found(message):
            call = waiting.setdefault(identity, Logged(number, raw, seconds))
            for name, value in fields.items():
                setattr(call, name, value)
            if call.answer is not None:
                yield _row(file, waiting.pop(identity)), _read(call, identity)
    for identity, call in waiting.items():
        yield _row(file, call), _read(call, identity)


def _message(line: str) -> tuple[str, float | None]:
    """Returns what a line says, and when where it is JSON."""
    if line.startswith("{"):
        try:
            value = orjson.loads(line)
            when = next((value[name] for name in TIMES if name in value), None)
            seconds = seconds_of(when.replace(",", ".") if isinstance(when, str) else when)
            return str(value.get("message", "")), seconds
        except (ValueError, AttributeError):
            pass
    return line, None


def _found(message: str) -> Iterator[tuple[str, JsonObject]]:
    """Yields the id of the request that a line is about, and what the line says of it."""
    if found := BODY.search(message):
        try:
            yield PREFIX.sub("", found[1]), {"body": orjson.loads(found[2])}
        except ValueError:  # cut by --max-log-len
            return
    elif found := PROMPT.search(message):
        yield PREFIX.sub("", found[1]), {"prompt": ast.literal_eval(found[2])}
    elif (found := ANSWER.search(message)) and not found[2]:
        yield PREFIX.sub("", found[1]), {"answer": ast.literal_eval(found[3])}


def _row(file: str, call: Logged) -> SourceRow:
    return SourceRow(file, call.line, call.raw, {}, None)


def _read(call: Logged, identity: str) -> Call | LeftOut:
    reply = [{"role": "assistant", "content": call.answer}] if call.answer else []
    body = call.body or {}
    try:
        if call.answer is None and "input" in body:
            raise LeftOut(EMBEDDINGS)
        turns, tools = asked(body) if body else (_turns(call.prompt), None)
    except LeftOut as reason:
        return reason
    model = body.get("model")
    return Call(turns, reply, None, call.seconds, model, request=identity, tools=tools)


def _turns(prompt: str | None) -> list[Any]:
    """Returns the turns of a prompt as a chat template wrote it; of any other text, one."""
    for template in TEMPLATES:
        if found := template.findall(prompt or ""):
            return [{"role": role, "content": text} for role, text in found]
    if prompt and any(mark in prompt for mark in MARKS):
        raise LeftOut("a prompt in a chat template that is not read: log the JSON body")
    return asked(prompt)[0] if prompt else asked(None)[0]
