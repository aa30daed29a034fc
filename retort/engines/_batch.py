"""Chats answered by a provider's batches: half the price, an answer within a day.

What is going to be submitted is written down first, so that a process killed at any moment finds
its batch again and pays once. The surprise: a batch whose answers were all given is read again
where they are asked for again; reading is free.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import orjson

from retort.engines import Answer, Request, Settings
from retort.engines._calls import Caller, GoneError
from retort.engines._endpoint import (
    UNREADABLE,
    Api,
    Error,
    as_json,
    facts_of,
    fault,
    names_another,
    open_door,
    renamed,
)
from retort.errors import SpecError
from retort.store import Folder

LOG = logging.getLogger(__name__)
# How far the provider's clock may be behind ours.
CLOCK_SECONDS = 3600.0
# What surrounds a request in a batch, at most.
ROW_BYTES = 256
Pending = dict[str, bytes]  # ids of requests that are still to be answered, and their bodies
MISSING = fault("missing", "the batch has no result for it")


@dataclass(frozen=True)
class Intent:
    """A batch that was going to be submitted; `custom_ids` lead to the ids of requests.

    A custom id ends with the digest of what was asked: only the very same is answered by it.
    """

    id: str
    custom_ids: dict[str, str]
    created_at: float
    status: str = "intended"  # then submitted, then done
    batch_id: str | None = None


@dataclass(frozen=True)
class BatchApi:
    """What tells one provider's batches from another's; `path` is where they are made and listed.

    `claims` says whether a batch came from an intent, None where only its results will tell.
    """

    path: str
    cursor: str
    max_requests: int
    max_bytes: int
    row: Callable[[str, Any], dict[str, Any]]  # of a custom id and a body
    order: Callable[[Caller, str, list[bytes]], bytes]  # of an intent's id and rows
    created_at: Callable[[dict[str, Any]], float]
    has_ended: Callable[[dict[str, Any]], bool]
    claims: Callable[[Caller, dict[str, Any], Intent], bool | None]
    results: Callable[[Caller, dict[str, Any]], Iterator[tuple[str, dict[str, Any]]]]


class BatchEngine:
    """An endpoint that answers chats in batches."""

    def __init__(self, settings: Settings, api: Api, batches: BatchApi):
        if settings.state is None:
            raise SpecError("batches need a folder that remembers them: settings.state")
        self._settings, self._api, self._batches = settings, api, batches
        self._caller = Caller(open_door(settings, api))
        self._folder = Folder(f"{settings.state}/batches")
        self._errors: dict[str, Error] = {}
        self._renamed = False
        self.facts = facts_of(self._caller.door, api)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields answers batch by batch; what is asked up to a `None` goes into batches together.

        Raises `StageError` for a bad key, or when no batch can be made.
        """
        stored = [self._folder.read_json(name) for name in self._folder.files()]
        self._intents = {value["id"]: Intent(**value) for value in stored}
        source = iter(requests)
        while asked := [request for request in takewhile(_is_request, source) if request]:
            yield from self._answer(asked)

    def _answer(self, requests: list[Request]) -> Iterator[Answer]:
        """Answers from batches that stand already, then from new ones, at most `max_attempts`."""
        pending: Pending = {}
        for request in requests:
            try:
                pending[request.id] = orjson.dumps(self._api.body(self._settings, request))
            except UNREADABLE as bad:
                error = fault("unsendable", f"{type(bad).__name__}: {bad}")
                yield Answer(request.id, {"error": error})
        standing = [i for i in self._intents.values() if _covered(i, pending)]
        running = [i for i in map(self._adopted, standing) if i]
        covered = set[str]().union(*(_covered(i, pending) for i in running))
        fresh = {key: body for key, body in pending.items() if key not in covered}
        running += [self._submit(part) for part in self._parts(fresh)]
        yield from self._collect(running, pending)
        for _ in range(self._settings.runtime["max_attempts"] - (not standing)):
            yield from self._collect([self._submit(p) for p in self._parts(pending)], pending)
        for request_id in pending:
            yield Answer(request_id, {"error": self._errors.get(request_id, MISSING)})

    def _parts(self, pending: Pending) -> Iterator[Pending]:
        """Yields as many requests as the provider takes in one batch, until all are in one."""
        part: Pending = {}
        size = 0
        for request_id, body in pending.items():
            size += len(body) + ROW_BYTES
            if part and (len(part) == self._batches.max_requests or size > self._batches.max_bytes):
                yield part
                part, size = {}, len(body) + ROW_BYTES
            part[request_id] = body
        if part:
            yield part

    def _submit(self, part: Pending) -> Intent:
        """Makes one batch, and never a second of it: after any doubt the provider's list decides.

        Raises `StageError` when the provider refuses it.
        """
        name, batches, caller = uuid.uuid4().hex[:16], self._batches, self._caller
        custom_ids = {
            f"{name}-{index}-{_digest(body)}": request_id
            for index, (request_id, body) in enumerate(part.items())
        }
        rows = [
            orjson.dumps(batches.row(custom_id, self._sent(part[request_id])))
            for custom_id, request_id in custom_ids.items()
        ]
        intent = self._keep(Intent(name, custom_ids, time.time()))
        order, started, num_calls = batches.order(caller, name, rows), time.monotonic(), 0
        while True:
            reply = as_json(caller.door, caller.once("POST", batches.path, order))
            if reply.error is None:
                batch_id = reply.data["id"]
            else:
                num_calls += 1
                caller.wait(reply, num_calls, started)
                batch_id = self._find(intent)
            if batch_id:
                return self._keep(replace(intent, status="submitted", batch_id=batch_id))

    def _sent(self, body: bytes) -> Any:
        return renamed(self._api, orjson.loads(body)) if self._renamed else orjson.Fragment(body)

    def _adopted(self, intent: Intent) -> Intent | None:
        """Returns an intent with its batch; one that never became a batch is forgotten."""
        if intent.batch_id:
            return intent
        if batch_id := self._find(intent):
            return self._keep(replace(intent, status="submitted", batch_id=batch_id))
        self._folder.remove(f"{intent.id}.json")
        del self._intents[intent.id]
        return None

    def _find(self, intent: Intent) -> str | None:
        """Returns the id of the batch that an intent became, if it did."""
        known = {other.batch_id for other in self._intents.values()}
        while True:
            unsure = False
            for batch in self._listed(intent.created_at - CLOCK_SECONDS):
                if batch["id"] in known:
                    continue
                claimed = self._batches.claims(self._caller, batch, intent)
                if claimed:
                    return str(batch["id"])
                unsure |= claimed is None
                if claimed is False:
                    known.add(batch["id"])
            if not unsure:
                return None
            time.sleep(self._settings.runtime["batch_poll_seconds"])

    def _listed(self, since: float) -> Iterator[dict[str, Any]]:
        """Yields the provider's batches, the newest first."""
        query = "limit=100"
        while True:
            page = orjson.loads(self._caller.call("GET", self._batches.path, query=query))
            for batch in page["data"]:
                if self._batches.created_at(batch) < since:
                    return
                yield batch
            if not page.get("has_more") or not page["data"]:
                return
            query = f"limit=100&{self._batches.cursor}={page['data'][-1]['id']}"

    def _collect(self, intents: list[Intent], pending: Pending) -> Iterator[Answer]:
        """Yields the answers of each batch when it has ended; what it left open stays pending."""
        running = list(intents)
        while running:
            time.sleep(self._settings.runtime["batch_poll_seconds"])
            for intent in list(running):
                try:
                    path = f"{self._batches.path}/{intent.batch_id}"
                    batch = orjson.loads(self._caller.call("GET", path))
                    if not self._batches.has_ended(batch):
                        continue
                    yield from self._results(intent, batch, pending)
                except GoneError as error:
                    LOG.warning("batch %s is asked anew: %s", intent.batch_id, error)
                running.remove(intent)
                # Only now is it certain that the last answer was taken.
                self._keep(replace(intent, status="done"))

    def _results(self, intent: Intent, batch: dict[str, Any], pending: Pending) -> Iterator[Answer]:
        """Yields the final answers of a batch, joined by custom id, each at most once."""
        waiting, covered = dict(intent.custom_ids), _covered(intent, pending)
        for custom_id, raw in self._batches.results(self._caller, batch):
            request_id = waiting.pop(custom_id, None)
            if request_id is None:
                LOG.warning("batch %s: result %s is unknown or came twice", batch["id"], custom_id)
            elif request_id not in covered:
                continue
            elif self._is_final(intent, raw):
                del pending[request_id]
                yield Answer(request_id, raw)
            else:
                self._errors[request_id] = raw["error"]
        if waiting:
            LOG.warning("batch %s: %d results are missing", batch["id"], len(waiting))
        why = orjson.dumps(batch.get("errors")).decode() if batch.get("errors") else ""
        missing = {**MISSING, "message": f"{MISSING['message']} {why}".strip()[:500]}
        self._errors.update(dict.fromkeys(waiting.values(), missing))

    def _is_final(self, intent: Intent, raw: dict[str, Any]) -> bool:
        """Whether a result is given as it is, or its request is asked again."""
        error = raw.get("error")
        if error and names_another(self._api, error):
            self._renamed = True
            return False
        # An error that was given before and is asked for again deserves another attempt.
        return not error or (not error["transient"] and intent.status != "done")

    def _keep(self, intent: Intent) -> Intent:
        self._folder.write_json(f"{intent.id}.json", asdict(intent))
        self._intents[intent.id] = intent
        return intent


def _is_request(request: Request | None) -> bool:
    return request is not None


def _covered(intent: Intent, pending: Pending) -> set[str]:
    """Returns the ids of what is pending and was asked in an intent, in the very same words."""
    return {
        request_id
        for custom_id, request_id in intent.custom_ids.items()
        if request_id in pending and custom_id.endswith(_digest(pending[request_id]))
    }


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
