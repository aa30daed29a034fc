"""Runs one function in processes of a Ray cluster, and passes on what they say.

`relay` runs in the child, in place of the function. Ray chooses the nodes and watches them; on each
of them torchrun starts the processes, with fixed ranks. They end when this process is gone, for
then Ray ends the actors that hold their standard input.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.events import Event, Reporter
from retort.processes.ray_cluster import Cluster, LostNodeError, connect, first_line
from retort.records import JsonObject

# How long processes that were told to end may take to write a checkpoint.
LEAVE_SECONDS = 90.0
ALIVE_SECONDS, NOTE_SECONDS = 1.0, 10.0


@dataclass(frozen=True)
class Plan:
    """How many processes run on each of how many nodes, with how many threads each; `cluster` is
    the JSON of a `Cluster`, `variables` are of the processes' environment."""

    num_processes: int = 1
    num_nodes: int = 1
    num_threads: int = 1
    cluster: JsonObject = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def words(self, rank: int = 0, host: str = "", port: int = 0) -> list[str]:
        """Returns the words after Python's that start the child's side on the node `rank`, whose
        first one is at host:port."""
        child = ["-m", "retort.processes"]
        if self.num_processes == self.num_nodes == 1:
            return child
        words = ["-m", "torch.distributed.run", f"--nproc-per-node={self.num_processes}"]
        if self.num_nodes == 1:
            return [*words, "--standalone", *child]
        return [
            *words,
            f"--nnodes={self.num_nodes}",
            f"--node-rank={rank}",
            f"--master-addr={host}",
            f"--master-port={port}",
            f"--shutdown-timeout={LEAVE_SECONDS:.0f}",
            *child,
        ]


class Node:
    """The actor: the processes of one node. Two calls may be under way: one waits for events."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._scratch = tempfile.TemporaryDirectory(prefix="retort-")

    def address(self) -> tuple[str, int]:
        """Returns this node's address, and a port that is free on it."""
        import ray.util

        with socket.create_server(("", 0)) as probe:
            here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return here, int(probe.getsockname()[1])

    def start(self, words: list[str], arguments: str, variables: dict[str, str]) -> None:
        """Starts the processes; `words` ends with what the file of arguments follows."""
        path = Path(self._scratch.name) / "arguments.json"
        path.write_text(arguments)
        self._process = subprocess.Popen(
            [sys.executable, *words, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": self._scratch.name, **variables},
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def events(self) -> tuple[list[str], int | None]:
        """Returns what was said since the last call, and the exit code once all have ended."""
        lines: list[str] = []
        with contextlib.suppress(queue.Empty):
            while (line := self._said.get(timeout=0 if lines else ALIVE_SECONDS)) is not None:
                lines.append(line)
            return lines, self._process.wait()
        return lines, None

    def stop(self) -> None:
        """Tells the processes to save what they have and to end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put(None)


def relay(function: str, given: JsonObject, plan: JsonObject, report: Reporter) -> Any:
    """Returns the result of `module:function`, called with `given` in processes of a cluster.

    `plan` is the JSON of `Plan`. What the ranks report goes to `report`, their errors too. Raises
    `LostNodeError` when a node is gone, `ChildProcessError` where a rank failed.
    """
    return _Run(Plan(**plan), report).call(function, given)


class _Run:
    """One function on the nodes of a plan."""

    def __init__(self, plan: Plan, report: Reporter):
        self._plan, self._report = plan, report
        self._cluster = Cluster(**plan.cluster)
        self._ray = connect(self._cluster.address)
        self._result: Any = None

    def call(self, function: str, given: JsonObject) -> Any:
        """Returns the result of rank 0."""
        nodes = self._placed()
        started = self._get([node.address.remote() for node in nodes])
        host, port = started[0]
        for rank, node in enumerate(nodes):
            words = [*self._plan.words(rank, host, port), function, "-"]
            node.start.remote(words, json.dumps(given), self._plan.variables)
        try:
            code = self._watch(nodes, [address for address, _ in started])
        except KeyboardInterrupt:
            self._stop(nodes)
            raise
        if code:
            raise ChildProcessError(f"a process on the cluster ended with exit code {code}")
        return self._result

    def _stop(self, nodes: list[Any]) -> None:
        """Tells all to end and passes on what they still say."""
        for node in nodes:
            node.stop.remote()
        self._watch(nodes, ["" for _ in nodes], LEAVE_SECONDS)

    def _get(self, calls: list[Any]) -> list[Any]:
        try:
            found: list[Any] = self._ray.get(calls)
            return found
        except self._ray.exceptions.RayError as error:
            raise LostNodeError(f"a node is gone before it began ({first_line(error)})") from error

    def _placed(self) -> list[Any]:
        """Returns an actor on each node, once the cluster has room."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        number, each = self._plan.num_nodes, self._plan.num_processes
        num_gpus = each * self._cluster.gpus(self._ray)
        needs = {"CPU": each * self._plan.num_threads, "GPU": num_gpus}
        needs |= {name: each * amount for name, amount in self._cluster.resources.items()}
        bundle = {name: amount for name, amount in needs.items() if amount}
        strategy = "STRICT_SPREAD" if number > 1 else "PACK"
        group = placement_group([bundle] * number, strategy=strategy)
        waits = NOTE_SECONDS
        while not group.wait(timeout_seconds=waits):
            self._report.note(
                f"waiting for room on the Ray cluster: {number} nodes with {bundle} each; free are "
                f"{ {name: self._ray.available_resources().get(name, 0) for name in bundle} }"
            )
            waits *= 2
        options = {"num_cpus": bundle["CPU"], "num_gpus": num_gpus, "max_concurrency": 2}
        places = [PlacementGroupSchedulingStrategy(group, n) for n in range(number)]
        actor = self._ray.remote(Node)
        return [actor.options(**options, scheduling_strategy=p).remote() for p in places]

    def _watch(self, nodes: list[Any], names: list[str], seconds: float = float("inf")) -> int:
        """Passes on what the nodes say until all have ended; returns the first bad exit code.

        Once one has failed the others are told to end, and have `LEAVE_SECONDS`.
        """
        calls = {node.events.remote(): index for index, node in enumerate(nodes)}
        code, give_up = 0, time.monotonic() + seconds
        while calls and time.monotonic() < give_up:
            done, _ = self._ray.wait(list(calls), num_returns=1, timeout=ALIVE_SECONDS)
            for call in done:
                index = calls.pop(call)
                try:
                    lines, ended = self._ray.get(call)
                except self._ray.exceptions.RayError as error:
                    lines, ended = [], 1
                    message = f"node {index + 1}, {names[index]}, is gone ({first_line(error)})"
                    kind = LostNodeError.__name__
                    self._report.emit({"kind": "error", "type": kind, "message": message})
                else:
                    if ended is None:
                        calls[nodes[index].events.remote()] = index
                for line in lines:
                    self._hear(json.loads(line))
                if ended and not code:
                    code, give_up = ended, min(give_up, time.monotonic() + LEAVE_SECONDS)
                    for other in calls.values():
                        nodes[other].stop.remote()
        return code or int(bool(calls))

    def _hear(self, event: Event) -> None:
        if event["kind"] == "result":
            self._result = event["value"]
        else:
            self._report.emit(event)
