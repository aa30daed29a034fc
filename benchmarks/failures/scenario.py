"""One cell: a job goes on from where its step begins, the fault hits, and the same command is given
again without it. What comes of it is compared with the undisturbed job."""

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from benchmarks.failures import damage, faults
from benchmarks.failures.command import Command
from benchmarks.failures.endpoint import Caller, Gate, Question
from benchmarks.failures.lab import FINISHED, WAIT_SECONDS, WELL, Lab, disk
from benchmarks.failures.matrix import Cell
from benchmarks.failures.relay import Relay, relaying
from benchmarks.failures.results import read_records
from retort.store import Folder, open_store
from tests.support.slow_s3 import Asked, Proxy, in_front_of

# More than a job wants to find free before it begins.
DISK_BYTES = 300 << 20
# Answers of the endpoint after which it is held until the fault has hit.
GATES = {"generate": 20, "curate": 20, "evaluate": 8}
# Faults that are there from a stage's first moment, and not in its middle.
FROM_THE_START: tuple[str, ...] = (
    "s3_errors",
    "s3_slow",
    "s3_403",
    "out_of_memory",
    "two_runs",
    "read_only",
)
FROM_THE_START += ("mlflow_away", "prefect_away", "disk_full")
# What a stage says in its middle: the kind of the event, and a word of it.
MIDDLES = {
    "prepare": ("note", "recognised"),
    "train": ("metrics", ""),
    "export": ("progress", ""),
    "report": ("progress", ""),
    "commit": ("note", "requests in this run"),
}
# The run may finish in spite of these, with less than the next one.
PARTIAL = ("mlflow_away", "http_500", "http_garbage", "engine_death")
TRACEBACK = "Traceback (most recent call last)"
MESSAGE = re.compile(r"^(retort: (?!the log of)|\S+: (warning: |.*(starting it|does not answer)))")


@dataclass
class Outcome:
    """What came of a cell. `problem` says what should not be; empty where all is as it should."""

    step: str
    fault: str
    rows_lost: int = 0
    asked_twice: int = 0
    in_flight: int = 0
    state: str = ""
    message: str = ""
    rework: str = "none"
    is_silent: bool = False
    seconds: float = 0.0
    problem: str = ""


@dataclass
class Bench:
    """A cell under way: its store and the servers in front of which something stands."""

    lab: Lab
    cell: Cell
    stack: ExitStack
    env: dict[str, str] = field(default_factory=dict)
    store: str = ""
    disk: Path | None = None
    s3: Proxy | None = None
    mlflow: Proxy | None = None
    prefect: Relay | None = None
    commands: list[Command] = field(default_factory=list)
    has_hit: bool = False
    # What was answered, and what was under way, when the fault hit.
    paid: Counter[Question] = field(default_factory=Counter)
    flying: Counter[Question] = field(default_factory=Counter)
    is_over: bool = False  # the command with the fault has ended
    hit: Callable[["Bench"], None] = lambda bench: None
    lock: Any = field(default_factory=threading.Lock)

    @property
    def caller(self) -> Caller:
        """This cell's requests at the endpoint."""
        return self.lab.models.callers.setdefault(self.cell.name, Caller())

    @property
    def folder(self) -> Path:
        """The cell's own folder."""
        return self.lab.folder / "cells" / self.cell.name

    def fire(self) -> None:
        """Lets the fault hit, once."""
        with self.lock:
            if not self.has_hit:
                self.has_hit, self.paid = True, Counter(self.caller.given)
                self.flying = self.caller.seen - self.paid
                self.hit(self)

    def start(self, *words: str, is_watched: bool = False) -> Command:
        """Starts the job; with `is_watched` the fault hits at its moment."""
        run = ["run", str(self.lab.job), "--store", self.store, *words]
        on_event = self._heard if is_watched else None
        command = self.lab.command(self.cell.name, run, on_event, **self.env)
        self.commands.append(command)
        return command

    def _heard(self, stage: str, event: dict[str, Any]) -> None:
        """Lets the fault hit at an event of the stage, where that is its moment."""
        step, fault = self.cell.step, self.cell.fault
        if stage != self.cell.stage or step in ("upload", "register"):
            return
        if step == "commit" or fault not in FROM_THE_START:
            kind, word = MIDDLES.get(step, ("", ""))
            is_moment = event["kind"] == kind and word in event.get("text", "")
        else:
            is_moment = event["kind"] == "started"
        if is_moment:
            self.fire()

    def watch(self) -> None:
        """Prepares the moments that are no events: answers of the endpoint, requests to servers."""
        step, fault = self.cell.step, self.cell.fault
        if step in GATES and fault not in FROM_THE_START:
            wanted = num_committed(self.store) + GATES[step]
            self.caller.gate = Gate(
                self.cell.stage,  # type: ignore[arg-type]
                GATES[step],
                self.fire,
                lambda: step == "evaluate" or num_committed(self.store) >= wanted,
            )
        if step == "upload" and self.s3:
            self.s3.behave = self._at("put", "responses-00000.jsonl")
        if step == "register" and self.mlflow:
            self.mlflow.behave = self._at("post", "model-versions/create")

    def _at(self, what: str, ending: str) -> Callable[[Asked], Any]:
        def behave(asked: Asked) -> None:
            if asked.what == what and asked.key.endswith(ending):
                self.fire()

        return behave

    def wait_for_children(self) -> None:
        """Returns when no child of a command that has ended is left: each ends by itself."""
        deadline = time.monotonic() + WAIT_SECONDS
        while faults.stages_of(str(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)

    def well(self) -> None:
        """Ends the fault."""
        self.caller.gate, self.caller.fault = None, ""
        for proxy in (self.s3, self.mlflow):
            if proxy:
                proxy.well()
        self.env.pop("PREFECT_API_URL", None)
        faults.mend(self)


def play(lab: Lab, cell: Cell) -> Outcome:
    """Returns what came of a cell."""
    started = time.monotonic()
    outcome = Outcome(cell.step, cell.fault)
    with ExitStack() as stack:
        bench = _bench(lab, cell, stack)
        try:
            if cell.fault in damage.DAMAGES:
                damage.play(bench, outcome)
            else:
                _disturb(bench, outcome)
        except Exception as error:  # a cell that cannot be run is a problem of its own
            outcome.problem = outcome.problem or f"{type(error).__name__}: {error}"
    outcome.seconds = time.monotonic() - started
    return outcome


def _bench(lab: Lab, cell: Cell, stack: ExitStack) -> Bench:
    """Returns the cell with its store as it is when its stage begins."""
    bench = Bench(lab, cell, stack, hit=faults.HITS.get(cell.fault, lambda bench: None))
    shutil.rmtree(bench.folder, ignore_errors=True)
    bench.folder.mkdir(parents=True)
    source = lab.snapshot(FINISHED if cell.fault in damage.DAMAGES else cell.stage)
    if cell.on_s3:
        bench.s3 = stack.enter_context(in_front_of(lab.servers.s3["AWS_ENDPOINT_URL"]))
        bench.env |= {"AWS_ENDPOINT_URL": bench.s3.url}
        bench.store = f"s3://retort/{lab.folder.name}/{cell.name}"
        files = fsspec.filesystem("s3", endpoint_url=lab.servers.s3["AWS_ENDPOINT_URL"])
        files.put(f"{source}/", f"retort/{lab.folder.name}/{cell.name}/", recursive=True)
    else:
        place = bench.folder
        if cell.fault in ("disk_full", "read_only"):
            bench.disk = place = stack.enter_context(disk(bench.folder / "disk", DISK_BYTES))
        bench.store = str(place / "store")
        shutil.copytree(source, bench.store)
    if cell.step == "register" or cell.fault == "mlflow_away":
        bench.mlflow = stack.enter_context(in_front_of(lab.servers.mlflow))
        bench.env |= {"MLFLOW_TRACKING_URI": bench.mlflow.url}
    if cell.fault == "prefect_away":
        bench.prefect = stack.enter_context(relaying(lab.servers.prefect))
        bench.env |= {"PREFECT_API_URL": bench.prefect.url}
    faults.prepare(bench)
    return bench


def _disturb(bench: Bench, outcome: Outcome) -> None:
    """Runs the job with the fault, and again without it."""
    finished = {name.split("/")[0] for name in read_records(bench.store)}
    bench.watch()
    command = bench.start(is_watched=True)
    code = command.wait(WAIT_SECONDS)
    codes = [code, *(other.wait(WAIT_SECONDS) for other in bench.commands[1:])]
    if not bench.has_hit:
        outcome.problem = f"the fault never hit; exit code {code}: {command.lines[-3:]}"
        return
    bench.is_over = True
    stopped = code not in WELL
    bench.wait_for_children()
    bench.well()
    num_before = bench.caller.seen.total()
    outcome.message = message_of(command.lines)
    outcome.state = state_of(code)
    last = command
    if stopped or bench.cell.fault in PARTIAL:
        last = bench.start()
        codes = [last.wait(WAIT_SECONDS)]
    judge(bench, outcome, command, last, codes)
    # A command that is ended, or its child, may be given answers as long as it ends.
    again = bench.caller.given - bench.lab.asked.given - bench.flying
    paid = bench.paid if stopped else bench.caller.given
    outcome.asked_twice = sum(number for asked, number in again.items() if paid[asked])
    outcome.in_flight = bench.flying.total() + again.total() - outcome.asked_twice
    if outcome.asked_twice and not outcome.problem:
        outcome.problem = f"{outcome.asked_twice} answered requests were sent again"
    if last is not command:
        outcome.rework = _rework(bench, last, finished, num_before)


def judge(
    bench: Bench, outcome: Outcome, command: Command, last: Command, codes: list[int | None]
) -> None:
    """Compares what is stored and what was asked with the undisturbed job."""
    expected, found = bench.lab.records, read_records(bench.store)
    outcome.rows_lost = sum(found.get(name) != value for name, value in expected.items())
    outcome.is_silent = outcome.rows_lost > 0 and codes[-1] in WELL
    texts = "\n".join(line for each in bench.commands for line in each.lines)
    if None in codes:
        outcome.problem = f"a command hung for {WAIT_SECONDS:g} s"
    elif any(code not in WELL for code in codes):
        outcome.problem = f"the same command ended with {codes}: {message_of(last.lines)}"
    elif TRACEBACK in texts:
        outcome.problem = "a traceback was shown"
    elif outcome.rows_lost:
        lost = [name for name, value in expected.items() if found.get(name) != value]
        outcome.problem = f"differs from the undisturbed job: {lost[:4]}"
    if not outcome.problem and bench.cell.step == "register":
        outcome.problem = faults.registered_twice(bench)


def message_of(lines: list[str]) -> str:
    """Returns what a person was told, on one line: of the error, else of the last warning."""
    said = [line for line in lines if MESSAGE.search(line)]
    errors = [line for line in said if line.startswith("retort: ")]
    return (errors or said or [""])[-1].removeprefix("retort: ")


def state_of(code: int | None) -> str:
    """Returns how a command ended, in words."""
    if code in WELL:
        return "finished"
    return {None: "hung", -9: "killed", 143: "ended by SIGTERM"}.get(code, f"stopped, exit {code}")


def _rework(bench: Bench, last: Command, finished: set[str], num_before: int) -> str:
    """Returns what the same command did again."""
    redone = {line.partition(":")[0] for line in last.lines if ": done in" in line} & finished
    if redone:
        return f"made again although finished: {', '.join(sorted(redone))}"
    for line in last.lines:
        if line.startswith(f"{bench.cell.stage}: continuing after"):
            return line.partition(": ")[2]
    if f"{bench.cell.stage}: cached" in last.lines:
        return "none: the stage is cached"
    if bench.cell.stage not in GATES:
        return bench.cell.stage
    number = bench.caller.seen.total() - num_before
    return f"{bench.cell.stage}, {number} requests"


def num_committed(store: str) -> int:
    """Returns how many answers are in the ledgers of a store."""
    ledgers = Folder(f"{open_store(store).uri}/ledger")
    names = [name for name in ledgers.files() if name.endswith(".jsonl")]
    return sum(ledgers.read(name).count(b'{"key":') for name in names)


def sources_of(bench: Bench) -> str:
    """Returns the address of the released student, by which its versions are known."""
    name = open_store(bench.store).job("tiny").read_json("artifacts.json")["release"]
    return f"{open_store(bench.store).uri}/artifacts/release/{name}/model"
