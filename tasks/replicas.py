"""Replicas: more workers of the pool answer a job's examples, each in a flow run of its own.

The job says when its pilot has passed and where to meet; here the flow runs are made, and ended
with the stage. Where nobody can help, the job answers all by itself: a replica changes how fast a
job is, never what it gives.
"""

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelling

from retort.events import Event, Reporter
from retort.jobs.run import JobRun
from retort.stages.generate import help_generate
from retort.store import Store
from tasks.listeners import tell
from tasks.slots import slot

GRACE_SECONDS = 5.0


@contextlib.contextmanager
def with_replicas(job: JobRun) -> Iterator[None]:
    """While the block lasts, the job's wish for replicas is met; those it began end with it."""
    heard, begun = job.listen, list[UUID]()

    def listen(stage: str, event: Event) -> None:
        if event["kind"] != "shared":
            heard(stage, event)
            return
        begun.extend(_begin(event))
        text = f"{len(begun)} replicas were asked to help"
        if not begun:
            text = (
                f"generate.runtime.replicas wants {event['number']} more workers, and this run has "
                "no server with a deployment `replica`: see docs/operations.md; going on alone"
            )
        heard(stage, {"kind": "note", "text": text})

    job.listen = listen
    done = False
    try:
        yield
        done = True
    finally:
        job.listen = heard
        if begun:
            _end(begun, GRACE_SECONDS if done else 0.0)


@task(name="answer", cache_policy=NO_CACHE, persist_result=False)
def answer(given: dict[str, Any], number: int) -> int:
    """Answers a share of a job's examples; returns how many requests this sent."""
    spec = given["arguments"]["spec"]
    log = Store(given["arguments"]["store"]).log(f"{spec['name']}-replica-{number}")
    say = partial(tell, "generate")
    with slot("generate", lambda text: say({"kind": "note", "text": text})):
        return help_generate(given, log, Reporter(say))


def _begin(event: Event) -> list[UUID]:
    """Asks the deployment `replica` of the job's own kind for flow runs; none where there is none.

    A job that was not started from a deployment takes that of process workers.
    """
    name = f"replica/{deployment.get_name() or 'process'}-replica"
    parent = flow_run.get_name() or "job"
    found = []
    for number in range(1, event["number"] + 1):
        given = {"given": event["given"], "number": number}
        try:
            made = run_deployment(
                name, None, given, timeout=0, flow_run_name=f"{parent}-replica-{number}"
            )
        except (ObjectNotFound, httpx.HTTPError):
            break
        found.append(cast(FlowRun, made).id)
    return found


def _end(begun: list[UUID], grace_seconds: float) -> None:
    """Ends the flow runs that have not ended by themselves after a while: nobody needs them."""
    deadline = time.monotonic() + grace_seconds
    with get_client(sync_client=True) as client:
        while _under_way(client, begun) and time.monotonic() < deadline:
            time.sleep(1.0)
        for run in _under_way(client, begun):
            client.set_flow_run_state(run, Cancelling(message="the job's own run has ended"))


def _under_way(client: SyncPrefectClient, runs: list[UUID]) -> list[UUID]:
    states = {run: client.read_flow_run(run).state for run in runs}
    return [run for run, state in states.items() if state and not state.is_final()]
