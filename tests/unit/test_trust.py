"""A job file is not code: what it may name, and when files beside it are run."""

import os
import subprocess
import sys

import pytest
import yaml

from retort.errors import SpecError
from retort.jobs import trust
from retort.plugins import FOLDER, outside, source_digest
from retort.spec import build_at

JOB = {
    "name": "named",
    "prepare": {"train": "train.jsonl", "test": "test.jsonl", "scrub": ["shout:shout"]},
    "generate": {"teacher": "t", "engine": "echo", "top_k": 0},
    "train": {"student": "s"},
}
PLAIN = {"train": "train.jsonl", "test": "test.jsonl"}
SHOUT = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()
def shout(text):
    return text.upper()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv(FOLDER, "")  # so that what a test sets is taken back
    (tmp_path / "job").mkdir()
    (tmp_path / "job/shout.py").write_text(SHOUT)
    return tmp_path / "job"


@pytest.fixture
def spec(folder):
    return build_at(JOB, folder)


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:run", "builtins:eval", "pathlib", "json.decoder:scanstring"]
)
def test_the_standard_library_is_no_plug_in(folder, monkeypatch, name):
    monkeypatch.setenv(FOLDER, str(folder))
    for look in (outside, source_digest):
        with pytest.raises(SpecError, match="of Python's standard library"):
            look(name)


@pytest.mark.parametrize("name", ["yaml:safe_load", "torch", "numpy.lib:pad", "retort.jobs.run:x"])
def test_an_installed_package_that_declares_nothing_is_no_plug_in(folder, monkeypatch, name):
    monkeypatch.setenv(FOLDER, str(folder))
    with pytest.raises(SpecError, match=r"declares the entry point retort\.plugins"):
        outside(name)


def test_an_installed_package_that_declares_its_module_is_used(folder, monkeypatch):
    info = folder / "loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[retort.plugins]\nloud = shout\n")
    monkeypatch.syspath_prepend(folder)
    assert outside("shout:shout")("a") == "A"


def test_code_beside_a_job_runs_once_its_folder_is_trusted(folder, spec):
    with pytest.raises(SpecError, match=r"shout:shout in .*give --trust once"):
        trust.check(spec, folder, trusts=False)
    assert not (folder / "shout.ran").exists()
    assert trust.check(spec, folder, trusts=True) == [f"plug-in shout:shout: code of {folder}"]
    assert not (folder / "shout.ran").exists()  # what is trusted is not run for that
    os.environ[FOLDER] = ""
    assert trust.check(spec, folder, trusts=False)
    listed = folder.parent / "config/retort/trusted-folders.json"
    assert yaml.safe_load(listed.read_text()) == [str(folder)]
    assert listed.stat().st_mode & 0o077 == 0
    listed.write_text("not JSON")
    os.environ[FOLDER] = ""
    with pytest.raises(SpecError, match="give --trust once"):
        trust.check(spec, folder, trusts=False)


def test_a_job_without_code_beside_it_needs_no_trust(folder):
    plain = build_at({**JOB, "prepare": {**JOB["prepare"], "scrub": ["emails"]}}, folder)
    assert trust.check(plain, folder, trusts=False) == []


def test_files_named_like_modules_of_the_standard_library_touch_no_child(folder):
    for name in ("random", "types", "secrets", "queue", "sitecustomize", "numpy"):
        (folder / f"{name}.py").write_text("raise RuntimeError('from beside the job')\n")
    code = "from retort.plugins import outside; outside('shout:shout'); import random, queue, numpy"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, FOLDER: str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "shout.ran").exists()


def test_a_file_that_an_installed_module_hides_is_said_to_be_hidden(folder, monkeypatch):
    (folder / "yaml.py").write_text("def shout(text): return text\n")
    monkeypatch.setenv(FOLDER, str(folder))
    with pytest.raises(SpecError, match="Python has another module of that name"):
        outside("yaml:shout")


def test_what_a_plug_in_raises_while_it_is_loaded_is_an_error_of_the_spec(folder, monkeypatch):
    (folder / "broken_filter.py").write_text("1 / 0\n")
    monkeypatch.setenv(FOLDER, str(folder))
    with pytest.raises(SpecError, match=r"'broken_filter:f' cannot be loaded: ZeroDivisionError"):
        outside("broken_filter:f")


def test_python_graders_are_code_that_lies_beside_the_job_and_is_trusted_once(folder):
    def job(path: str) -> object:
        graders = {"file": path, "python": True}
        return build_at({**JOB, "prepare": PLAIN, "evaluate": {"graders": graders}}, folder)

    with pytest.raises(SpecError, match=r"the python graders of .*graders.json in .*--trust once"):
        trust.check(job("graders.json"), folder, trusts=False)
    (line,) = trust.check(job("graders.json"), folder, trusts=True)
    assert "the python graders of" in line
    with pytest.raises(SpecError, match="lies outside"):
        trust.check(job("../graders.json"), folder, trusts=True)
