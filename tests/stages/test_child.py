"""A child process gives its result, keeps its errors' kind, and never outlives its welcome."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from retort import processes
from retort.errors import DataError, SpecError, StageError, StoreError
from retort.events import SILENT, Reporter
from tests.conftest import ROOT, environment
from tests.support.child_functions import crash, double, fail, killed, sleep_with_grandchild

RUNTIME = {"timeout_seconds": 60.0}


def gone(pids: list[int]) -> bool:
    """Whether all processes end within ten seconds."""
    for _ in range(200):
        alive = [p for p in pids if psutil.pid_exists(p)]
        if not [p for p in alive if psutil.Process(p).status() != psutil.STATUS_ZOMBIE]:
            return True
        time.sleep(0.05)
    return False


def test_a_result_and_events_come_back_and_chatter_goes_to_the_log(tmp_path, capfd):
    events = []
    log = tmp_path / "log"
    value = processes.run(double, {"value": 21}, Reporter(events.append), log, RUNTIME)
    assert value == 42
    assert events == [{"kind": "progress", "done": 1, "total": 2, "unit": "things", "note": ""}]
    assert "chatter on stdout" in log.read_text()
    assert "chatter on stderr" in log.read_text()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("data", DataError), ("spec", SpecError), ("store", StoreError), ("other", StageError)],
)
def test_an_error_keeps_its_kind_and_its_words(tmp_path, kind, error):
    with pytest.raises(error) as raised:
        processes.run(fail, {"kind": kind}, SILENT, tmp_path / "log", RUNTIME)
    assert type(raised.value) is error
    assert getattr(raised.value, "transient", None) is (True if kind == "store" else None)


def test_a_crash_names_its_exit_code_and_its_log(tmp_path):
    with pytest.raises(StageError, match=r"exit code 7.*log"):
        processes.run(crash, {}, SILENT, tmp_path / "log", RUNTIME)


def test_being_killed_is_said_to_be_for_want_of_memory(tmp_path):
    with pytest.raises(StageError, match="memory"):
        processes.run(killed, {}, SILENT, tmp_path / "log", RUNTIME)


def test_a_timeout_ends_the_whole_process_group(tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(StageError, match="timeout_seconds=3"):
        processes.run(
            sleep_with_grandchild,
            {"pids": str(pids)},
            SILENT,
            tmp_path / "log",
            {"timeout_seconds": 3.0},
        )
    assert gone([int(pid) for pid in pids.read_text().split()])


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "from pathlib import Path\nfrom retort import processes\nfrom retort.events import SILENT\n"
        f"from tests.support.child_functions import sleep_with_grandchild as sleep\n"
        f"processes.run(sleep, {{'pids': {str(pids)!r}}}, SILENT, "
        f"Path({str(tmp_path / 'log')!r}), {{'timeout_seconds': 500.0}})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment(), cwd=ROOT)
    for _ in range(400):
        if pids.exists() and len(pids.read_text().split()) == 2:
            break
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert gone([int(pid) for pid in Path(pids).read_text().split()])
