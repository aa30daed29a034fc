"""Machines that train one student together: here each is a process group with a port between them.

What they learn is what the same processes on one machine learn, bit for bit, also when a machine
goes twice on the way: the next try goes on from the checkpoint with the machine that is there.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from retort import processes
from retort.errors import SpecError, StageError
from retort.events import SILENT, Event, Reporter
from retort.jobs import preflight
from retort.processes import nodes
from retort.spec import build, load
from retort.stages.stage import Stage
from retort.store import Folder, open_store
from tests.conftest import ROOT, environment, free_port
from tests.stages.test_child import gone
from tests.stages.test_ranks import notes, run
from tests.support.child_functions import double, killed
from tests.support.tiny import write_job
from tests.support.training import made

WAIT_SECONDS = 300.0
TWO = {"num_nodes": 2}
# Enough steps that none of what happens to a machine on the way comes too late.
KNOBS = {"num_epochs": 30}
NODE = (
    "import argparse, sys; from flows.commands import node; "
    "from flows.commands.options import on_spec; "
    "from retort import processes; processes.GRACE_SECONDS = 1.0; top = argparse.ArgumentParser(); "
    "node.add(top.add_subparsers(), on_spec()); options = top.parse_args(); "
    "sys.exit(options.command(options))"
)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Stage:
    folder = tmp_path_factory.mktemp("nodes")
    job = load(write_job(folder, engine="transformers"))[0]
    return made(job.model_dump(mode="json"), folder)


@pytest.fixture
def rendezvous(monkeypatch) -> str:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(nodes.VARIABLE, address)
    return address


@contextlib.contextmanager
def following(log: Path, *flags: str) -> Iterator[subprocess.Popen]:
    """Another machine, with `retort node`; all that it started is ended, whatever happens."""
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", NODE, "node", *flags],
            stderr=stream,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> list[int]:
    """Kills a machine: all of its processes at once, as a loss of power would. Returns them."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        family = [top, *top.children(recursive=True)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    return [each.pid for each in family]


def until(log: Path, words: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def once_past(step: int, act: Callable[[], object]) -> tuple[list[Event], Reporter]:
    """What is said, and a listener that acts as soon as so many steps are done."""
    said: list[Event] = []
    acted = []

    def listen(event: Event) -> None:
        said.append(event)
        if event["kind"] == "progress" and event["done"] >= step and not acted:
            acted.append(act())

    return said, Reporter(listen)


def student(out: Path) -> bytes:
    return Folder(str(out)).read("student/model.safetensors")


def went_on(said: list[Event]) -> int:
    """After which step a run continued."""
    found = [note for note in notes(said) if note.startswith("continuing after step ")]
    return int(found[0].split()[3])


@pytest.fixture(scope="module")
def on_one_machine(ready, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    run(ready, out, {"num_processes": 2}, **KNOBS)
    return out


def test_two_machines_learn_what_two_processes_of_one_do(
    ready, tmp_path, rendezvous, on_one_machine
):
    said: list[Event] = []
    log = tmp_path / "node"
    with following(log) as node:
        run(ready, tmp_path / "out", TWO, Reporter(said.append), **KNOBS)
        until(log, "ended with exit code 0; waiting to be called again")
        node.send_signal(signal.SIGTERM)
        assert node.wait(WAIT_SECONDS) == 128 + signal.SIGTERM
    how = "2 processes on 2 machines, the student replicated by DDP"
    assert f"training on cpu, {how}, 1 threads" in notes(said)
    assert student(tmp_path / "out") == student(on_one_machine)


def test_a_machine_that_goes_is_said_to_and_the_next_try_goes_on_with_another(
    ready, tmp_path, rendezvous, on_one_machine
):
    out, log = tmp_path / "out", tmp_path / "node"
    often = {**TWO, "checkpoint_seconds": 0}
    pids: list[int] = []
    with following(log) as node:
        _, listener = once_past(4, lambda: pids.extend(kill(node)))
        with pytest.raises(nodes.LostNodeError, match="is gone; the stage needs 2 machines"):
            run(ready, out, often, listener, **KNOBS)
    assert len(pids) >= 3
    assert gone(pids)
    with following(log) as node:
        said, listener = once_past(60, lambda: node.send_signal(signal.SIGTERM))
        with pytest.raises(nodes.LostNodeError, match="asked to end; the stage needs 2") as raised:
            run(ready, out, {**TWO, "checkpoint_seconds": 1e9}, listener, **KNOBS)
        assert node.wait(WAIT_SECONDS) == 128 + signal.SIGTERM
    assert raised.value.transient  # Prefect's task tries it again by itself
    first = went_on(said)
    assert first >= 3
    with following(log, "--rendezvous", rendezvous):
        said = []
        run(ready, out, TWO, Reporter(said.append), **KNOBS)
    # What was asked to end has saved the step that it was at, without a checkpoint being due.
    assert went_on(said) >= 60 > first
    assert student(out) == student(on_one_machine)


def called(function: Callable, log: Path, report: Reporter = SILENT, **arguments: object) -> object:
    runtime = {"timeout_seconds": WAIT_SECONDS, **TWO}
    return processes.run(function, arguments, report, log, runtime)


def test_a_machine_waits_to_be_called_again_when_the_first_one_or_a_process_was_killed(
    tmp_path, rendezvous
):
    log, pids = tmp_path / "node", tmp_path / "pids"
    code = (
        "from pathlib import Path\nfrom tests.stages.test_nodes import called\n"
        "from tests.support.child_functions import sleep_with_grandchild\n"
        f"called(sleep_with_grandchild, Path({str(tmp_path / 'log')!r}), pids={str(pids)!r})\n"
    )
    with following(log) as node:
        first = subprocess.Popen([sys.executable, "-c", code], env=environment(), cwd=ROOT)
        try:
            until(log, "machine 1 of 2")
            deadline = time.monotonic() + WAIT_SECONDS
            while not pids.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            ours = psutil.Process(node.pid).children(recursive=True)
        finally:
            kill(first)
        until(log, "waiting to be called again")
        assert gone([process.pid for process in ours])
        with pytest.raises(nodes.LostNodeError, match=r"a process on .* ended"):
            called(killed, tmp_path / "log")


def test_who_does_not_come_or_has_another_version_is_said(tmp_path, rendezvous, monkeypatch):
    monkeypatch.setattr(nodes, "JOIN_SECONDS", 3.0)
    said: list[Event] = []
    host, port = nodes.endpoint()

    def others(event: Event) -> None:
        said.append(event)
        if event["text"].startswith("waiting"):
            visitors.append(socket.create_connection((host, port)))
            visitors[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
            visitors.append(socket.create_connection((host, port)))
            visitors[1].sendall(b'{"retort": "0.0.0", "name": "old"}\n')

    visitors: list[socket.socket] = []
    try:
        with pytest.raises(
            StageError, match=r"0 of 1 other machines came to port .* `retort node`"
        ):
            called(double, tmp_path / "log", Reporter(others), value=1)
        assert b"use the same image" in visitors[1].recv(1000)
    finally:
        for visitor in visitors:
            visitor.close()
    assert any("has Retort 0.0.0" in note for note in notes(said))
    with socket.create_server(("", port)), pytest.raises(StageError, match="another job may be"):
        called(double, tmp_path / "log", value=1)


def test_a_job_on_several_machines_is_refused_where_they_could_not_meet(ready, monkeypatch):
    raw = ready.spec.model_dump(mode="json")
    raw["train"]["runtime"] |= TWO
    spec, store = build(raw), open_store(ready.store.uri)
    for value, message in [("", "is not set"), ("host", "HOST:PORT"), ("host:many", "HOST:PORT")]:
        monkeypatch.setenv(nodes.VARIABLE, value)
        with pytest.raises(SpecError, match=message):
            preflight.check(spec, store)
    monkeypatch.setenv(nodes.VARIABLE, "[fd00::5]:29400")
    assert nodes.endpoint() == ("fd00::5", 29400)
    assert any("the other 1, with `retort node`" in line for line in preflight.check(spec, store))


def test_a_machine_that_nobody_calls_ends_by_itself(tmp_path, rendezvous):
    with following(tmp_path / "node", "--idle-seconds", "0.5") as node:
        assert node.wait(WAIT_SECONDS) == 0
    assert "no job called for so long; ending" in (tmp_path / "node").read_text()
