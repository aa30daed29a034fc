"""How a command ends: nobody reads it any more, SIGTERM, a server that goes away; and how the first
one of all begins, on a machine on which nothing was ever run."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import command, servers
from tests.support.servers import BIN, QUIET, ROOT, environment
from tests.support.tiny import write_job

PATIENCE_SECONDS = 240.0


@pytest.fixture(scope="module")
def ran(tmp_path_factory, prefect_url):
    """The folder of a job that has run, with many answers."""
    folder = tmp_path_factory.mktemp("ran")
    write_job(folder, "echo", num_epochs=1)
    rows = [{"question": f"Say {n}.", "answer": str(n)} for n in range(600)]
    (folder / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = ["--set=generate.spending.pilot_rows=0", "--set=prepare.deduplicate.near=false"]
    done = command.run("run", "job.yaml", *knobs, cwd=folder, PREFECT_API_URL=prefect_url)
    assert done.returncode in (0, 3), done.stderr
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "rows job.yaml --set=generate.spending.pilot_rows=0 --set=prepare.deduplicate.near=false",
        "rows job.yaml --json --set=prepare.deduplicate.near=false",
        "schema",
        "why job.yaml",
        "compare tiny tiny",
        "doctor",
        "gc",
        "list",
        "--help",
    ],
)
def test_a_command_ends_quietly_where_nobody_reads_it(ran, words, prefect_url):
    reading, writing = os.pipe()
    os.close(reading)
    done = command.run(*words.split(), cwd=ran, stdout=writing, PREFECT_API_URL=prefect_url)
    os.close(writing)
    assert done.returncode == 141
    assert "roken" not in done.stderr and "Traceback" not in done.stderr


def test_the_first_lines_are_read_and_the_rest_is_not(ran):
    words = "rows job.yaml --json --set=prepare.deduplicate.near=false"
    command = f"{BIN}/retort {words} 2>err | head -2"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ran, env=environment(), stdout=subprocess.PIPE, check=False
    )
    assert len(done.stdout.splitlines()) == 2
    assert "roken" not in (ran / "err").read_text()


@contextmanager
def started(folder, *words, **env):
    """A `retort run` that is under way, whose lines go to `lines`; it ends with the block."""
    with (folder / "lines").open("w") as lines:
        run = subprocess.Popen(
            [*words, str(BIN / "retort"), "run", "job.yaml"],
            stdout=lines,
            stderr=lines,
            cwd=folder,
            env=environment(**env),
            start_new_session=True,
        )
        try:
            yield run
        finally:
            run.kill()
            run.wait()


def said(folder):
    return (folder / "lines").read_text()


def until(folder, text, run):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while text not in said(folder):
        assert run.poll() is None and time.monotonic() < deadline, said(folder)
        time.sleep(0.1)


def test_sigterm_says_what_was_kept_and_the_same_command_continues(tmp_path, prefect_url):
    write_job(tmp_path, "echo", num_epochs=100_000)
    with started(tmp_path, PREFECT_API_URL=prefect_url) as run:
        until(tmp_path, "train: started", run)
        run.terminate()
        assert run.wait(120) == 143
    assert "kept: prepare, generate, curate" in said(tmp_path)
    assert "ended by SIGTERM; finished work is kept" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


def can_unshare():
    words = ["unshare", "--pid", "--fork", "--kill-child", "true"]
    return os.path.exists("/usr/bin/unshare") and subprocess.run(words, check=False).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no process can be made the first of its own here")
def test_sigterm_ends_the_first_process_of_a_container_too(tmp_path, prefect_url):
    write_job(tmp_path, "echo", num_epochs=100_000)
    first = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with started(tmp_path, *first, PREFECT_API_URL=prefect_url) as run:
        until(tmp_path, "train: started", run)
        (inside,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(inside), signal.SIGTERM)
        assert run.wait(120) == 143
    assert "kept: prepare, generate, curate" in said(tmp_path)


def test_a_server_that_goes_away_stops_no_stage_and_delays_none(tmp_path):
    """Each of a stage's events took a minute when the server was gone."""
    home = tmp_path / "server"
    home.mkdir()
    write_job(tmp_path, "echo", num_epochs=200)
    try:
        url = servers.prefect(home)
        with started(tmp_path, PREFECT_API_URL=url) as run:
            until(tmp_path, "train: started", run)
            servers.end_all(tmp_path)
            until(tmp_path, "release: done", run)
            made = time.monotonic()
            assert run.wait(PATIENCE_SECONDS) == 3, said(tmp_path)
            assert time.monotonic() - made < 60
    finally:
        servers.end_all(tmp_path)
    lines = said(tmp_path)
    assert lines.count("the Prefect server does not answer") <= 1
    assert "Error logging" not in lines and "failed to process item" not in lines
    assert "the job's end could not be reported to Prefect" in lines
    manifests = {path.parts[-3]: json.loads(path.read_text()) for path in found(tmp_path)}
    assert {"prepare", "train", "release"} <= manifests.keys()
    seconds = float(re.search(r"report: done in ([\d.]+) s", lines)[1])
    assert seconds < manifests["report"]["seconds"] + 15.0


def found(folder):
    return (folder / ".retort/artifacts").glob("*/*/manifest.json")


@pytest.mark.parametrize("unset", [True, False], ids=["unset", "empty folders"])
def test_the_first_run_of_everything_on_an_empty_home(tmp_path, s3, unset):
    job = write_job(tmp_path / "job", "echo", num_epochs=1)
    home, place = tmp_path / "home", tmp_path / "place"
    home.mkdir(), place.mkdir()
    env = {**QUIET, **s3, "PATH": f"{BIN}{os.pathsep}/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1"}
    if not unset:
        folders = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "PREFECT_HOME")
        env |= {name: str(home / name.lower()) for name in folders} | {"HOME": str(home)}
    store = f"s3://retort/first-{unset}"
    done = subprocess.run(
        [str(BIN / "retort"), "run", str(job), "--store", store],
        capture_output=True,
        text=True,
        cwd=place,
        env=env,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "release: done" in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in place.iterdir()} == {".retort"}
