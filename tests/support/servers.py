"""Real servers on loopback, on free ports, each ended by its own id.

Test processes that run side by side share them: whoever needs a server first starts it, and the
process that oversees the run ends them all, for no other knows when nobody needs them any more.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "DO_NOT_TRACK": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "HF_HUB_OFFLINE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
# Names the folder in which the servers of this run of tests are noted.
FOLDER = "RETORT_TEST_SERVERS"
FOREIGN = ("RETORT_PLUG_INS", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RETORT_STORE")
# In a file, one request's lock makes another wait two seconds, several times in every run of a job.
IN_MEMORY = {
    "PREFECT_API_DATABASE_CONNECTION_URL": (
        "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
    )
}
START_SECONDS = 240.0


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this machine's, without servers someone else may use."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}"
    more["PYTHONPATH"] = f"{more.get('PYTHONPATH', '')}{os.pathsep}{path}"
    return {**kept, **QUIET, **more}


def shared(folder: Path, start: Callable[[Path], Any]) -> Any:
    """What `start(home)` told (JSON); it is called once by all who share the folder."""
    home = folder / start.__name__
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "told").exists():
            home.mkdir(exist_ok=True)
            (home / "told").write_text(json.dumps(start(home)))
    return json.loads((home / "told").read_text())


def end_all(folder: Path) -> None:
    """Ends every server that was started below a folder, with all of its processes."""
    for pid in folder.glob("*/pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(int(pid.read_text()), 0)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(command: list[str], health: str, home: Path, **env: str) -> None:
    """Starts a server that outlives this call, and returns once it answers."""
    log = home / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env=environment(**env),
            cwd=home,
        )
    (home / "pid").write_text(str(server.pid))
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(health, timeout=2)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{command} does not answer: {log.read_text()[-2000:]}")


def prefect(home: Path, **env: str) -> str:
    """A Prefect server; its address. It forgets all with its end, unless `env` names a database."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    launch(command, f"{url}/health", home, PREFECT_HOME=str(home), **(IN_MEMORY | env))
    return url


def mlflow(home: Path) -> str:
    """An MLflow server; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    launch(command, f"{url}/health", home)
    return url


def s3(home: Path) -> dict[str, str]:
    """An S3 endpoint with the bucket `retort`; the environment that leads to it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    launch([str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], url, home)
    urllib.request.urlopen(urllib.request.Request(f"{url}/retort", method="PUT"), timeout=10)
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-not-leak",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def vllm(home: Path) -> str:
    """vLLM's server with a tiny model of random weights, named `tiny`; its address."""
    from tests.support.tiny import save_model

    return vllm_with(home, save_model(home / "model"), "tiny", "--max-model-len", "128")


def vllm_with(home: Path, model: Path, *more: str) -> str:
    """vLLM's server with a model and its names, which speaks OpenAI's and Anthropic's protocols;
    its address. `more` are the names, then further arguments.

    The command `vllm serve` looks for a distribution of that name, which the CPU build is not.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--model", str(model), "--dtype", "float32"]
    command += ["--enforce-eager", "--disable-uvicorn-access-log"]
    command += ["--kv-cache-memory-bytes", "64M", "--served-model-name", *more]
    env = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The model in the scheduler's process: two that wait for each other spin on two cores.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    launch(command, f"http://127.0.0.1:{port}/health", home, **env)
    return f"http://127.0.0.1:{port}/v1"


@contextmanager
def vllm_serving(folder: Path) -> Iterator[str]:
    """A vLLM server of one's own until the block ends; its address."""
    try:
        yield shared(folder, vllm)
    finally:
        end_all(folder)
