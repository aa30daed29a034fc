"""Heavy libraries are imported without what they do not need, which stays importable."""

import gc
import importlib
import os
import subprocess
import sys

import pytest

from retort.processes import libraries
from retort.processes.libraries import lean_imports, resolve_device, stay_offline
from tests.conftest import ROOT, environment

SCRIPT = """
from importlib.util import find_spec
from retort.processes.libraries import lean_imports
with lean_imports():
    assert find_spec("scipy") is find_spec("sklearn") is None
    try:
        import scipy
    except ImportError:
        pass
    else:
        raise AssertionError("scipy was found")
import scipy
"""


def test_what_transformers_need_not_import_is_hidden_while_it_is_imported_and_found_afterwards():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment(), cwd=ROOT)


def test_garbage_is_collected_again_after_an_import_that_fails():
    with pytest.raises(ImportError), lean_imports():
        importlib.import_module("retort.nothing")
    assert gc.isenabled()


def test_a_device_that_is_named_is_taken_and_auto_is_what_torch_finds():
    import torch

    assert resolve_device("cuda") == "cuda"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_only_a_model_in_a_folder_is_opened_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stay_offline("org/name")
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    stay_offline(str(tmp_path))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_library_that_is_loaded_already_stays_offline_too(monkeypatch, tmp_path):
    from huggingface_hub import constants, is_offline_mode

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    libraries.stay_offline("someone/a-model")
    assert not is_offline_mode()
    libraries.stay_offline(str(tmp_path))
    assert is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with libraries.lean_imports():
        assert is_offline_mode()


RACE = """
import ast, gc, threading, time
from retort.processes.libraries import parse_one_at_a_time

class Late:
    def __init__(self):
        self.me = self

    def __del__(self):
        time.sleep(0.0001)

parse_one_at_a_time()
gc.set_threshold(2000)
line = "def f(a, b=[1, (2, {3: 4})]): return [a + b * (1 - (2 + (3 * 4)))]"
source = "\\n".join([line] * 30)
failed = []

def work():
    for _ in range(60):
        made = [Late() for _ in range(3)]
        try:
            ast.parse(source)
        except SystemError as error:
            failed.append(error)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
raise SystemExit(str(failed[0]) if failed else 0)
"""


def test_threads_that_parse_python_at_once_do_not_fail():
    subprocess.run([sys.executable, "-c", RACE], check=True, timeout=100)
