"""The servers and the command that tests share, and what lets the files of tests run side by side.

`make test` runs a file of tests in one process and another file beside it (pytest-xdist); a single
file given to pytest runs in this process. Note: servers outlive the fixtures that name
them, and end with the whole run.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from retort.plugins import FOLDER
from tests.support import command, servers
from tests.support.servers import BIN, ROOT, environment, free_port, vllm_serving

__all__ = ["BIN", "ROOT", "ask", "environment", "free_port", "vllm_serving"]
# Whole jobs take longest: begun first, no core is left with one at the end.
FOLDERS = ("operations", "jobs", "stages", "unit")
SERVERS_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder in which this run's servers are noted, or learns of it."""
    # Tiny models gain nothing from a second thread, and the other core has another file to run.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Plug-ins of tests are functions in the files of tests; a command that a test runs knows none.
    os.environ[FOLDER] = str(ROOT)
    # A shell that starts the tests in the background has Ctrl-C ignored, and all that they start
    # would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    known = getattr(config, "workerinput", {}).get("servers")
    config.stash[SERVERS_FOLDER] = Path(known or tempfile.mkdtemp(prefix="retort-servers-"))
    os.environ[servers.FOLDER] = str(config.stash[SERVERS_FOLDER])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a process that runs tests for this one where servers are noted."""
    node.workerinput["servers"] = str(node.config.stash[SERVERS_FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the servers when all tests are done, have failed or were interrupted."""
    if not hasattr(config, "workerinput"):
        servers.end_all(config.stash[SERVERS_FOLDER])
        shutil.rmtree(config.stash[SERVERS_FOLDER], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the folders whose files take longest first."""
    items.sort(key=lambda item: FOLDERS.index(item.path.parent.name))


@pytest.fixture(scope="session")
def servers_folder(request: pytest.FixtureRequest) -> Path:
    """Where servers are noted."""
    return request.config.stash[SERVERS_FOLDER]


@pytest.fixture(scope="session")
def prefect_url(servers_folder: Path) -> str:
    """A real Prefect server."""
    return servers.shared(servers_folder, servers.prefect)


@pytest.fixture(scope="session")
def mlflow_url(servers_folder: Path) -> str:
    """A real MLflow server."""
    return servers.shared(servers_folder, servers.mlflow)


@pytest.fixture(scope="session")
def s3(servers_folder: Path) -> dict[str, str]:
    """The environment that leads to a real S3 endpoint over HTTP, with the bucket `retort`."""
    return servers.shared(servers_folder, servers.s3)


@pytest.fixture(scope="session")
def vllm_url(servers_folder: Path) -> str:
    """The address of a vLLM server."""
    return servers.shared(servers_folder, servers.vllm)


@pytest.fixture
def s3_here(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """As `s3`, for this very process, which may have talked to another endpoint before."""
    import fsspec

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return s3


@pytest.fixture
def retort(prefect_url: str, tmp_path: Path):
    """Runs the command as a user would, in a folder of its own, with the session's Prefect."""

    def run(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
        return command.run(*map(str, arguments), cwd=tmp_path, PREFECT_API_URL=prefect_url, **env)

    return run


def ask(url: str, payload: dict[str, object] | None, login: str = "") -> Any:
    """Posts JSON, or gets a page, and returns the answer's JSON; None where that is empty."""
    headers = {"content-type": "application/json"}
    if login:
        headers["authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")
