"""Real servers on loopback, on free ports, each ended by its own id; and the command itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
QUIET = {
    "DO_NOT_TRACK": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "HF_HUB_OFFLINE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
FOREIGN = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RETORT_STORE")


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this machine's, without servers someone else may use."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}"
    more["PYTHONPATH"] = f"{more.get('PYTHONPATH', '')}{os.pathsep}{path}"
    return {**kept, **QUIET, **more}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], health: str, log: Path, **env: str) -> Iterator[None]:
    """Runs a server until the block ends; waits for it to answer, at most two minutes."""
    with log.open("w") as stream:
        server = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env=environment(**env),
            cwd=log.parent,
        )
        try:
            for _ in range(480):
                if server.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended: {log.read_text()[-2000:]}")
                try:
                    urllib.request.urlopen(health, timeout=2)
                    break
                except urllib.error.HTTPError:
                    break
                except OSError:
                    time.sleep(0.25)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, f"{url}/health", home / "server.log", PREFECT_HOME=str(home)):
        yield url


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    with serving(command, f"{url}/health", home / "server.log"):
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that leads to a real S3 endpoint over HTTP, with the bucket `retort`."""
    home, port = tmp_path_factory.mktemp("s3"), free_port()
    url = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-not-leak",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with serving([str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], url, home / "log"):
        urllib.request.urlopen(urllib.request.Request(f"{url}/retort", method="PUT"), timeout=10)
        yield env


@contextmanager
def vllm_serving(home: Path) -> Iterator[str]:
    """vLLM's real server with a tiny model named `tiny`: OpenAI's and Anthropic's protocols.

    The command `vllm serve` looks for a distribution of that name, which the CPU build is not.
    """
    from tests.tiny import save_model

    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--model", str(save_model(home / "model"))]
    command += ["--served-model-name", "tiny", "--max-model-len", "128", "--dtype", "float32"]
    command += ["--enforce-eager", "--disable-uvicorn-access-log"]
    env = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The model in the scheduler's process: two that wait for each other spin on two cores.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with serving(command, f"http://127.0.0.1:{port}/health", home / "server.log", **env):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def s3_here(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """As `s3`, for this very process, which may have talked to another endpoint before."""
    import fsspec

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return s3


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server."""
    with vllm_serving(tmp_path_factory.mktemp("vllm")) as url:
        yield url


@pytest.fixture
def retort(prefect_url: str, tmp_path: Path):
    """Runs the command as a user would, in a folder of its own, with the session's Prefect."""

    def run(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(BIN / "retort"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            env=environment(PREFECT_API_URL=prefect_url, **env),
            cwd=tmp_path,
            check=False,
        )

    return run


def ask(url: str, payload: dict[str, object]) -> list[dict]:
    """Posts JSON and returns the answer's JSON."""
    request = urllib.request.Request(
        url, json.dumps(payload).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())
