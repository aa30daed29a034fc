"""Leases: of any number of processes, on any number of machines, one holds a name at a time.

A claim is a file that one process alone can make; its holder shows that it lives by rewriting a
file of its own every few seconds. Whoever has seen that file unchanged for `LOST_SECONDS` by its
own clock may take what its owner held, so that clocks need not agree. The surprise: claims are
never removed, for a file that can vanish is one that two may make; a name that is taken over gets
another claim.
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
from typing import Any, Literal

import psutil

from retort.errors import StoreError
from retort.store import Folder

BEAT_SECONDS, LOST_SECONDS = 5.0, 30.0
LeaseState = Literal["free", "held", "done"]


class Holder:
    """One process's sign of life in a folder, and what it holds there, while the block lasts.

    `told` is a small JSON value that the others see. When the block ends well, what was held is
    done if `finish` was called, and free otherwise.
    """

    def __init__(
        self,
        folder: Folder,
        on_lost: Callable[[], None] = lambda: None,
        beat_seconds: float = BEAT_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ):
        self.id = uuid.uuid4().hex[:12]
        self.told: dict[str, Any] = {}
        self._folder, self._on_lost = folder, on_lost
        self._beat_seconds, self._lost_seconds = beat_seconds, lost_seconds
        self._state, self._beats = "alive", 0
        self._mine: dict[str, int] = {}
        self._claims: dict[str, str] = {}  # a claim's file -> the holder's id; neither changes
        self._seen: dict[str, tuple[dict[str, Any], float]] = {}
        self._ended, self._lock = threading.Event(), threading.Lock()

    def __enter__(self) -> "Holder":
        self._say()
        threading.Thread(target=self._live, daemon=True).start()
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
        with self._lock, contextlib.suppress(StoreError):  # then it counts as lost, a little later
            self._say()

    def finish(self) -> None:
        """What is held is done when the block ends."""
        self._state = "done"

    def take(self, name: str) -> bool:
        """Takes a name that is free; returns False where another process holds it or has done it.

        Also free is what a process held that is gone. Raises `StoreError`.
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

    def others(self) -> list[dict[str, Any]]:
        """Returns what the others told last, as this process saw it a few seconds ago."""
        with self._lock:
            return [facts["told"] for facts, _ in self._seen.values()]

    def _live(self) -> None:
        """Beats until the block ends; says so once when another process took what is held here."""
        lost = overtaken = False
        while not self._ended.wait(self._beat_seconds):
            # A store that is away for a moment is no reason to stop: the next beat tells.
            with self._lock, contextlib.suppress(StoreError):
                if self._ended.is_set():
                    return
                self._say()
                self._look()
                overtaken = any(self._latest(name) > mine for name, mine in self._mine.items())
            if overtaken and not lost:
                lost = True
                self._on_lost()

    def _say(self) -> None:
        self._beats += 1
        facts = {"state": self._state, "beats": self._beats, "told": self.told, **_identity()}
        self._folder.write(f"holders/{self.id}.json", json.dumps(facts).encode())

    def _look(self) -> None:
        """Reads claims that are new, and how the other holders are."""
        now = time.monotonic()
        for name in self._folder.files():
            if name.startswith("claims/") and name not in self._claims:
                self._claims[name] = self._folder.read(name).decode()
            holder = name.removeprefix("holders/").removesuffix(".json")
            if name.startswith("holders/") and holder != self.id:
                known = self._seen.get(holder)
                if known and known[0]["state"] != "alive":
                    continue
                facts = self._folder.read_json(name)
                if known is None or known[0]["beats"] != facts["beats"]:
                    self._seen[holder] = (facts, now)

    def _latest(self, name: str) -> int:
        """Returns the number of a name's last claim; 0 where there is none."""
        number = 0
        while _claim(name, number + 1) in self._claims:
            number += 1
        return number

    def _state_of(self, name: str) -> LeaseState:
        latest = self._latest(name)
        holder = self._claims.get(_claim(name, latest))
        if holder == self.id:
            return "held"
        if holder is None or holder not in self._seen:
            return "free"
        facts, since = self._seen[holder]
        if facts["state"] == "done":
            return "done"
        silent = time.monotonic() - since > self._lost_seconds
        return "free" if facts["state"] == "left" or silent or _is_gone(facts) else "held"


def _claim(name: str, number: int) -> str:
    return f"claims/{name}.{number:04d}"


def _identity() -> dict[str, Any]:
    """Returns what names this process among all of its machine, and the machine."""
    return {"machine": _machine(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def _machine() -> str:
    """Returns what names the machine, or container, in which a process number has a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _is_gone(facts: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine that has ended: no need to wait then."""
    if facts["machine"] != _machine():
        return False
    try:
        process = psutil.Process(facts["pid"])
        ended = process.status() == psutil.STATUS_ZOMBIE
        return ended or abs(process.create_time() - facts["born"]) > 1
    except psutil.NoSuchProcess:
        return True
