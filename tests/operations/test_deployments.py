"""A Prefect server prepared for Retort: what is made once is there once, however often."""

import asyncio
import itertools
import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server_setup import POOLS
from tests.conftest import ask
from tests.support.servers import BIN, ROOT, environment


@pytest.fixture
def bootstrap(prefect_url):
    def run(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "flows.server_setup", *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
            env=environment(PREFECT_API_URL=prefect_url, **env),
            check=False,
        )

    return run


def test_twice_is_once_and_what_someone_changed_by_hand_stays(bootstrap, prefect_url):
    first = bootstrap("--gpus", "2")
    assert first.returncode == 0, first.stderr
    second = bootstrap("--gpus", "4", "--crashed-after", "600")
    assert "work pool retort-process: is there" in second.stdout
    assert "limit gpu: is there, 2 at a time" in second.stdout

    async def found():
        async with get_client() as client:
            pools = {pool.name: pool for pool in await client.read_work_pools()}
            return (
                {name: pools[name].type for name in POOLS},
                [a.trigger.within.total_seconds() for a in await client.read_automations()],
            )

    with temporary_settings({PREFECT_API_URL: prefect_url}):
        kinds, waits = asyncio.run(found())
    assert kinds == POOLS
    assert waits == [600]


def deploy(api: str, *which: str) -> None:
    """Runs `prefect deploy` of the file that is shipped."""
    done = subprocess.run(
        [
            *(str(BIN / "prefect"), "--no-prompt", "deploy", *which),
            *("--prefect-file", "deployments/prefect.yaml"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environment(PREFECT_API_URL=api, RETORT_STORE="s3://bucket/retort"),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def deployed(bootstrap, prefect_url):
    """The server after `prefect deploy --all`; its address."""
    assert bootstrap().returncode == 0
    deploy(prefect_url, "--all")
    return prefect_url


def test_the_pattern_of_the_stack_deploys_every_flow_for_one_kind_of_pool(bootstrap, prefect_url):
    assert bootstrap().returncode == 0
    deploy(prefect_url, "--name", "*/docker")
    for flow in ("distill", "plan", "sweep"):
        assert named(prefect_url, f"{flow}/docker")["work_pool_name"] == "retort-docker"


def named(api, name):
    return json.loads(urllib.request.urlopen(f"{api}/deployments/name/{name}").read())


def test_the_shipped_deployments_are_checked_by_the_server_and_their_schedules_sleep(deployed):
    pools = dict(zip(("process", "docker", "kubernetes"), POOLS, strict=True))
    kinds = {**pools, "kubernetes-ray": pools["kubernetes"]}
    for flow, kind in itertools.product(("distill", "plan", "sweep"), kinds):
        shipped = named(deployed, f"{flow}/{kind}")
        assert shipped["work_pool_name"] == kinds[kind]
        assert shipped["entrypoint"] == f"flows/{flow}.py:{flow}"
        assert shipped["parameters"] == {"store": "s3://bucket/retort"}
        active = [schedule["active"] for schedule in shipped["schedules"]]
        assert active == ([False] if flow == "distill" else [])
        assert shipped["pull_steps"]
        assert shipped["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert shipped["enforce_parameter_schema"]
        assert "learning_rate" in str(shipped["parameter_openapi_schema"])
        with pytest.raises(urllib.error.HTTPError, match="409"):
            ask(f"{deployed}/deployments/{shipped['id']}/create_flow_run", {"parameters": {}})


def test_an_unknown_block_is_refused_with_what_to_give(bootstrap):
    done = bootstrap("--notify", "slack-webhook/nowhere")
    assert done.returncode == 1
    assert "no such block; give TYPE/NAME" in done.stderr


def test_a_block_is_made_of_an_address_and_hides_it(bootstrap, prefect_url):
    for secret in ("https://chat.example/first", "https://chat.example/second"):
        done = bootstrap(RETORT_NOTIFY_URL=secret)
        assert done.returncode == 0, done.stderr
        assert "block custom-webhook/retort-failures: up to date" in done.stdout
        assert secret not in done.stdout + done.stderr
    (block,) = ask(f"{prefect_url}/block_documents/filter", {})
    assert block["name"] == "retort-failures" and "chat.example" not in json.dumps(block)
    names = [each["name"] for each in ask(f"{prefect_url}/automations/filter", {})]
    assert names.count("retort: failures") == 1
