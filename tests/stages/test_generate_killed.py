"""generate, killed, stuck or interrupted: what is paid for is kept, and asked only once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import psutil
import pytest

from retort import processes
from retort.events import Reporter
from retort.store import open_store
from tests.conftest import BIN, environment
from tests.support.stages import RUNTIME, job, num_files, run, segments
from tests.support.tiny import save_model, write_rows

ASKED = "num_asked"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "teacher", seed=3)


RUN = """
import json, sys
from tests.support.stages import run
run(json.loads(sys.argv[1]), sys.argv[2])
"""


def start(raw: dict, store: str, **env: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", RUN, json.dumps(raw), store]
    return subprocess.Popen(
        command, env=environment(**env), start_new_session=True, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("place", ["local", "s3"])
def test_kill_9_at_any_moment_loses_nothing_and_asks_nothing_twice(model, tmp_path, s3_here, place):
    store = str(tmp_path / "store") if place == "local" else f"s3://retort/kill/{os.getpid()}"
    rows = write_rows(tmp_path / "train.jsonl", 60_000 if place == "local" else 3_000, seed=1)
    raw = job(model, rows, "echo", spending={"pilot_rows": 0})
    counts = [0]
    for delay in (0.0, 0.05, 0.13, 0.3):
        files = num_files(store)
        process = start(raw, store)
        while process.poll() is None and num_files(store) == files:
            time.sleep(0.01)
        time.sleep(delay)
        kill(process, store)
        counts.append(len(segments(store)))
    questions = [json.loads(line) for line in rows.open()]
    assert counts == sorted(counts)
    assert 0 < counts[1] < len(questions)
    _, responses = run(raw, store)
    assert set(Counter(entry["key"] for entry in segments(store)).values()) == {1}
    given = [(response.example_id, response.text) for response in responses]
    assert given == [(question["id"], question["question"]) for question in questions]


def kill(process: "subprocess.Popen[bytes]", store: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # A child in a group of its own ends once it sees that its parent is gone.
    for _ in range(600):
        if not captures(store):
            return
        time.sleep(0.05)


def captures(store: str) -> list[psutil.Process]:
    """The processes that ask a teacher for this very store: their log lies in it."""
    wanted = {
        "retort.stages.generate.capture:capture",
        str(open_store(store).local_state() / "log"),
    }
    return [p for p in psutil.process_iter(["cmdline"]) if wanted <= set(p.info["cmdline"] or [])]


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stuck_engine_is_started_again_on_what_is_missing(
    model, tmp_path, monkeypatch, death
):
    monkeypatch.setattr(
        processes, "GRACE_SECONDS", 1.0
    )  # a stopped process does not end when asked
    store = str(tmp_path / "store")
    number = 60 if death == signal.SIGKILL else 240
    rows = write_rows(tmp_path / "train.jsonl", number, seed=1)
    runtime = {**RUNTIME, "max_num_seqs": 2, "stall_seconds": 5, "max_restarts": 1}
    knobs = {"max_tokens": 200, "runtime": runtime, "spending": {"pilot_rows": 0}}
    raw = job(model, rows, "transformers", temperature=2.0, **knobs)
    said: list[str] = []

    def listen(event):
        said.append(event.get("text", ""))

    done: list = []
    thread = threading.Thread(target=lambda: done.append(run(raw, store, Reporter(listen))))
    thread.start()
    deadline = time.monotonic() + 120
    while not segments(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    (victim,) = captures(store)
    if death == signal.SIGSTOP:
        time.sleep(1.5)  # a first sign of life is needed before silence means anything
    before = len(segments(store))
    victim.send_signal(death)
    thread.join()
    facts, responses = done[0]
    assert facts["num_restarts"] == 1
    assert any("starting it again on what is missing, 1 sequences" in text for text in said)
    assert len(responses) == number
    assert 0 < before < facts[ASKED] == len(segments(store))
    assert set(Counter(entry["key"] for entry in segments(store)).values()) == {1}


def test_an_interrupt_commits_what_is_finished(model, tmp_path, prefect_url):
    rows = write_rows(tmp_path / "train.jsonl", 400, seed=1)
    knobs = {"max_tokens": 200, "spending": {"pilot_rows": 0}}
    raw = job(model, rows, "transformers", temperature=2.0, **knobs)
    (tmp_path / "job.yaml").write_text(json.dumps(raw))
    store = str(tmp_path / "store")
    process = subprocess.Popen(
        [str(BIN / "retort"), "run", str(tmp_path / "job.yaml"), "--store", store],
        env=environment(PREFECT_API_URL=prefect_url),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not segments(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)  # less than what is committed by time alone
    before = len(segments(store))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert before < len(segments(store)) < 400
