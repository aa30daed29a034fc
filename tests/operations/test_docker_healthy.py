"""The health check of the images asks what a container's first process serves, if it serves."""

import os
import subprocess
import sys

from tests.support.servers import ROOT


def healthy(pid: int | str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "docker/healthy.py"), str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_server_that_answers_is_healthy_and_one_that_does_not_is_not(mlflow_url, servers_folder):
    serving = (servers_folder / "mlflow" / "pid").read_text()
    assert healthy(serving).returncode == 0
    # A process of the same words on whose port nobody listens.
    words = [sys.executable, "-c", "input()", "mlflow", "server", "--port", "9"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as silent:
        refused = healthy(silent.pid)
        silent.communicate(b"\n")
    assert refused.returncode == 1
    assert "http://127.0.0.1:9/health" in refused.stderr


def test_a_container_that_runs_a_job_is_healthy_while_it_runs():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as job:
        assert healthy(job.pid).returncode == 0
        job.stdin.close()
        # Over, and not yet waited for.
        os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
        assert "has ended" in healthy(job.pid).stderr
