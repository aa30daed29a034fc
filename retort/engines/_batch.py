"""Chats answered by a provider's batches: half the price, an answer within a day.

A batch is written down before it is submitted (an intent), so that a process killed at any moment
finds its batch again and pays once. A batch whose answers were all taken is read again when the
same requests come again; reading is free.
"""

import hashlib
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import orjson

from retort.engines import Answer, Request, Settings, take_requests
from retort.engines._endpoint import Api, facts_of, open_connection
from retort.engines._official import Caller, GoneError
from retort.engines._replies import (
    UNREADABLE,
    EndpointError,
    make_error,
    rename_field,
    wants_other_name,
)
from retort.errors import SpecError
from retort.records import JsonObject
from retort.store import Folder

if TYPE_CHECKING:
    from retort.engines._request_pool import HttpEngine

LOG = logging.getLogger(__name__)
# How far the provider's clock may be behind ours.
CLOCK_SECONDS = 3600.0
# What a batch adds to the body of each request, at most.
ROW_BYTES = 256
PendingBodies = dict[str, bytes]  # by the ids of requests that have no answer yet
MISSING = make_error("missing", "the batch has no result for it")


@dataclass(frozen=True)
class Intent:
    """A batch before and after it was submitted; `custom_ids` lead to the ids of requests.

    A custom id ends with the digest of the body: only the very same request is answered by it.
    """

    id: str
    custom_ids: dict[str, str]
    created_at: float
    status: str = "intended"  # then submitted, then done
    batch_id: str | None = None


@dataclass(frozen=True)
class BatchApi:
    """What distinguishes one provider's batches from another's; a batch is the client's own object.

    `upload` returns what `create` makes a batch of; only `create` must not be repeated. `claims`
    says whether a batch came from an intent, None if only its results will tell.
    """

    max_requests: int
    max_bytes: int
    row: Callable[[str, Any], JsonObject]  # for a custom id and a body
    upload: Callable[[Caller, list[bytes]], Any]
    create: Callable[[Any, str, Any], Any]  # for a client, an intent's id and what was uploaded
    resource: Callable[[Any], Any]  # the part of a client that lists and retrieves batches
    created_at: Callable[[Any], float]
    has_ended: Callable[[Any], bool]
    claims: Callable[[Caller, Any, Intent], bool | None]
    results: Callable[[Caller, Any], Iterator[tuple[str, JsonObject]]]


class BatchEngine:
    """An endpoint that answers chats in batches."""

    def __init__(self, settings: Settings, api: Api, batches: BatchApi):
        if settings.state is None:
            raise SpecError("batches need a folder that remembers them: settings.state")
        self._settings, self._api, self._batches = settings, api, batches
        self._caller = Caller(api, open_connection(settings, api))
        self._folder = Folder(f"{settings.state}/batches")
        self._errors: dict[str, EndpointError] = {}
        self._renames = False
        self.facts = facts_of(self._caller.connection, api)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields answers batch by batch; requests up to a `None` go into batches together.

        Raises `StageError` for a bad key, or if no batch can be made.
        """
        stored = [self._folder.read_json(name) for name in self._folder.files()]
        self._intents = {value["id"]: Intent(**value) for value in stored}
        source, more = iter(requests), True
        while more:
            group, more = take_requests(source, sys.maxsize)
            yield from self._answer(group)

    def _answer(self, requests: list[Request]) -> Iterator[Answer]:
        """Answers from earlier batches first, then from new ones, at most `max_attempts`."""
        pending: PendingBodies = {}
        for request in requests:
            try:
                pending[request.id] = orjson.dumps(self._api.body(self._settings, request))
            except UNREADABLE as bad:
                error = make_error("unsendable", f"{type(bad).__name__}: {bad}")
                yield Answer(request.id, {"error": error})
        earlier = [intent for intent in self._intents.values() if _covered(intent, pending)]
        running = [intent for intent in map(self._adopted, earlier) if intent]
        covered = set[str]().union(*(_covered(intent, pending) for intent in running))
        fresh = {key: body for key, body in pending.items() if key not in covered}
        running += [self._submit(part) for part in self._parts(fresh)]
        yield from self._collect(running, pending)
        for _ in range(self._settings.runtime["max_attempts"] - (not earlier)):
            yield from self._collect([self._submit(p) for p in self._parts(pending)], pending)
        for request_id in pending:
            yield Answer(request_id, {"error": self._errors.get(request_id, MISSING)})

    def _parts(self, pending: PendingBodies) -> Iterator[PendingBodies]:
        """Yields as many requests as one batch takes, until all are in one."""
        part: PendingBodies = {}
        size = 0
        for request_id, body in pending.items():
            size += len(body) + ROW_BYTES
            if part and (len(part) == self._batches.max_requests or size > self._batches.max_bytes):
                yield part
                part, size = {}, len(body) + ROW_BYTES
            part[request_id] = body
        if part:
            yield part

    def _submit(self, part: PendingBodies) -> Intent:
        """Makes one batch, and never a second: after any doubt the provider's list decides.

        Raises `StageError` if the provider refuses it.
        """
        name, batches, caller = uuid.uuid4().hex[:16], self._batches, self._caller
        custom_ids = {
            f"{name}-{index}-{_digest(body)}": request_id
            for index, (request_id, body) in enumerate(part.items())
        }
        rows = [
            orjson.dumps(batches.row(custom_id, self._body(part[request_id])))
            for custom_id, request_id in custom_ids.items()
        ]
        intent = self._keep(Intent(name, custom_ids, time.time()))
        uploaded, started, num_calls = batches.upload(caller, rows), time.monotonic(), 0
        while True:
            reply = caller.once(lambda client: batches.create(client, name, uploaded))
            if reply.error is None:
                batch_id: str | None = reply.data.id
            else:
                num_calls += 1
                caller.wait(reply, num_calls, started)
                batch_id = self._find(intent)
            if batch_id:
                return self._keep(replace(intent, status="submitted", batch_id=batch_id))

    def _body(self, body: bytes) -> Any:
        if self._renames:
            return rename_field(self._api, orjson.loads(body))
        return orjson.Fragment(body)

    def _adopted(self, intent: Intent) -> Intent | None:
        """Returns an intent with its batch; deletes one that never became a batch."""
        if intent.batch_id:
            return intent
        if batch_id := self._find(intent):
            return self._keep(replace(intent, status="submitted", batch_id=batch_id))
        self._folder.remove(f"{intent.id}.json")
        del self._intents[intent.id]
        return None

    def _find(self, intent: Intent) -> str | None:
        """Returns the id of the batch that an intent became, None if it never did."""
        others = {other.batch_id for other in self._intents.values()}
        while True:
            is_unsure = False
            for batch in self._batches_since(intent.created_at - CLOCK_SECONDS):
                if batch.id in others:
                    continue
                claimed = self._batches.claims(self._caller, batch, intent)
                if claimed:
                    return str(batch.id)
                is_unsure |= claimed is None
                if claimed is False:
                    others.add(batch.id)
            if not is_unsure:
                return None
            time.sleep(self._settings.runtime["batch_poll_seconds"])

    def _batches_since(self, since: float) -> Any:
        """Returns the provider's batches made since a time, the newest first."""

        def is_recent(batch: Any) -> bool:
            return self._batches.created_at(batch) >= since

        pages = self._batches.resource
        return self._caller.call(lambda c: [*takewhile(is_recent, pages(c).list(limit=100))])

    def _collect(self, intents: list[Intent], pending: PendingBodies) -> Iterator[Answer]:
        """Yields the answers of each batch when it has ended; the rest stays pending."""
        running = list(intents)
        while running:
            time.sleep(self._settings.runtime["batch_poll_seconds"])
            for intent in list(running):
                try:
                    batch = self._retrieve(intent)
                    if not self._batches.has_ended(batch):
                        continue
                    yield from self._results(intent, batch, pending)
                except GoneError as error:
                    LOG.warning("batch %s is submitted anew: %s", intent.batch_id, error)
                running.remove(intent)
                # Only now is it certain that the last answer was taken.
                self._keep(replace(intent, status="done"))

    def _retrieve(self, intent: Intent) -> Any:
        resource = self._batches.resource
        return self._caller.call(lambda client: resource(client).retrieve(intent.batch_id))

    def _results(self, intent: Intent, batch: Any, pending: PendingBodies) -> Iterator[Answer]:
        """Yields the final answers of a batch, joined by custom id, each at most once."""
        waiting, covered = dict(intent.custom_ids), _covered(intent, pending)
        for custom_id, raw in self._batches.results(self._caller, batch):
            request_id = waiting.pop(custom_id, None)
            if request_id is None:
                LOG.warning("batch %s: result %s is unknown or came twice", batch.id, custom_id)
            elif request_id not in covered:
                continue
            elif self._is_final(intent, raw):
                del pending[request_id]
                yield Answer(request_id, raw)
            else:
                self._errors[request_id] = raw["error"]
        if waiting:
            LOG.warning("batch %s: %d results are missing", batch.id, len(waiting))
        errors = getattr(batch, "errors", None)
        why = orjson.dumps(errors.to_dict()).decode() if errors else ""
        missing = make_error("missing", f"{MISSING['message']} {why}".strip())
        self._errors.update(dict.fromkeys(waiting.values(), missing))

    def _is_final(self, intent: Intent, raw: JsonObject) -> bool:
        """Whether a result is the answer, or its request goes into a further batch."""
        error = raw.get("error")
        if error and wants_other_name(self._api, error):
            self._renames = True
            return False
        # An error that was an answer before deserves another attempt when its request comes again.
        return not error or (not error["transient"] and intent.status != "done")

    def _keep(self, intent: Intent) -> Intent:
        self._folder.write_json(f"{intent.id}.json", asdict(intent))
        self._intents[intent.id] = intent
        return intent


def open_remote(settings: Settings, api: Api, batches: BatchApi) -> "BatchEngine | HttpEngine":
    """Returns an endpoint as an engine. Raises `SpecError` for a bad endpoint or no key."""
    if settings.runtime["batch"]:
        return BatchEngine(settings, api, batches)
    from retort.engines._request_pool import HttpEngine

    return HttpEngine(settings, api)


def _covered(intent: Intent, pending: PendingBodies) -> set[str]:
    """Returns the ids of pending requests that an intent holds with the very same body."""
    return {
        request_id
        for custom_id, request_id in intent.custom_ids.items()
        if request_id in pending and custom_id.endswith(_digest(pending[request_id]))
    }


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
