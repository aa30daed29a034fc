"""An endpoint with a teacher and a judge that counts each caller's requests, and misbehaves for one
caller as it is told. Callers are told apart by their keys."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.support.misbehaving import Endpoint, bad, endpoint, openai_body

Phase = Literal["generate", "curate", "evaluate"]
Fault = Literal["", "429", "500", "hang", "garbage", "dead"]
# An answer waits two seconds at most until it is committed (retort/store/ledger/writer.py).
SETTLE_SECONDS, LONGEST_SECONDS = 2.5, 30.0
HANG_SECONDS = 60.0
TEACHER, JUDGE = "teacher", "judge"
Question = tuple[Phase, str]


@dataclass
class Gate:
    """After `number` answers of a phase no more are given until `fire` has returned; it is called
    once these are committed, where the phase commits them."""

    phase: Phase
    number: int
    fire: Callable[[], None]
    is_committed: Callable[[], bool]
    is_reached: bool = False
    is_open: threading.Event = field(default_factory=threading.Event)


@dataclass
class Caller:
    """One job's requests: `seen` are all, `given` those that were answered well."""

    seen: Counter[Question] = field(default_factory=Counter)
    given: Counter[Question] = field(default_factory=Counter)
    gate: Gate | None = None
    fault: Fault = ""
    faults_left: int = 1 << 30

    def misbehave(self, fault: Fault, times: int = 1 << 30) -> None:
        """Lets so many of the next requests fail."""
        self.fault, self.faults_left = fault, times

    def num_given(self, phase: Phase) -> int:
        """How many requests of a phase were answered."""
        return sum(number for (name, _), number in self.given.items() if name == phase)

    async def pass_gate(self, phase: Phase) -> None:
        """Waits while the gate of a phase is closed."""
        gate = self.gate
        if gate is None or gate.phase != phase or self.num_given(phase) < gate.number:
            return
        if not gate.is_reached:
            gate.is_reached = True
            threading.Thread(target=_open_later, args=(gate,), daemon=True).start()
        while not gate.is_open.is_set():
            await asyncio.sleep(0.02)


def _open_later(gate: Gate) -> None:
    time.sleep(SETTLE_SECONDS)
    end = time.monotonic() + LONGEST_SECONDS
    try:
        while not gate.is_committed() and time.monotonic() < end:
            time.sleep(0.1)
        gate.fire()
    finally:
        gate.is_open.set()


class Models:
    """The endpoint's address and its callers, by their keys."""

    def __init__(self, held_out: set[str]):
        self.url, self._held_out = "", held_out
        self.callers: dict[str, Caller] = {}

    async def behave(self, seen: Endpoint, request: web.Request, text: str) -> Any:
        """Answers one request."""
        key = request.headers["Authorization"].removeprefix("Bearer ")
        caller = self.callers.setdefault(key, Caller())
        model = seen.bodies[-1]["model"]
        phase: Phase = "curate" if model == JUDGE else "generate"
        if model == TEACHER and text in self._held_out:
            phase = "evaluate"
        caller.seen[phase, text] += 1
        await caller.pass_gate(phase)
        if caller.fault and caller.faults_left > 0:
            caller.faults_left -= 1
            return await _befall(caller.fault, request)
        caller.given[phase, text] += 1
        return web.json_response(_body(phase, text))


async def _befall(fault: Fault, request: web.Request) -> Any:
    if fault == "hang":
        await asyncio.sleep(HANG_SECONDS)
    if fault in ("hang", "dead"):
        if request.transport:
            request.transport.abort()
        return web.Response()
    if fault == "garbage":
        return web.Response(text="<html>Welcome to nginx!</html>", content_type="text/html")
    return bad(int(fault), "told by the benchmark", Retry_After="0.2")


def _body(phase: Phase, text: str) -> dict[str, Any]:
    body = openai_body(text)
    answer = "Score: 4"
    if phase != "curate":
        first, _, second = text.partition(" = ")[0].partition(" + ")
        answer = str(int(first) + int(second))
    body["choices"][0]["message"]["content"] = answer
    return body


@contextmanager
def serving(held_out: set[str]) -> Iterator[Models]:
    """Serves the endpoint until the block ends; `held_out` are the questions of the test rows."""
    models = Models(held_out)
    with endpoint(models.behave) as (_, models.url):
        yield models
