"""Leases: of several processes one holds a name, and what a lost one held is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from retort.store import Folder
from retort.store.leases import Holder, _started
from tests.support.servers import environment

HOLDS_FOR_EVER = """
import sys, time
from retort.store import Folder
from retort.store.leases import Holder
with Holder(Folder(sys.argv[1]), beat_seconds=0.1) as holder:
    assert holder.take("it")
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, s3_here):
    return Folder(str(tmp_path) if request.param == "local" else f"s3://retort/{tmp_path.name}")


def test_of_many_who_try_at_once_one_gets_each_name(folder):
    taken, barrier = [], threading.Barrier(4)

    def race(number):
        with Holder(folder) as holder:
            barrier.wait()
            taken.extend(name for name in map(str, range(5)) if holder.take(name))
            barrier.wait()

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [str(number) for number in range(5)]


def test_what_was_held_is_free_again_afterwards_unless_it_was_finished(folder):
    with Holder(folder) as first, Holder(folder) as other:
        assert first.take("it") and first.take("it")
        assert not other.take("it") and other.states(["it"])["it"] == "held"
        assert other.states(["else"])["else"] == "free"
    with Holder(folder) as second:
        assert second.take("it")
        second.finish()
    with Holder(folder) as third:
        assert third.states(["it"])["it"] == "done" and not third.take("it")


def test_what_is_done_in_error_is_free(folder):
    def fail():
        with Holder(folder) as holder:
            holder.take("it")
            holder.finish()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with Holder(folder) as other:
        assert other.take("it")


def holding(path):
    command = [sys.executable, "-c", HOLDS_FOR_EVER, path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout.readline() == "held\n"
    return process


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(tmp_path):
    process = holding(str(tmp_path))
    with Holder(Folder(str(tmp_path))) as other:
        assert not other.take("it")
        process.kill()
        process.wait()
        assert other.take("it")


def test_a_silent_holder_loses_what_it_held_and_learns_of_it(tmp_path):
    process = holding(str(tmp_path))
    process.send_signal(signal.SIGSTOP)  # as a machine that cannot be reached
    try:
        with Holder(Folder(str(tmp_path)), beat_seconds=0.1, lost_seconds=0.5) as other:
            deadline = time.monotonic() + 60
            while not other.take("it"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert other.states(["it"])["it"] == "held"
    finally:
        process.kill()
        process.wait()


def test_whoever_was_silent_for_too_long_is_told_that_another_holds_it(tmp_path):
    folder, told = Folder(str(tmp_path)), threading.Event()
    with Holder(folder, told.set, beat_seconds=0.2) as slow:
        assert slow.take("it")
        with Holder(folder, lost_seconds=0.0) as other:  # every holder is lost to this one
            while not other.take("it"):
                time.sleep(0.01)
            assert told.wait(60)
            assert not slow.take("it")


def test_when_a_process_started_is_counted_from_the_boot_whatever_the_clock_says():
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    ticks = _started(os.getpid()) / os.sysconf("SC_CLK_TCK")
    age = time.time() - psutil.Process().create_time()
    assert ticks == pytest.approx(uptime - age, abs=2)


def test_a_process_that_got_the_number_of_one_that_ended_is_another(tmp_path):
    with Holder(Folder(str(tmp_path))) as holder:
        assert holder.take("it")
        path = tmp_path / f"holders/{holder.id}.json"
        facts = json.loads(path.read_text())
        with Holder(Folder(str(tmp_path))) as other:
            assert other.states(["it"])["it"] == "held"
            path.write_text(json.dumps({**facts, "started": facts["started"] - 1, "beats": 99}))
            assert other.states(["it"])["it"] == "free"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"state": 7}', '{"told": {"a": 1}}'])
def test_a_holder_whose_file_cannot_be_read_is_lost_after_a_while(tmp_path, content):
    (tmp_path / "claims").mkdir()
    (tmp_path / "holders").mkdir()
    (tmp_path / "claims/it.0001").write_text("abc")
    (tmp_path / "holders/abc.json").write_text(content)
    with Holder(Folder(str(tmp_path)), lost_seconds=0.3) as holder:
        assert not holder.take("it")
        time.sleep(0.4)
        assert holder.take("it")


@pytest.mark.parametrize(("state", "expected"), [("left", "free"), ("done", "done")])
def test_what_older_versions_left_is_understood(tmp_path, state, expected):
    (tmp_path / "claims").mkdir()
    (tmp_path / "holders").mkdir()
    (tmp_path / "claims/it.0001").write_text("abc")
    facts = {"state": state, "beats": 3, "told": {}, "machine": "m", "pid": 7, "born": 1.7e9}
    (tmp_path / "holders/abc.json").write_text(json.dumps(facts))
    (tmp_path / "claims/empty.0001").write_text("")
    with Holder(Folder(str(tmp_path))) as holder:
        assert holder.states(["it", "empty"]) == {"it": expected, "empty": "free"}
        assert holder.take("empty")
