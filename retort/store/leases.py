"""Leases: of any number of processes, on any number of machines, one holds a name at a time.

A claim is a file that only one process can create. Its holder shows that it is alive by rewriting a
file of its own every few seconds. A process that has seen that file unchanged for `LOST_SECONDS`
by its own clock may take over what the holder had, so the machines' clocks need not agree. Note:
claims are never removed, because a file that can vanish could be created twice; each take-over of
a name is a further claim with the next number.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypedDict

import psutil

from retort.errors import DamagedError, StoreError
from retort.store import Folder

BEAT_SECONDS, LOST_SECONDS = 5.0, 30.0
LeaseState = Literal["free", "held", "done"]


class ProcessIdentity(TypedDict):
    """What names a process among all processes of its machine, and the machine.

    `started` is a time that no setting of a clock moves; other processes compare it for equality.
    """

    machine: str
    pid: int
    started: float


class HolderFacts(ProcessIdentity):
    """The content of a holder's file. `state` is alive, left or done; `beats` grows."""

    state: str
    beats: int


class Holder:
    """One process in a folder of leases: its heartbeat, and the names it holds, until the block
    ends.

    When it ends without an error, the names held are done if `finish` was called; otherwise they
    are free.
    """

    def __init__(
        self,
        folder: Folder,
        on_lost: Callable[[], None] = lambda: None,
        beat_seconds: float = BEAT_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ):
        self.id = uuid.uuid4().hex[:12]
        self._folder, self._on_lost = folder, on_lost
        self._beat_seconds, self._lost_seconds = beat_seconds, lost_seconds
        self._state, self._beats = "alive", 0
        self._mine: dict[str, int] = {}  # name -> number of this holder's claim
        self._claims: dict[str, str] = {}  # a claim's file -> the holder's id; neither changes
        self._others: dict[str, tuple[HolderFacts, float]] = {}  # id -> facts, when they changed
        self._ended, self._lock = threading.Event(), threading.Lock()

    def __enter__(self) -> "Holder":
        self._beat()
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if kind or self._state == "alive":
            self._state = "left"
        # If this last write fails, the holder counts as lost a little later.
        with self._lock, contextlib.suppress(StoreError):
            self._beat()

    def finish(self) -> None:
        """Makes the names held done when the block ends."""
        self._state = "done"

    def take(self, name: str) -> bool:
        """Takes a name that is free; returns whether this process holds it now.

        A name is also free when its holder is gone. Raises `StoreError`.
        """
        with self._lock:
            self._look()
            if self._state_of(name) != "free":
                return self._mine.get(name) == self._latest(name)
            number = self._latest(name) + 1
            if not self._folder.create(_claim(name, number), self.id.encode()):
                return False
            self._claims[_claim(name, number)] = self.id
            self._mine[name] = number
            return True

    def states(self, names: Iterable[str]) -> dict[str, LeaseState]:
        """Returns whether each name is free, held by a living process, or done.

        Raises `StoreError`.
        """
        with self._lock:
            self._look()
            return {name: self._state_of(name) for name in names}

    def _keep_beating(self) -> None:
        """Beats until the block ends; calls `on_lost` once when another process took a name that
        is held here."""
        is_reported = is_lost = False
        while not self._ended.wait(self._beat_seconds):
            # A store may be away for a moment: the next beat tries again.
            with self._lock, contextlib.suppress(StoreError):
                if self._ended.is_set():
                    return
                self._beat()
                self._look()
                is_lost = any(self._latest(name) > mine for name, mine in self._mine.items())
            if is_lost and not is_reported:
                is_reported = True
                self._on_lost()

    def _beat(self) -> None:
        self._beats += 1
        facts = HolderFacts(state=self._state, beats=self._beats, **_this_process())
        self._folder.write(f"holders/{self.id}.json", json.dumps(facts).encode())

    def _look(self) -> None:
        """Reads new claims and the files of the other holders that may have changed."""
        now = time.monotonic()
        for name in self._folder.files():
            if name.startswith("claims/") and name not in self._claims:
                self._claims[name] = self._folder.read(name).decode()
            holder = name.removeprefix("holders/").removesuffix(".json")
            if name.startswith("holders/") and holder != self.id:
                known = self._others.get(holder)
                if known and known[0]["state"] != "alive":
                    continue
                facts = self._read_facts(name)
                if known is None or known[0]["beats"] != facts["beats"]:
                    self._others[holder] = (facts, now)

    def _read_facts(self, name: str) -> HolderFacts:
        """Returns the content of a holder's file. One that cannot be read never changes, so its
        holder counts as lost after `LOST_SECONDS`."""
        facts: Any = None
        with contextlib.suppress(DamagedError):
            facts = self._folder.read_json(name)
        if not isinstance(facts, dict):
            facts = {}
        return HolderFacts(
            state=facts.get("state", "alive"),
            beats=facts.get("beats", 0),
            # Of older versions, which stored another time, it is not known whether they are gone.
            machine=facts["machine"] if "started" in facts else "",
            pid=facts.get("pid", 0),
            started=facts.get("started", 0.0),
        )

    def _latest(self, name: str) -> int:
        """Returns the number of a name's last claim; 0 where there is none."""
        number = 0
        while _claim(name, number + 1) in self._claims:
            number += 1
        return number

    def _state_of(self, name: str) -> LeaseState:
        holder = self._claims.get(_claim(name, self._latest(name)))
        if holder == self.id:
            return "held"
        if holder is None or holder not in self._others:
            return "free"
        facts, changed_at = self._others[holder]
        if facts["state"] == "done":
            return "done"
        is_silent = time.monotonic() - changed_at > self._lost_seconds
        return "free" if facts["state"] == "left" or is_silent or _is_gone(facts) else "held"


def _claim(name: str, number: int) -> str:
    return f"claims/{name}.{number:04d}"


def _this_process() -> ProcessIdentity:
    return ProcessIdentity(machine=_machine(), pid=os.getpid(), started=_started(os.getpid()))


def _started(pid: int) -> float:
    """Returns when a process started. On Linux in clock ticks since the boot: psutil adds the time
    of the boot, which moves when the clock is set. Raises `psutil.NoSuchProcess`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return float(text.rpartition(")")[2].split()[19])
    except OSError:
        return psutil.Process(pid).create_time()


def _machine() -> str:
    """Returns what names the machine, or container, in which a process number has a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _is_gone(facts: HolderFacts) -> bool:
    """Whether a holder was a process of this machine that has ended: then nobody need wait."""
    if facts["machine"] != _machine():
        return False
    try:
        is_zombie = psutil.Process(facts["pid"]).status() == psutil.STATUS_ZOMBIE
        return is_zombie or _started(facts["pid"]) != facts["started"]
    except psutil.NoSuchProcess:
        return True
