"""Slots of a limit on a real Prefect server: who waits says so, and nobody leaves one behind."""

import subprocess
import sys
import time
import uuid

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import slots
from tests.conftest import ask
from tests.support.servers import environment
from tests.support.workers import call, until

# Lives on for a while after it was interrupted, as a run does that Prefect ends.
WAITS = """
import _thread, threading, time
from tasks.slots import slot

def say(text):
    print(text, flush=True)
    threading.Timer(1.0, _thread.interrupt_main).start()

try:
    with slot("train", say):
        print("held", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
time.sleep(6)
"""
HOLDS = """
import sys
from tasks.slots import slot

with slot("train", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def limit(prefect_url):
    name = f"limit-{uuid.uuid4()}"
    call(prefect_url, "POST", "/v2/concurrency_limits/", {"name": name, "limit": 1})
    return name


def num_taken(api, limit):
    return call(api, "GET", f"/v2/concurrency_limits/{limit}")["active_slots"]


def started(code, api, limit):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(PREFECT_API_URL=api, RETORT_SLOT=limit),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_interrupted_while_it_waits_takes_no_slot(prefect_url, limit):
    taken = {"names": [limit], "slots": 1}
    lease = ask(f"{prefect_url}/v2/concurrency_limits/increment-with-lease", taken)["lease_id"]
    with started(WAITS, prefect_url, limit) as waiting:
        assert waiting.stdout.readline().startswith(f"waiting for a slot of the limit {limit}")
        assert waiting.stdout.readline() == "interrupted\n"
        ask(f"{prefect_url}/v2/concurrency_limits/decrement-with-lease", {"lease_id": lease})
        while waiting.poll() is None:
            assert num_taken(prefect_url, limit) == 0
            time.sleep(0.2)
    assert num_taken(prefect_url, limit) == 0


def test_a_slot_is_held_by_one_and_given_back(prefect_url, limit):
    with started(HOLDS, prefect_url, limit) as first:
        assert first.stdout.readline() == "held\n"
        with started(HOLDS, prefect_url, limit) as second:
            assert second.stdout.readline().startswith("waiting for a slot")
            first.stdin.close()
            assert second.stdout.readline() == "held\n"
            assert num_taken(prefect_url, limit) == 1
            second.stdin.close()
    until(lambda: num_taken(prefect_url, limit) == 0)


def test_a_limit_that_the_server_does_not_know_is_told_with_what_makes_it(prefect_url):
    with started(HOLDS, prefect_url, "gpus") as started_:
        assert "StageError: RETORT_SLOT names the limit 'gpus'" in started_.communicate()[1]


def test_a_slot_that_the_server_has_forgotten_is_taken_again_while_it_is_free(prefect_url, limit):
    said, place = [], f"{prefect_url}/v2/concurrency_limits"
    with temporary_settings({PREFECT_API_URL: prefect_url}), get_client(sync_client=True) as client:
        first = slots._take(client, limit)
        assert slots._renew(client, limit, first, said.append) == first
        ask(f"{place}/decrement-with-lease", {"lease_id": str(first)})
        second = slots._renew(client, limit, first, said.append)
        assert second not in (None, first) and num_taken(prefect_url, limit) == 1
        ask(f"{place}/decrement-with-lease", {"lease_id": str(second)})
        ask(f"{place}/increment-with-lease", {"names": [limit], "slots": 1})
        assert slots._renew(client, limit, second, said.append) is None
    assert said == [f"the server has given the slot of the limit {limit} away; going on"]
