"""What a run says of the machine and of the versions that it used."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import torch
import transformers

from retort import processes
from retort.processes import machine


def test_the_hardware_is_what_the_system_tells():
    found = machine.hardware()
    assert found["cores"] == psutil.cpu_count() and found["cpu"]
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["cpu"] in Path("/proc/cpuinfo").read_text()
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_gpus_are_those_that_the_driver_names(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\necho 'NVIDIA A10'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.hardware()["gpus"] == ["NVIDIA H100 80GB HBM3", "NVIDIA A10"]
    command.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert machine.hardware()["gpus"] == []


def test_the_versions_are_those_of_the_packages_read_without_loading_one():
    found = machine.versions()
    assert found["torch"] == torch.__version__ and found["vllm"]
    assert found["transformers"] == transformers.__version__
    assert found["python"] == sys.version.split()[0]
    code = "import retort.processes.machine as m, sys; m.versions(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not any(f"'{name}'" in done.stdout for name in ("torch", "vllm", "mlflow", "numpy"))


def test_the_memory_of_host_and_gpu_are_told_apart():
    peak = processes.peak_host_memory_bytes()
    assert psutil.Process().memory_info().rss * 0.5 < peak < psutil.virtual_memory().total
    if not torch.cuda.is_available():
        assert processes.peak_gpu_memory_bytes() is None
        assert processes.peak_memory_bytes() >= peak
