"""Writes the artifact: a view on the ledger in the order of the examples, joined by id, counted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from retort.errors import StageError
from retort.records import Example, Response, write_lines
from retort.spec import Generate
from retort.stages.teacher_requests import RequestPlan
from retort.store import Folder, signals
from retort.store.ledger import Ledger
from retort.store.signals import StoredTokens


def write(
    out: Folder, plan: RequestPlan, ledger: Ledger, examples: Iterable[Example], knobs: Generate
) -> dict[str, Any]:
    """Writes shards of responses and signals, `shard_size` examples each; returns their counts.

    Signals are copied as they lie in the ledger. Raises `StageError` when an example has not
    exactly its responses.
    """
    states: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    vocabulary = ledger.engine().get("vocabulary", 0)
    num_shards = num_tokens = num_signals = 0
    waiting = iter(examples)
    while rows := list(islice(waiting, knobs.shard_size)):
        responses: list[Response] = []
        raw: list[tuple[str, StoredTokens]] = []
        for example in rows:
            for response, signal in answers(plan, ledger, example):
                responses.append(response)
                if signal is not None and response.state not in ("failed", "too_long"):
                    raw.append((response.id, signal))
        if len({response.id for response in responses}) != len(responses):
            raise StageError(f"two responses of shard {num_shards} share an id; rename an example")
        name = f"{num_shards:05d}"
        if raw:
            packed = signals.repack(raw, knobs.top_k, vocabulary)
            out.write(f"signals-{name}.safetensors", packed)
        out.write(f"responses-{name}.jsonl", write_lines(responses))
        states.update(response.state for response in responses)
        causes.update(r.cause for r in responses if r.state == "failed" and r.cause)
        num_tokens += sum(response.num_tokens for response in responses)
        num_shards, num_signals = num_shards + 1, num_signals + len(raw)
    return {
        "num_responses": sum(states.values()),
        "num_shards": num_shards,
        "num_tokens": num_tokens,
        "num_signals": num_signals,
        "states": dict(states),
        "most_failed_for": next((cause for cause, _ in causes.most_common(1)), None),
    }


def answers(
    plan: RequestPlan, ledger: Ledger, example: Example
) -> Iterator[tuple[Response, StoredTokens | None]]:
    """Yields the responses of an example with their signals.

    Raises `StageError` when one is missing.
    """
    for request, entry in plan.walk(example):
        if entry is None:
            raise StageError(f"example {example.id}: the ledger lacks response {request.id}")
        stored, signal = ledger.read(entry)
        yield plan.response(request, stored), signal
