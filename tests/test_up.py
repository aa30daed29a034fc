"""`retort up`: one command on one machine; what it has made is there when it is started again."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from retort.spec import load
from tests.conftest import ask
from tests.servers import BIN, environment, free_port
from tests.tiny import write_job

READY_SECONDS = 240


@contextmanager
def up(folder, ports):
    """A running `retort up`; afterwards, its exit code and all that it said."""
    with (folder / "up.log").open("a+") as log:
        flags = [f"--{name}-port={port}" for name, port in ports.items()]
        running = subprocess.Popen(
            [str(BIN / "retort"), "up", *flags],
            stderr=log,
            cwd=folder,
            env=environment(),
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + READY_SECONDS
            before = log.seek(0, os.SEEK_END)
            while "started!" not in read(log, before):
                assert running.poll() is None and time.monotonic() < deadline, read(log, 0)
                time.sleep(0.2)
            yield
            running.send_signal(signal.SIGINT)
            assert running.wait(90) == 0, read(log, before)
        finally:
            # Its servers are groups of their own, and end with it alone.
            running.send_signal(signal.SIGINT)
            running.wait(90)


def read(log, start):
    log.seek(start)
    return log.read()


def is_listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(url):
    return json.loads(urllib.request.urlopen(url, timeout=10).read())


def test_a_job_triggered_as_the_page_does_runs_and_is_there_after_a_restart(tmp_path):
    ports = {"prefect": free_port(), "mlflow": free_port()}
    api = f"http://127.0.0.1:{ports['prefect']}/api"
    job = load(write_job(tmp_path, "echo"), [])[0].model_dump(mode="json")
    with up(tmp_path, ports):
        found = get(f"{api}/deployments/name/distill/process")
        made = ask(
            f"{api}/deployments/{found['id']}/create_flow_run", {"parameters": {"spec": job}}
        )
        deadline = time.monotonic() + 180
        while (run := get(f"{api}/flow_runs/{made['id']}"))["state_type"] not in (
            "COMPLETED",
            "FAILED",
            "CRASHED",
        ):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert run["parameters"]["store"] == str(tmp_path / ".retort")
        assert (tmp_path / ".retort/jobs/tiny/report.md").is_file()
        taken = subprocess.run(
            [str(BIN / "retort"), "up", f"--prefect-port={ports['prefect']}"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert taken.returncode == 2
        assert "is taken" in taken.stderr and "--prefect-port" in taken.stderr
    assert not any(map(is_listening, ports.values()))
    with up(tmp_path, ports):
        assert get(f"{api}/flow_runs/{made['id']}")["state_type"] == "COMPLETED"
        assert len(ask(f"{api}/deployments/filter", {})) == 1
