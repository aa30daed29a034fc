"""Logged traffic: how fast spans are read and students answer, and how sure the test of drift is.

`python -m benchmarks.shadow [spans]`. Spans are read as examples of a job, by time and metadata, in
one process. Both models of the quickstart are students here: each starts its engine. Of 200 windows
without drift the false alarms are counted, of 200 with a fifth from a topic that no training prompt
is about the alarms; a third of all prompts are some that many people ask.
"""

import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks import Measure, show
from benchmarks.world import HERE
from retort.events import Reporter
from retort.jobs.finding import FoundModel
from retort.jobs.shadow import ShadowRequest, drift_of, shadow
from retort.records import Example, Message
from retort.spec import Traffic, build
from retort.spec.prepare import Deduplicate
from retort.stages.prepare.rows import Reader
from retort.store import open_store

SPANS, IN_A_RECORD, REQUESTS = 100_000, 500, 500
TRAININGS, WINDOWS, TRAINING, WINDOW, NEW = 20, 10, 1500, 250, 0.2
STARTED = 1_795_946_400_000_000_000  # 2026-11-29, in nanoseconds


class People:
    """Who asks: some of what many ask, else something of their own about one of some topics."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self._plain = [f"w{self._word(n)}" for n in range(2000)]
        self._weights = [1 / (rank + 10) for rank in range(2000)]
        self._topics = [[self._word(5000 + 100 * t + n) for n in range(60)] for t in range(13)]
        self._often = [self.prompt(self.random.randrange(12)) for _ in range(60)]

    def _word(self, rank: int) -> str:
        parts = ("ba", "ko", "li", "mu", "ne", "pra", "sti", "tor", "va", "zen")
        return "".join(parts[int(digit)] for digit in str(rank))

    def prompt(self, topic: int) -> str:
        """Returns a prompt of 10 to 40 words, a fifth of them the topic's."""
        number = self.random.randint(10, 40)
        words = self.random.choices(self._plain, self._weights, k=number)
        words += self.random.choices(self._topics[topic], k=number // 4)
        self.random.shuffle(words)
        return " ".join(words)

    def asked(self, number: int, new: float = 0.0) -> Iterator[str]:
        """Yields so many prompts, a share of them of the topic that is `new`."""
        for _ in range(number):
            if self.random.random() < new:
                yield self.prompt(12)
            elif self.random.random() < 1 / 3:
                yield self.random.choice(self._often)
            else:
                yield self.prompt(self.random.randrange(12))


def span(asked: str, answered: str, number: int, ids: random.Random) -> dict[str, Any]:
    """Returns a call as OpenTelemetry's exporters write it."""
    values = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.conversation.id": f"c{number // 3}",
        "gen_ai.input.messages": _message("user", asked),
        "gen_ai.output.messages": _message("assistant", answered),
        "server.address": "api.openai.com",
        "customer.tier": "gold",
    }
    counts = {"gen_ai.usage.input_tokens": "64", "gen_ai.usage.output_tokens": "32"}
    attributes = [{"key": k, "value": {"stringValue": v}} for k, v in values.items()]
    return {
        "traceId": ids.randbytes(16).hex(),
        "spanId": ids.randbytes(8).hex(),
        "name": "chat gpt-4o",
        "kind": 3,
        "startTimeUnixNano": str(STARTED + number * 10**9),
        "endTimeUnixNano": str(STARTED + number * 10**9 + 10**8),
        "attributes": [
            *attributes,
            *({"key": k, "value": {"intValue": v}} for k, v in counts.items()),
        ],
        "status": {},
    }


def _message(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


def write(path: Path, pairs: Iterator[tuple[str, str]]) -> None:
    """Writes export requests of OTLP, some hundred calls in each."""
    ids, waiting = random.Random(0), list[dict[str, Any]]()
    service = [{"key": "service.name", "value": {"stringValue": "support"}}]

    def line() -> bytes:
        scopes = [{"scope": {"name": "openai"}, "spans": waiting}]
        group = {"resource": {"attributes": service}, "scopeSpans": scopes}
        return orjson.dumps({"resourceSpans": [group]}) + b"\n"

    with path.open("wb") as stream:
        for number, (asked, answered) in enumerate(pairs):
            waiting.append(span(asked, answered, number, ids))
            if len(waiting) == IN_A_RECORD:
                stream.write(line())
                waiting.clear()
        if waiting:
            stream.write(line())


def read(folder: Path, number: int) -> float:
    """Returns the CPU seconds that one process takes to make examples of spans."""
    path, people = folder / "spans.jsonl", People(0)
    write(path, zip(people.asked(number), people.asked(number), strict=True))
    source = {"traffic": str(path), "since": "2026-11-01", "where": {"service": "support"}}
    prepare = {"task_type": "conversation", "train": source, "test_ratio": 0.1}
    models = {"generate": {"teacher": "none"}, "train": {"student": "none"}}
    spec, started = build({"name": "benchmark", "prepare": prepare, **models}), time.process_time()
    gc.set_threshold(100_000, 50, 100)  # as the command `retort` does
    found = sum(read.example is not None for read in Reader(spec).rows())
    assert found == number
    return time.process_time() - started


def answered(folder: Path) -> float:
    """Returns the seconds of a shadow of two models, their engines' starts with it."""
    rows = [json.loads(line) for line in (HERE / "data/test.jsonl").open()][:REQUESTS]
    path = folder / "asked.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    student, champion = (
        FoundModel(name, str(HERE / "models" / name), {}) for name in ("base", "teacher")
    )
    notes = Reporter(lambda event: None)
    request = ShadowRequest(Traffic(traffic=str(path)), REQUESTS, task_type="math")
    started = time.monotonic()
    found = shadow(open_store(str(folder / "store")), student, champion, request, notes)
    seconds = time.monotonic() - started
    assert found.num_requests == REQUESTS and found.verdict
    print(found.verdict)
    return seconds


def alarms(new: float) -> float:
    """Returns the share of windows that are alarms, with so much of a new topic in each."""
    found = []
    for training in range(TRAININGS):
        people = People(training)
        known = _examples(dict.fromkeys(people.asked(TRAINING * 2)))[:TRAINING]
        for number in range(WINDOWS):
            window = _examples(people.asked(WINDOW, new))
            found.append(drift_of(known, window, Deduplicate(), number).is_alarm)
    return sum(found) / len(found)


def _examples(prompts: Any) -> list[Example]:
    def chat(text: str) -> list[Message]:
        return [{"role": "user", "content": text}]

    return [Example(f"e{n}", "test", chat(text)) for n, text in enumerate(prompts)]


def main() -> None:
    """Prints the measures."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else SPANS
    with tempfile.TemporaryDirectory(prefix="retort-") as scratch:
        folder = Path(scratch)
        read_seconds = read(folder, number)
        shadow_seconds = answered(folder)
    windows = TRAININGS * WINDOWS
    false_alarms, detected = alarms(0.0), alarms(NEW)
    measures: list[Measure] = [
        (f"CPU seconds to read {number:,} spans", read_seconds, 20, read_seconds <= 20),
        (f"seconds of a shadow of {REQUESTS} requests", shadow_seconds, 60, shadow_seconds <= 60),
        (f"false alarms in {windows} windows", false_alarms, 0.01, false_alarms <= 0.01),
        (f"topics of {NEW:.0%} found in {windows}", detected, 0.99, detected >= 0.99),
    ]
    show(measures)


if __name__ == "__main__":
    main()
