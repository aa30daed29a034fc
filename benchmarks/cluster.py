"""What Ray costs: replicas beside processes by hand, the driver's own work, a node that is lost.

`python -m benchmarks.cluster` takes some minutes. The engine is `echo` with a fixed wait before
each answer, so that no machine limits it: what is measured is handing out, bringing back and
committing. The cluster is a real one, its nodes are processes of this machine. What is simulated is
only the number of machines.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import Measure, show
from retort.engines import Answer, Request, Settings, echo
from retort.engines._replicas import SPARE_REQUESTS, Replicas, open_replicas
from retort.plugins import FOLDER
from retort.processes.ray_cluster import Cluster, connect
from retort.store import Folder
from retort.store.ledger import Ledger, StoredAnswer

ENGINE = "benchmarks.cluster"
GIVES_SIGNAL = SCORES = CONTINUES = REMOTE = False
parse = echo.parse
NODE: dict[str, Any] = {"object_store_memory": 80_000_000}
# Of the engine, by its `model`: seconds of one answer, and how many are answered together.
SERIAL, WIDE = "0.005 1", "0.032 20"
AT_ONCE = 16
# Each stands for sixteen of 256 replicas, whose answers come twenty together every half second.
NUM_WIDE, WIDE_ROWS = 16, 60_000


def open_engine(settings: Settings) -> "Waiting":
    """Returns the engine whose waits `settings.model` names."""
    return Waiting(settings)


class Waiting(echo.EchoEngine):
    """Repeats some requests together after a wait: a machine of a known speed."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        seconds, number = settings.model.split()
        self._seconds, self._number, self.steps = float(seconds), int(number), 0

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the answers in the order of the requests, none before its time."""
        held: list[Request] = []
        due = time.monotonic()
        for request in requests:
            if request is not None:
                held.append(request)
            if len(held) < self._number and request is not None:
                continue
            due = max(due, time.monotonic() - self._seconds) + self._seconds
            time.sleep(max(0.0, due - time.monotonic()))
            self.steps += 1
            yield from super().generate(held)
            held = []
        yield from super().generate(held)


def settings(model: str, replicas: int, at_once: int = AT_ONCE) -> Settings:
    """Returns the settings of so many replicas."""
    runtime = {"max_num_seqs": at_once, "replicas": replicas}
    return Settings(model, 0.0, 1.0, 64, None, 0, "auto", 0, runtime)


def requests(number: int) -> Iterator[Request]:
    """Yields so many short questions."""
    for index in range(number):
        yield Request(f"{index:016d}", [{"role": "user", "content": "What is it?"}])


def by_hand(number: int) -> float:
    """Returns the rows a second of one engine in this process."""
    started = time.monotonic()
    assert sum(1 for _ in Waiting(settings(SERIAL, 1)).generate(requests(number))) == number
    return number / (time.monotonic() - started)


def in_processes(count: int, number: int) -> float:
    """Returns the rows a second of so many processes by hand, each with its part of the rows."""
    command = [sys.executable, "-m", ENGINE, str(number // count)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return sum(float(process.communicate()[0]) for process in running)


@contextlib.contextmanager
def cluster(num_nodes: int, num_cpus: int) -> Iterator[Any]:
    """A head, and nodes with room for so many replicas each; its address is `address`."""
    from ray.cluster_utils import Cluster as Nodes

    os.environ[FOLDER] = str(Path(__file__).resolve().parents[1])
    found = Nodes(
        initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(num_nodes):
            found.add_node(num_cpus=num_cpus, **NODE)
        yield found
    finally:
        import ray

        ray.shutdown()
        found.shutdown()  # type: ignore[no-untyped-call]


def opened(address: str, chosen: Settings) -> Replicas:
    """Returns the replicas, once all of them are there."""
    replicas = open_replicas(ENGINE, chosen, Cluster(address, num_gpus=0), print)
    while not all(hand.is_ready for hand in replicas._hands):
        list(replicas._receive())
    return replicas


def closed(replicas: Replicas) -> None:
    """Gives the replicas' room back."""
    for hand in replicas._hands:
        replicas._ray.kill(hand.actor)
    time.sleep(2.0)


def pace(replicas: Replicas, number: int) -> float:
    """Returns the rows a second."""
    started = time.monotonic()
    assert sum(1 for _ in replicas.generate(requests(number))) == number
    return number / (time.monotonic() - started)


def of_replicas(address: str) -> list[Measure]:
    """Returns how replicas compare with processes by hand, and with one another."""
    connect(address)
    alone = by_hand(2000)
    started = time.monotonic()
    one = opened(address, settings(SERIAL, 1))
    start = time.monotonic() - started
    pace_of_one = pace(one, 2000)
    closed(one)
    processes = in_processes(2, 4000)
    two = opened(address, settings(SERIAL, 2))
    pace_of_two = pace(two, 4000)
    closed(two)
    many = opened(address, settings(SERIAL, 16))
    pace_of_many = pace(many, 32000)
    closed(many)
    print(
        f"rows a second: one by hand {alone:.1f}, one replica {pace_of_one:.1f}, two processes "
        f"{processes:.1f}, two replicas {pace_of_two:.1f}, sixteen {pace_of_many:.1f}"
    )
    shares = (pace_of_one / alone, pace_of_two / processes, pace_of_many / pace_of_one)
    return [
        ("cluster.start_seconds", start, 15.0, start <= 15.0),
        ("cluster.one_replica_over_none", shares[0], 0.97, shares[0] >= 0.97),
        ("cluster.two_replicas_over_two_processes", shares[1], 0.95, shares[1] >= 0.95),
        ("cluster.sixteen_replicas_over_one", shares[2], 14.0, shares[2] >= 14.0),
    ]


def of_driver(address: str, folder: Path) -> list[Measure]:
    """Returns the driver's CPU time for each answer that is handed out, brought back and committed,
    as the share of a core at 10,000 answers a second."""
    replicas = opened(address, settings(WIDE, NUM_WIDE, at_once=20))
    ledger = Ledger(Folder(str(folder)), parse, "run")
    ledger.start(replicas.facts)
    list(replicas.generate(requests(2000)))
    cpu, started, of_ledger = time.process_time(), time.monotonic(), 0.0
    for answer in replicas.generate(requests(WIDE_ROWS)):
        before = time.thread_time()
        ledger.add(StoredAnswer(answer.id, (64, 64), "artifact", time.time(), answer.raw), None)
        of_ledger += time.thread_time() - before
    cpu, rate = time.process_time() - cpu, WIDE_ROWS / (time.monotonic() - started)
    ledger.close()
    closed(replicas)
    each, share = cpu / WIDE_ROWS, cpu / WIDE_ROWS * 10_000
    print(
        f"driver: {rate:.0f} answers a second from {NUM_WIDE} replicas; {each * 1e6:.1f} "
        f"microseconds of CPU an answer, {of_ledger / WIDE_ROWS * 1e6:.1f} of them the ledger's"
    )
    return [("cluster.driver_core_share_at_10000", share, 0.25, share <= 0.25)]


def of_lost_node(nodes: Any) -> list[Measure]:
    """Returns what a node's SIGKILL costs: requests asked again, and seconds without its replica's
    successor."""
    gone = nodes.add_node(num_cpus=1, resources={"spare": 1}, **NODE)
    cluster_of = Cluster(nodes.address, num_gpus=0, resources={"spare": 1})
    said: list[str] = []
    replicas = open_replicas(ENGINE, settings(SERIAL, 1), cluster_of, said.append)
    nodes.add_node(num_cpus=1, resources={"spare": 1}, **NODE)
    gap, last = 0.0, time.monotonic()
    for count, _ in enumerate(replicas.generate(requests(3000))):
        now = time.monotonic()
        gap, last = max(gap, now - last), now
        if count == 500:
            nodes.remove_node(gone, allow_graceful=False)
    lost = next(text for text in said if "was lost" in text)
    again = int(lost.split("; ")[1].split()[0])
    print(f"a node was lost: {lost}; {gap:.1f} s without an answer")
    closed(replicas)
    return [
        ("cluster.asked_again", again, AT_ONCE + SPARE_REQUESTS, again <= AT_ONCE + SPARE_REQUESTS),
        ("cluster.seconds_to_go_on", gap, 30.0, gap <= 30.0),
    ]


def main() -> None:
    """Measures replicas, the driver and a lost node on one cluster."""
    with cluster(1, 16) as nodes:
        measures = of_replicas(nodes.address)
        measures += of_lost_node(nodes)
    with cluster(1, NUM_WIDE) as nodes, tempfile.TemporaryDirectory() as folder:
        measures += of_driver(nodes.address, Path(folder))
    show(measures)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(by_hand(int(sys.argv[1])))
    else:
        main()
