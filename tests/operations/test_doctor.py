"""`retort doctor`: it finds what is wrong, says what to do, and repeats no secret."""

import secrets
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest
import yaml

from retort import processes
from tests.support import command
from tests.support.servers import BIN, ROOT, environment, free_port

JOB = """
name: job
prepare: {train: a.jsonl, test: b.jsonl}
generate: {teacher: gpt-4o, engine: openai, top_k: 0, api_key_env: A_TEACHERS_KEY}
train: {student: ./base}
"""


@pytest.fixture
def doctor(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)

    def run(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return command.run("doctor", *words, cwd=tmp_path, timeout=120, **env)

    return run


def lines(done, state):
    return [line for line in done.stdout.splitlines() if line.startswith(f"{state} ")]


def test_a_machine_that_is_set_up_has_nothing_bad(doctor, prefect_url):
    done = doctor("job.yaml", PREFECT_API_URL=prefect_url, A_TEACHERS_KEY="a-secret")
    assert done.returncode == 0, done.stdout
    assert not lines(done, "bad")
    assert any("Prefect at" in line and "answers" in line for line in lines(done, "ok"))
    assert "key A_TEACHERS_KEY (generate.api_key_env) is set" in done.stdout
    assert "a-secret" not in done.stdout + done.stderr


def test_what_is_wrong_is_named_with_its_remedy_and_without_its_password(doctor):
    place = f"127.0.0.1:{free_port()}"
    done = doctor(
        "job.yaml",
        PREFECT_API_URL=f"http://me:a-secret@{place}/api",
        MLFLOW_TRACKING_URI=f"http://me:a-secret@{place}",
        A_TEACHERS_KEY="",
    )
    assert done.returncode == 1
    bad = "\n".join(lines(done, "bad"))
    for found in (f"Prefect at http://{place}/api", f"MLflow at http://{place}", "A_TEACHERS_KEY"):
        assert found in bad
    assert "retort up" in done.stdout and "export A_TEACHERS_KEY=" in done.stdout
    assert "a-secret" not in done.stdout + done.stderr


def test_a_store_that_cannot_be_written_is_bad(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor("--store", str(tmp_path / "file" / "store"))
    assert done.returncode == 1
    assert any("store" in line for line in lines(done, "bad"))


CONNECTS = """
import sys
from retort.errors import SpecError
from retort.processes.ray_cluster import connect
try:
    connect(sys.argv[1])
except SpecError as error:
    print(f"SpecError: {error}")
"""


@contextmanager
def ray_head(port, **env):
    """A Ray cluster of one node without work, with the parameters of the manifest's head."""
    manifest = yaml.safe_load((ROOT / "deployments/kubernetes/raycluster.yaml").read_text())
    given = dict(manifest["spec"]["headGroupSpec"]["rayStartParams"], port=port)
    # A small memory, and no range of ports that a free one may be in.
    given |= {"object-store-memory": 80_000_000, "min-worker-port": 0, "max-worker-port": 0}
    words = [f"--{k}" if v == "true" else f"--{k}={v}" for k, v in given.items()]
    started = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", *words, "--block"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**env),
        start_new_session=True,
    )
    try:
        assert any("Ray runtime started" in line for line in started.stdout)
        yield
    finally:
        processes.end(started, 20.0)


def test_a_ray_cluster_is_looked_at_with_its_token_and_its_lack_is_said(doctor):
    port, token = free_port(), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    with tempfile.TemporaryDirectory() as folder:  # a short name: Ray's sockets are in it
        here = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_TMPDIR": folder}
        with ray_head(port, RAY_TMPDIR=folder, **token):
            done, refused = doctor(**here, **token), doctor(**here, RAY_AUTH_MODE="disabled")
            without = subprocess.run(
                [sys.executable, "-c", CONNECTS, here["RAY_ADDRESS"]],
                capture_output=True,
                text=True,
                timeout=120,
                env=environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="token", HOME=folder),
                check=False,
            )
        gone = doctor(**here, **token)
        assert "Ray cluster" in doctor(RAY_TMPDIR=folder).stdout
    found = [line for line in lines(done, "ok") if "Ray cluster" in line]
    has = "1 nodes, 0 CPUs, 0 GPUs; Python and Ray are those here"
    assert found == [
        f"ok   Ray cluster 127.0.0.1:{port}: {has}",
        "ok   Ray cluster: it asks for a token",
    ]
    assert "it asks for a token, and RAY_AUTH_MODE is not" in "".join(lines(refused, "bad"))
    assert f"Ray cluster 127.0.0.1:{port}: no Ray cluster answers" in "".join(lines(gone, "bad"))
    assert "SpecError: cluster.ray" in without.stdout and "RAY_AUTH_TOKEN" in without.stdout
    for each in (done, refused, gone):
        assert token["RAY_AUTH_TOKEN"] not in each.stdout + each.stderr


def test_a_ray_cluster_that_asks_for_no_token_is_noted_and_none_is_nothing(doctor, tmp_path):
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        here = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
        with ray_head(port, **here):
            done = doctor(**here, RAY_ADDRESS=f"127.0.0.1:{port}")
    assert "Ray cluster: it asks for no token" in "".join(lines(done, "note"))
    assert "Ray" not in doctor(RAY_TMPDIR=str(tmp_path), RAY_ADDRESS="").stdout
