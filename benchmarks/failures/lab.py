"""Where the cells are run: real servers, a finished job, and its store as it was when each stage
began."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.failures import endpoint
from benchmarks.failures.command import CLOCK_FILE, Command, OnEvent, preload
from benchmarks.failures.matrix import STAGE_OF
from benchmarks.failures.results import Records, read_records
from retort.spec import STAGES
from tests.support import servers
from tests.support.servers import environment
from tests.support.tiny import write_job
from tests.support.workers import questions

JOB = "tiny"
KEY = "CELL_KEY"
WAIT_SECONDS = 300.0
# What a run leaves beside its artifacts, and a copy does not need.
LEFT_OUT = shutil.ignore_patterns("leases", "logs", "*.part")
FINISHED = "finished"
# 3: of random models the gate refuses the student.
WELL = (0, 3)


@dataclass(frozen=True)
class Servers:
    """The addresses of the servers; `s3` is the environment that leads to one."""

    prefect: str
    mlflow: str
    s3: dict[str, str]


@dataclass
class Lab:
    """The finished job: its file, what it made, and its store before each stage.

    In a snapshot the later stages' artifacts are there too: where a stage makes the same again they
    are cached, so that a cell pays only for its own stage.
    """

    folder: Path
    servers: Servers
    models: endpoint.Models
    clock: str = ""  # the library that shifts a command's clock
    records: Records = field(default_factory=dict)
    # What the undisturbed job asked.
    asked: endpoint.Caller = field(default_factory=endpoint.Caller)

    @property
    def job(self) -> Path:
        """The job's file."""
        return self.folder / "job.yaml"

    def snapshot(self, stage: str) -> Path:
        """A store in which the stages before this one are finished, or all."""
        return self.folder / "snapshots" / stage

    def command(
        self, name: str, words: list[str], on_event: OnEvent | None = None, **env: str
    ) -> Command:
        """Starts a command in the folder of a cell; its key at the endpoint is the cell's name."""
        folder = self.folder / "cells" / name
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.log")))
        own = {
            "PREFECT_API_URL": self.servers.prefect,
            "MLFLOW_TRACKING_URI": self.servers.mlflow,
            KEY: name,
            "OMP_NUM_THREADS": "1",
            **self.servers.s3,
            **({"LD_PRELOAD": self.clock} if CLOCK_FILE in env else {}),
        }
        log = folder / f"{number}.log"
        return Command(words, environment(**(own | env)), log, on_event)

    def make(self) -> None:
        """Runs the job undisturbed and keeps its store as it is when each stage begins."""
        store = self.folder / "cells" / "base" / "store"

        def keep(stage: str, event: dict[str, Any]) -> None:
            if event["kind"] == "started":
                shutil.copytree(store, self.snapshot(stage), ignore=LEFT_OUT)

        command = self.command("base", ["run", str(self.job), "--store", str(store)], keep)
        code = command.wait(WAIT_SECONDS)
        assert code in WELL, "\n".join(command.lines)
        shutil.copytree(store, self.snapshot(FINISHED), ignore=LEFT_OUT)
        # The job has a base, and prompts enough.
        stages = [stage for stage in STAGES if stage not in ("cut", "expand")]
        for number, stage in enumerate(stages):
            name = STAGE_OF.get(stage, stage)
            for later in stages[number + 1 :]:
                artifacts = self.snapshot(name) / "artifacts" / later
                shutil.copytree(store / "artifacts" / later, artifacts)
        self.records, self.asked = read_records(str(store)), self.models.callers["base"]


def write_spec(folder: Path, url: str) -> None:
    """Writes the job: its teacher and judge are at an endpoint, its student is trained here."""
    path = write_job(folder, "echo", num_epochs=2)
    job = yaml.safe_load(path.read_text())
    runtime = {"max_concurrency": 3, "max_attempts": 2, "request_timeout_seconds": 3.0}
    at = {"engine": "openai", "endpoint": url, "api_key_env": KEY, "runtime": runtime}
    job["generate"] = {"teacher": endpoint.TEACHER, "top_k": 0, "max_tokens": 12, **at}
    job["generate"] |= {"spending": {"pilot_rows": 0}, "min_success_ratio": 1.0, "shard_size": 16}
    filters = ["non_empty", {"name": "judged", "min_score": 3}]
    job["curate"] = {"filters": filters, "judge": {"model": endpoint.JUDGE, **at}}
    job["train"]["runtime"]["checkpoint_seconds"] = 0
    job["export"] = {"formats": ["gguf:f16"]}
    path.write_text(yaml.safe_dump(job, sort_keys=False))


@contextmanager
def opened(folder: Path, found: Servers) -> Iterator[Lab]:
    """Gives a lab whose job has been run, on servers that run already, until the block ends."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, before)
        write_job(folder, "echo")
        held_out = set(questions(folder / "data/test.jsonl"))
        held_out -= set(questions(*(folder / f"data/{n}.jsonl" for n in ("train", "validation"))))
        models = stack.enter_context(endpoint.serving(held_out))
        write_spec(folder, models.url)
        stack.enter_context(_environment(found.s3))
        lab = Lab(folder, found, models, preload(folder))
        lab.make()
        yield lab


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Adds to the environment of this very process until the block ends."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def serving(folder: Path) -> Iterator[Servers]:
    """Starts the servers and ends them with the block."""
    folder.mkdir()
    try:
        yield Servers(
            servers.shared(folder, servers.prefect),
            servers.shared(folder, servers.mlflow),
            servers.shared(folder, servers.s3),
        )
    finally:
        servers.end_all(folder)


@contextmanager
def disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Makes a small disk of its own, which only root may, until the block ends."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
