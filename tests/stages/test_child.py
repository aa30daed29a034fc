"""A child process gives its result, keeps its errors' kind, and never outlives its welcome."""

import _thread
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from retort import processes
from retort.engines import transformers, vllm
from retort.errors import (
    DamagedError,
    DataError,
    EngineDiedError,
    SpecError,
    StageError,
    StoreError,
)
from retort.events import SILENT, Reporter
from retort.processes import forks, pages
from retort.processes.__main__ import watch_parent
from retort.processes.libraries import import_torch
from tests.conftest import ROOT, environment
from tests.support.child_functions import (
    crash,
    describe,
    double,
    fail,
    fill,
    has_modules,
    import_nothing,
    killed,
    memory_taken,
    need_memory,
    save_tensors,
    sleep_with_grandchild,
    wait_for,
)

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
    [
        ("data", DataError),
        ("spec", SpecError),
        ("store", StoreError),
        ("damage", DamagedError),
        ("other", StageError),
    ],
)
def test_an_error_keeps_its_kind_and_its_words(tmp_path, kind, error):
    with pytest.raises(error) as raised:
        processes.run(fail, {"kind": kind}, SILENT, tmp_path / "log", RUNTIME)
    assert type(raised.value) is error
    expected = {"store": True, "damage": False}.get(kind)
    assert getattr(raised.value, "transient", None) is expected


def test_a_crash_names_its_exit_code_and_its_log(tmp_path):
    with pytest.raises(StageError, match=r"exit code 7.*log"):
        processes.run(crash, {}, SILENT, tmp_path / "log", RUNTIME)


def test_being_killed_is_said_to_be_for_want_of_memory(tmp_path):
    with pytest.raises(StageError, match="memory"):
        processes.run(killed, {}, SILENT, tmp_path / "log", RUNTIME)


@pytest.mark.parametrize("what", ["bytes", "library"])
def test_want_of_memory_is_said_with_what_to_do_whoever_notices_it(tmp_path, what):
    with pytest.raises(EngineDiedError, match=r"ran out of memory \(.*free some, or lower.*log"):
        processes.run(need_memory, {"what": what}, SILENT, tmp_path / "log", RUNTIME)


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


@contextmanager
def disk(folder: Path, *options: str):
    """A small disk of its own until the block ends."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=1m", *options)), "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may make a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_temporary_folder_is_said_with_its_path_and_the_variable(tmp_path, monkeypatch):
    with disk(tmp_path / "small") as place:
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        arguments = {"value": "x" * (2 << 20)}
        with pytest.raises(StoreError, match=rf"^{place}/.*no space left.*\(TMPDIR\)") as error:
            processes.run(double, arguments, SILENT, tmp_path / "log", RUNTIME)
        assert not error.value.transient
        assert processes.run(double, {"value": 2}, SILENT, tmp_path / "log", RUNTIME) == 4


def test_a_temporary_folder_that_is_read_only_is_said(tmp_path, monkeypatch):
    with disk(tmp_path / "fixed", "ro") as place:
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with pytest.raises(StoreError, match=rf"^{place}/.*read-only; remount.*TMPDIR"):
            processes.run(double, {"value": 2}, SILENT, tmp_path / "log", RUNTIME)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with pytest.raises(StoreError, match=rf"^{place}/logs.*read-only; remount.*--store"):
            processes.run(double, {"value": 2}, SILENT, place / "logs/log", RUNTIME)


@pytest.mark.parametrize("function", [fill, save_tensors])
def test_a_disk_that_is_full_in_the_child_is_a_store_error_with_the_remedy(tmp_path, function):
    with disk(tmp_path / "small") as place:
        arguments = {"path": str(place / "file")}
        with pytest.raises(StoreError, match=r"no space left on the device; free some.*TMPDIR or"):
            processes.run(function, arguments, SILENT, tmp_path / "log", RUNTIME)


def test_a_log_is_its_owners_alone(tmp_path):
    processes.run(double, {"value": 2}, SILENT, tmp_path / "logs/log", RUNTIME)
    assert (tmp_path / "logs/log").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700


def test_the_memory_of_a_process_is_not_that_of_the_one_which_started_it():
    mine = bytearray(os.urandom(1 << 20) * 400)
    code = "from retort import processes; print(processes.peak_host_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0 < int(done.stdout) < len(mine) // 2


@pytest.fixture
def described(tmp_path, monkeypatch):
    """Runs `describe` in a child, and returns what that one tells; its fork server is a new one."""
    monkeypatch.setattr(forks, "_servers", {})

    def run(**runtime: int) -> dict:
        return processes.run(describe, {}, SILENT, tmp_path / "log", {**RUNTIME, **runtime})

    if any(map(os.path.exists, forks.GPUS)):
        pytest.skip("a machine with a GPU has no fork server")
    yield run
    for server in forks._servers.values():
        server.end()


def test_a_child_begins_with_what_those_before_it_imported_and_shares_nothing_else(
    described, monkeypatch, tmp_path
):
    first = described(libraries=import_torch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_OF_THIS_TEST", "a value")
    second = described()
    assert second["torch_seconds"] < 0.05
    assert (second["folder"], second["variable"]) == (str(tmp_path), "a value")
    assert first["variable"] is None
    assert first["pid"] != second["pid"] and first["random"] != second["random"]
    python, *words, _ = second["command"]
    module, function = "retort.processes", "tests.support.child_functions:describe"
    assert (python, words) == (sys.executable, ["-m", module, function, str(tmp_path / "log")])


def test_an_engines_libraries_are_imported_once_for_all_children(described, tmp_path):
    first = described(libraries=vllm.import_libraries)
    names, log = ["vllm.v1.engine.llm_engine", "torch"], tmp_path / "log"
    other = processes.run(has_modules, {"names": names}, SILENT, log, RUNTIME)
    assert other == {"parent": first["parent"], "had": names}


def test_a_library_that_cannot_be_imported_is_told_in_the_log_and_ends_no_fork_server(
    described, tmp_path, monkeypatch
):
    monkeypatch.setattr(import_nothing, "__module__", "retort.of_this_test")
    monkeypatch.setitem(sys.modules, "retort.of_this_test", sys.modules[describe.__module__])
    first = described(libraries=import_nothing)
    assert first["parent"] != os.getpid() and described()["parent"] == first["parent"]
    assert "Traceback" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("more", [{}, {"is_measured": True}], ids=["shared", "measured"])
def test_libraries_are_imported_before_there_is_a_child(described, tmp_path, more):
    given = {**RUNTIME, "libraries": import_torch, **more}
    processes.warm(has_modules, given, tmp_path / "log")
    (server,), deadline = forks._servers.values(), time.monotonic() + 60
    while "libtorch_cpu" not in Path(f"/proc/{server.process.pid}/maps").read_text():
        assert server.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    had = processes.run(has_modules, {"names": ["torch"]}, SILENT, tmp_path / "log", given)
    assert had == {"parent": server.process.pid, "had": ["torch"]}


@pytest.mark.parametrize("more", [{}, {"num_processes": 2}, {"variables": ["PATH"]}])
def test_nothing_is_imported_before_there_is_a_child_that_will_be_no_fork(
    described, tmp_path, more
):
    libraries = {"libraries": import_torch} if more else {}
    processes.warm(has_modules, {**RUNTIME, **libraries, **more}, tmp_path / "log")
    assert forks._servers == {}


def test_a_plug_ins_libraries_are_its_childrens_own(described):
    first = described(libraries=partial(import_nothing))
    assert first["parent"] != os.getpid()


def test_a_child_whose_libraries_would_be_others_is_the_fork_of_another_server(described):
    told = [described(num_threads=number) for number in (1, 2, 1, 2)]
    assert [each["threads"] for each in told] == [1, 2, 1, 2]
    one, two, one_again, two_again = (each["parent"] for each in told)
    assert (one, two) == (one_again, two_again)
    assert len({one, two, os.getpid()}) == 3


def test_three_fork_servers_stay_and_one_that_leaves_waits_for_its_child(described, tmp_path):
    path = tmp_path / "go on"
    runtime = {**RUNTIME, "num_threads": 1}
    with ThreadPoolExecutor() as pool:
        given = {"path": str(path)}
        waiting = pool.submit(processes.run, wait_for, given, SILENT, tmp_path / "log", runtime)
        first = described(num_threads=1)["parent"]
        others = [described(num_threads=number)["parent"] for number in (2, 3, 4)]
        assert {each.process.pid for each in forks._servers.values()} == set(others)
        assert psutil.pid_exists(first)
        path.touch()
        assert waiting.result() == first
    assert gone([first])
    assert described(num_threads=1)["parent"] not in (first, *others)


def test_a_measured_child_has_what_a_process_of_its_own_has_and_nothing_else(described, tmp_path):
    def taken(**more: object) -> dict:
        runtime = {**RUNTIME, "libraries": transformers.import_libraries, **more}
        return processes.run(memory_taken, {}, SILENT, tmp_path / "log", runtime)

    described(libraries=import_torch)
    shared, measured, alone = taken(), taken(is_measured=True), taken(variables=list(os.environ))
    assert shared["has_more"] and not measured["has_more"]
    assert len({shared["parent"], measured["parent"], os.getpid()}) == 3
    assert alone["parent"] == os.getpid() and alone["import_seconds"] == 0.0
    assert measured["bytes"] == pytest.approx(alone["bytes"], rel=0.03)
    assert measured["import_seconds"] > 0.5
    assert taken(is_measured=True)["parent"] == measured["parent"]


def test_a_fork_has_the_pages_of_files_that_its_parent_had(tmp_path):
    path, size = tmp_path / "library", 64 * pages.PAGE_BYTES
    path.write_bytes(bytes(size))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE, 1) as mapped:
        mapped[0], mapped[size - 1]
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        is_there = [a <= address < a + n for a, n in pages.of_files()]
    assert sum(is_there) == 1
    assert pages.populate([(pages.PAGE_BYTES, pages.PAGE_BYTES)]) == 1  # nothing is mapped there


def test_a_fork_server_that_was_killed_is_started_again(described):
    first = described(num_threads=1)
    assert first["parent"] != os.getpid()
    psutil.Process(first["parent"]).kill()
    assert gone([first["parent"]])
    again = described(num_threads=1)
    assert again["parent"] not in (first["parent"], os.getpid())


def test_a_fork_server_that_hangs_is_ended_and_the_child_is_none_of_its_forks(described, tmp_path):
    first = described(num_threads=1)
    psutil.Process(first["parent"]).suspend()
    runtime = {**RUNTIME, "num_threads": 1, "timeout_seconds": 3.0}
    had = processes.run(has_modules, {"names": []}, SILENT, tmp_path / "log", runtime)
    assert had["parent"] == os.getpid() and gone([first["parent"]])


def test_a_child_goes_on_when_its_fork_server_is_killed(described, tmp_path):
    server = psutil.Process(described()["parent"])
    killing = Reporter(lambda event: server.kill())
    assert processes.run(double, {"value": 4}, killing, tmp_path / "log", RUNTIME) == 8
    assert gone([server.pid])


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_child_without_memory_for_its_watching_thread_fails_and_does_not_wait(
    monkeypatch, is_refused
):
    def starved(function, arguments):
        """What Python does where a thread cannot be made, or ends before its first line."""
        if is_refused:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", starved)
    with pytest.raises(MemoryError, match="thread"):
        watch_parent(threading.Event(), 0.05)
