"""Writes the artifact: a view on the ledger in the order of the examples, joined by id, counted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from retort.errors import StageError
from retort.records import Example, JsonObject, Response, write_lines
from retort.spec import JobSpec
from retort.stages.engine_settings import engine_of
from retort.stages.generate.listed_signals import ListedSignals
from retort.stages.teacher_requests import RequestPlan
from retort.store import Folder, signals
from retort.store.ledger import Ledger, StoredAnswer
from retort.store.signals import StoredTokens


class CopiedSignals:
    """Writes the signals of an artifact as they lie in the ledger."""

    def __init__(self, out: Folder, k: int, vocabulary: int):
        self._out, self._k, self._vocabulary = out, k, vocabulary
        self._rows: list[tuple[str, StoredTokens]] = []
        self._num_signals = 0

    def add(self, response: Response, stored: StoredAnswer, signal: StoredTokens | None) -> None:
        """Takes an answer."""
        if signal is not None and response.state not in ("failed", "too_long"):
            self._rows.append((response.id, signal))

    def end_shard(self, name: str) -> None:
        """Writes the signals of the answers since the last shard."""
        if self._rows:
            packed = signals.repack(self._rows, self._k, self._vocabulary)
            self._out.write(f"signals-{name}.safetensors", packed)
        self._num_signals += len(self._rows)
        self._rows = []

    def finish(self) -> JsonObject:
        """Returns what the manifest says of them."""
        return {"num_signals": self._num_signals}


def write(
    out: Folder, plan: RequestPlan, ledger: Ledger, examples: Iterable[Example], spec: JobSpec
) -> JsonObject:
    """Writes shards of responses and signals, `shard_size` examples each; returns their counts.

    Raises `StageError` when an example has not exactly its responses, and when an endpoint gave no
    signal at all.
    """
    states: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    kept = _signals(out, ledger, spec)
    num_shards = num_tokens = 0
    waiting = iter(examples)
    while rows := list(islice(waiting, spec.generate.shard_size)):
        responses: list[Response] = []
        for example in rows:
            for response, stored, signal in answers(plan, ledger, example):
                responses.append(response)
                kept.add(response, stored, signal)
        if len({response.id for response in responses}) != len(responses):
            raise StageError(f"two responses of shard {num_shards} share an id; rename an example")
        name = f"{num_shards:05d}"
        kept.end_shard(name)
        out.write(f"responses-{name}.jsonl", write_lines(responses))
        states.update(response.state for response in responses)
        causes.update(r.cause for r in responses if r.state == "failed" and r.cause)
        num_tokens += sum(response.num_tokens for response in responses)
        num_shards += 1
    return {
        "num_responses": sum(states.values()),
        "num_shards": num_shards,
        "num_tokens": num_tokens,
        "states": dict(states),
        "most_failed_for": next((cause for cause, _ in causes.most_common(1)), None),
        **kept.finish(),
    }


def answers(
    plan: RequestPlan, ledger: Ledger, example: Example
) -> Iterator[tuple[Response, StoredAnswer, StoredTokens | None]]:
    """Yields the responses of an example, as they are stored, and their stored signals.

    Raises `StageError` when one is missing.
    """
    for request, entry in plan.walk(example):
        if entry is None:
            raise StageError(f"example {example.id}: the ledger lacks response {request.id}")
        stored, signal = ledger.read(entry)
        yield plan.response(request, stored), stored, signal


def _signals(out: Folder, ledger: Ledger, spec: JobSpec) -> CopiedSignals | ListedSignals:
    if spec.generate.top_k and engine_of(spec).REMOTE:
        return ListedSignals(spec, out)
    return CopiedSignals(out, spec.generate.top_k, ledger.engine().get("vocabulary", 0))
