"""Serves a released student, or one of its exports, to clients of OpenAI's API.

The server is that of the runtime its users use, as a child process: vLLM's for the student and for
compressed weights, llama.cpp's for GGUF. The key comes from the environment and goes there, never
into a list of processes.
"""

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retort.engines._llama_endpoint import KEY
from retort.engines.vllm import ENVIRONMENT
from retort.errors import SpecError, StageError
from retort.processes import machine
from retort.spec.export import role_of
from retort.store import MANIFEST, Folder, model_folder

HOST, PORT = "127.0.0.1", 8000
# The memory for keys and values on a CPU, where it would be a share of all; and warnings only.
QUIETLY = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
# The longest chat with its answer, in tokens.
CONTEXT = 8192
LOOK_SECONDS, START_SECONDS, END_SECONDS = 0.2, 600.0, 20.0


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the name that clients ask for."""

    name: str
    host: str = HOST
    port: int = PORT

    @property
    def url(self) -> str:
        """The address that a client of OpenAI's takes."""
        return f"http://{self.shown}/v1"

    @property
    def shown(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@contextlib.contextmanager
def folder_of(student: str, form: str | None) -> Iterator[Path]:
    """Gives a released student's folder, or its export's, on this machine, as it was written.

    `student` is the folder `model` of a release. Raises `SpecError` that lists the formats.
    """
    root, _, prefix = student.rpartition("/")
    release = Folder(root)
    is_release = bool(root) and release.has(MANIFEST)
    if form and not is_release:
        raise SpecError(f"{student} is no release of Retort's, so it has no exports")
    if form:
        facts = release.read_manifest()["facts"]
        known = facts.get("exports", [])
        if form in facts.get("exports_by_ids", []):
            raise SpecError(
                f"{student}: {form} takes token ids alone, because its runtime cannot read this "
                "tokenizer; serve the student itself (leave --format out)"
            )
        if form not in known:
            listed = ", ".join(known) or "none"
            raise SpecError(
                f"{student}: no export {form} that passed; there are: {listed}. Name the version "
                "whose tag retort.exports has it, as NAME/VERSION, or run `retort export`"
            )
        prefix = f"exports/{role_of(form)}"
    if not is_release:
        yield Path(student)
        return
    with release.checked().local_copy(prefix) as folder:
        yield folder


def check(address: Address) -> None:
    """Raises `SpecError` for an address that others reach, where no key is set."""
    if not _is_loopback(address.host) and not os.environ.get(KEY):
        raise SpecError(
            f"--host {address.host} can be reached from other machines, and no key is set; put one "
            f"into the environment variable {KEY}, or leave --host out"
        )


@contextlib.contextmanager
def serving(folder: Path, form: str | None, address: Address) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the server of a folder within the block; gives its process once it answers.

    Raises `StageError` where it ends before that, and `SpecError` for a format without a server.
    """
    check(address)
    _check_port(address)
    key = os.environ.get(KEY, "")
    environment = {**ENVIRONMENT, **QUIETLY, **os.environ, **({"VLLM_API_KEY": key} if key else {})}
    with subprocess.Popen(_command(folder, form, address), env=environment) as process:
        try:
            _wait(process, address)
            yield process
        finally:
            _end(process)


def _check_port(address: Address) -> None:
    """Raises `SpecError` where another server answers already, which clients would then ask."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        raise SpecError(
            f"--port {address.port}: {address.host} cannot be listened at ({error}); another "
            "server may be there, so give another port"
        ) from None


def _command(folder: Path, form: str | None, address: Address) -> list[str]:
    at = ["--host", address.host, "--port", str(address.port)]
    kind = (form or "").partition(":")[0]
    if kind == "gguf":
        named = [str(folder), "--name", address.name, *at]
        return [sys.executable, "-m", "retort.engines._llama_endpoint", *named]
    if kind not in ("", "compressed_tensors"):
        raise SpecError(f"--format {form}: {kind} has no server of its own; serve a gguf, or none")
    module = "vllm.entrypoints.openai.api_server"
    named = ["--model", str(folder), "--served-model-name", address.name, *at]
    return [sys.executable, "-m", module, *named, *_vllm_options(folder)]


def _vllm_options(folder: Path) -> list[str]:
    """Returns how vLLM opens a folder as the comparison did: in the weights' own precision, with
    room for chats of a usual length, and on a CPU without compiling."""
    limit = int(model_folder.text_config(folder).get("max_position_embeddings") or CONTEXT)
    options = ["--max-model-len", str(min(limit, CONTEXT))]
    options += ["--dtype", model_folder.stored_dtype(str(folder))]
    on_cpu = machine.version_of("vllm-cpu") is not None
    return [*options, *(["--enforce-eager"] if on_cpu else [])]


def _wait(process: subprocess.Popen[bytes], address: Address) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise StageError(f"the server ended with code {process.returncode} before it answered")
        health = f"http://{address.shown}/health"
        with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=2):
            return
        time.sleep(LOOK_SECONDS)
    raise StageError(f"the server did not answer within {START_SECONDS:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
