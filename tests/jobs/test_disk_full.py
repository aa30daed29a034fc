"""A disk that is full in the middle of a job: said with what to do, nothing lost, gone on with."""

import os
import subprocess
from collections import Counter
from contextlib import contextmanager

import pytest

from retort.store import open_store
from tests.conftest import BIN, environment
from tests.support.stages import segments
from tests.support.tiny import write_job
from tests.support.workers import questions, teacher, until

# More than a job wants to find free before it begins.
DISK_BYTES = 300 << 20


@contextmanager
def disk(folder):
    """A small disk of its own until the block ends."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may make a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Takes all that is free of a disk."""
    left = os.statvfs(folder)
    with (folder / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, left.f_bavail * left.f_frsize)
    return folder / "filler"


def test_a_full_disk_is_said_with_what_to_do_and_the_same_command_goes_on(
    tmp_path, prefect_url, mlflow_url
):
    job = write_job(tmp_path, "echo")
    env = environment(PREFECT_API_URL=prefect_url, MLFLOW_TRACKING_URI=mlflow_url)
    with disk(tmp_path / "disk") as place, teacher() as asked:
        store = place / "store"
        knobs = ["engine=openai", f"endpoint={asked.url}", "teacher=full"]
        knobs += ["runtime.max_concurrency=3", "spending.pilot_rows=0"]
        command = [str(BIN / "retort"), "run", str(job), "--store", str(store)]
        command += [f"--set=generate.{knob}" for knob in knobs]
        asked.left["full"] = 20
        asked.waits.add("full")
        running = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=env,
        )
        until(lambda: store.is_dir() and len(segments(str(store))) == 20)
        filler = fill(place)
        asked.waits.remove("full")
        said = running.communicate(timeout=300)[1]
        assert running.returncode == 1
        assert "no space left on the device; free some, or use another disk (--store)" in said
        filler.unlink()
        # 3: of random models, the gate refuses the student.
        again = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False
        )
        assert again.returncode in (0, 3), again.stderr
        made = open_store(str(store)).job("tiny").read_json("artifacts.json")["generate"]
        keys = Counter(e["key"] for e in segments(str(store)) if e["by"] == made)
    texts = questions(*(tmp_path / f"data/{split}.jsonl" for split in ("train", "validation")))
    assert set(keys.values()) == {1} and len(keys) == len(set(texts))
