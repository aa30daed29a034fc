"""Slots: where a machine has room for one model, the stages with a model wait for one another.

A slot is a lease on a limit of the Prefect server. A thread of its own takes, renews and releases
it, so that an interrupt at any moment leaves no slot taken by nobody. The slot of a machine that is
lost is free again when its lease runs out.
"""

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse

from retort.errors import StageError
from retort.spec import StageName
from tasks.listeners import brief

# Names the server's limit.
SLOT = "RETORT_SLOT"
WITH_A_MODEL: tuple[StageName, ...] = (
    "expand",
    "generate",
    "curate",
    "cut",
    "train",
    "export",
    "evaluate",
)
# A server may be away for this long without a loss of slots.
LEASE_SECONDS = 300.0
RENEW_SECONDS = 30.0
LOOK_SECONDS = 2.0
TAKEN_ELSEWHERE, GONE = httpx.codes.LOCKED, httpx.codes.GONE


@contextlib.contextmanager
def slot(stage: StageName, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a slot of the limit while a stage runs; a reused one never waits.

    Raises `StageError` where the server does not know the limit.
    """
    limit = os.environ.get(SLOT)
    if not limit or stage not in WITH_A_MODEL:
        yield
        return
    held, over = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1, "slot") as keeper:
        try:
            run = contextvars.copy_context().run
            kept: Future[None] = keeper.submit(run, _keep, limit, held, over, say)
            while not held.wait(0.1):
                if kept.done():
                    kept.result()
            yield
        finally:
            over.set()


def _keep(
    limit: str, held: threading.Event, over: threading.Event, say: Callable[[str], None]
) -> None:
    """Takes a slot as soon as one is free, sets `held`, and keeps it until `over` is set."""
    with get_client(sync_client=True) as client:
        if (lease := _take(client, limit)) is None:
            say(f"waiting for a slot of the limit {limit}: other runs have them all")
        while lease is None and not over.wait(LOOK_SECONDS):
            lease = _take(client, limit)
        held.set()
        while lease and not over.wait(RENEW_SECONDS):
            lease = _renew(client, limit, lease, say)
        if lease:
            with brief(), contextlib.suppress(httpx.HTTPError):  # it runs out by itself
                client.release_concurrency_slots_with_lease(lease)


def _take(client: SyncPrefectClient, limit: str) -> UUID | None:
    """Returns the lease of a free slot; None where there is none."""
    try:
        answer = client.increment_concurrency_slots_with_lease(
            [limit], 1, "concurrency", LEASE_SECONDS
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code == TAKEN_ELSEWHERE:
            return None
        raise
    taken = ConcurrencyLimitWithLeaseResponse.model_validate(answer.json())
    if not taken.limits:
        raise StageError(
            f"{SLOT} names the limit {limit!r}, which this Prefect server does not have; make it: "
            f"prefect gcl create {limit} --limit 1"
        )
    return taken.lease_id


def _renew(
    client: SyncPrefectClient, limit: str, lease: UUID, say: Callable[[str], None]
) -> UUID | None:
    """Returns the lease that counts from now on; None where the slot is another run's by now.

    Work that was begun goes on then: ending it would cost more than two models on one machine may.
    """
    with brief(), contextlib.suppress(httpx.HTTPError):  # the server is away; the lease lasts
        try:
            client.renew_concurrency_lease(lease, LEASE_SECONDS)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == GONE:
                if (new := _take(client, limit)) is None:
                    say(f"the server has given the slot of the limit {limit} away; going on")
                return new
    return lease
