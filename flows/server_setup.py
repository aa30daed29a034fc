"""Prepares a Prefect server for Retort: work pools, a limit, automations, a block. Idempotent.

`python -m flows.server_setup` makes what is missing and updates its own automations and block. It
leaves everything else alone, also a limit or pool that someone has changed by hand. A self-hosted
server does not notice that a run's machine has died; the first automation does.
"""

import argparse
import asyncio
import copy
import json
import os
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from retort.jobs.notify import NOTIFY_URL
from retort.records import JsonObject

# Prefect's kind of worker by the name of the pool.
POOLS = {
    "retort-process": "process",
    "retort-docker": "docker",
    "retort-kubernetes": "kubernetes",
}
GPU_LIMIT = "gpu"
# Failures are posted to an address that takes JSON with a `text`, as Slack and Mattermost do.
BLOCK = "retort-failures"
KUBERNETES_TEMPLATE = (
    Path(__file__).parent.parent / "deployments" / "kubernetes" / "gpu-job-template.json"
)
RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
BEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and prints a line for each thing that was made, updated or there."""
    parser = argparse.ArgumentParser(prog="flows.server_setup", description=__doc__)
    parser.add_argument("--pool", action="append", choices=POOLS, help="make only these work pools")
    parser.add_argument(
        "--gpus", type=int, default=1, help="stages with a model that may run at a time"
    )
    parser.add_argument(
        "--crashed-after",
        type=int,
        default=1200,
        metavar="SECONDS",
        help="a run without a sign of life for so long is marked Crashed",
    )
    parser.add_argument(
        "--notify",
        metavar="TYPE/NAME",
        help=f"the notification block that failures are sent to (default: one of {NOTIFY_URL})",
    )
    options = parser.parse_args(arguments)
    made = bootstrap(options.pool, options.gpus, options.crashed_after, options.notify)
    for line in asyncio.run(made):
        print(line)


async def bootstrap(
    pools: list[str] | None, gpus: int, crashed_after: int, notify: str | None = None
) -> list[str]:
    """Returns one line for each thing that the server has now."""
    async with get_client() as client:
        lines = [await pool(client, name) for name in pools or POOLS]
        lines.append(await limit(client, gpus))
        lines.append(await automation(client, crashed(crashed_after)))
        if notify:
            lines.append(await automation(client, failed(await _block(client, notify))))
        elif url := os.environ.get(NOTIFY_URL):
            lines.append(f"block custom-webhook/{BLOCK}: up to date")
            lines.append(await automation(client, failed(await webhook(client, url))))
    return lines


async def pool(client: PrefectClient, name: str) -> str:
    """Makes a work pool, unless it is there, with the job template of its kind."""
    try:
        await client.read_work_pool(name)
        return f"work pool {name}: is there"
    except ObjectNotFound:
        kinds = {
            kind: facts["default_base_job_configuration"]
            for package in (await client.read_worker_metadata()).values()
            for kind, facts in package.items()
        }
        kind = POOLS[name]
        template = kinds[kind]
        if kind in OWN_TEMPLATES:
            template = OWN_TEMPLATES[kind](template)
        await client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, base_job_template=template)
        )
        return f"work pool {name}: made, for {kind} workers"


def _of_kubernetes(default: JsonObject) -> JsonObject:
    template: JsonObject = json.loads(KUBERNETES_TEMPLATE.read_text(encoding="utf-8"))
    return template


def _of_docker(default: JsonObject) -> JsonObject:
    """Returns the default template with a variable for further settings of a container."""
    name = "container_create_kwargs"
    knob = {"type": "object", "title": "Further settings", "default": {}}
    knob["description"] = "What docker's own client takes to make a container: GPUs, memory ..."
    template = copy.deepcopy(default)
    template["job_configuration"][name] = f"{{{{ {name} }}}}"
    template["variables"]["properties"][name] = knob
    return template


OWN_TEMPLATES = {"kubernetes": _of_kubernetes, "docker": _of_docker}


async def limit(client: PrefectClient, number: int) -> str:
    """Makes the limit that GPU stages wait for, unless it is there."""
    try:
        found = await client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        return f"limit {GPU_LIMIT}: is there, {found.limit} at a time"
    except ObjectNotFound:
        await client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=number)
        )
        return f"limit {GPU_LIMIT}: made, {number} at a time"


async def automation(client: PrefectClient, wanted: AutomationCore) -> str:
    """Makes an automation, or brings the one of its name up to date."""
    existing = await client.read_automations_by_name(wanted.name)
    if not existing:
        await client.create_automation(wanted)
        return f"automation {wanted.name}: made"
    await client.update_automation(existing[0].id, wanted)
    for double in existing[1:]:
        await client.delete_automation(double.id)
    return f"automation {wanted.name}: up to date"


def crashed(seconds: int) -> AutomationCore:
    """Returns the automation that marks a run as Crashed when its heartbeat stops.

    Source: Prefect's guide "Detect zombie flows"; the heartbeat comes every
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds.
    """
    return AutomationCore(
        name="retort: crashed runs",
        description="A run without a heartbeat is Crashed, so that it can be retried.",
        trigger=EventTrigger(
            after={BEAT},
            expect={BEAT, *ENDS},
            match=RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message=f"no sign of life for {seconds} seconds; retry continues where it stopped",
            )
        ],
    )


async def webhook(client: PrefectClient, url: str) -> UUID:
    """Makes the block that posts a JSON object with the one key `text`, as chats take it, or gives
    it another URL; returns its id. The URL often holds a key, so it is kept as a secret."""
    block = CustomWebhookNotificationBlock(
        name=BLOCK,
        url="{{url}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        headers=None,
        cookies=None,
        secrets=SecretDict({"url": url}),
    )
    await block.asave(BLOCK, overwrite=True, client=client)
    return await _block(client, f"custom-webhook/{BLOCK}")


def failed(block_id: UUID) -> AutomationCore:
    """Returns the automation that sends failed and crashed runs to a notification block."""
    return AutomationCore(
        name="retort: failures",
        description="Someone is notified when a job failed or crashed.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match=RUNS,
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="Retort: {{ flow_run.name }} {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ (flow_run | ui_url) or flow_run.id }}",
            )
        ],
    )


async def _block(client: PrefectClient, block: str) -> UUID:
    kind, _, name = block.partition("/")
    try:
        return (await client.read_block_document_by_name(name, kind)).id
    except ObjectNotFound:
        raise SystemExit(
            f"--notify {block}: no such block; give TYPE/NAME of a notification block, such as "
            f"slack-webhook/alerts, made on the page Blocks, or set {NOTIFY_URL}"
        ) from None


if __name__ == "__main__":
    main()
