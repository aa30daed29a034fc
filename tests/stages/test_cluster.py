"""A real Ray cluster of several nodes: each row is answered once and a student learns the same,
whoever is lost.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from retort import processes
from retort.engines import Request, Settings
from retort.engines._replicas import open_replicas
from retort.errors import EngineDiedError, SpecError, StageError
from retort.events import SILENT, Reporter
from retort.jobs import devices
from retort.plugins import FOLDER
from retort.processes.ray_cluster import Cluster, LostNodeError
from retort.spec import build, load
from retort.stages.stage import Stage
from retort.store import Folder
from tests.conftest import BIN, ROOT, environment
from tests.jobs import test_sweep
from tests.stages.test_ranks import notes
from tests.stages.test_ranks import run as run_training
from tests.support.servers import free_port
from tests.support.stages import job, run, segments
from tests.support.tiny import save_model, write_job
from tests.support.training import made

cluster_utils = pytest.importorskip("ray.cluster_utils")
ENGINE = "tests.support.slow_echo"
NUM_ROWS, WINDOW = 300, 8 + 32
SMALL = {"object_store_memory": 80_000_000}
NODE = {"num_cpus": 1, **SMALL}


@pytest.fixture(scope="module")
def cluster():
    """A head that runs nothing, and two nodes with room for a replica each."""
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(**NODE)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "student", seed=3)


@pytest.fixture
def raw(student, tmp_path, cluster):
    """A job of a slow teacher on the cluster, with two replicas."""
    (tmp_path / "teacher").symlink_to(student)
    wait_for_each(tmp_path, 0.01)
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} + 1?"}) + "\n" for n in range(NUM_ROWS)))
    runtime = {"max_num_seqs": 8, "replicas": 2}
    asked = job(tmp_path / "teacher", rows, ENGINE, spending={"pilot_rows": 8}, runtime=runtime)
    return {**asked, "cluster": {"ray": cluster.address}}


def asked_by(folder: Path) -> list[tuple[int, str]]:
    """Who was asked what, in order."""
    path = folder / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), key) for pid, key in (line.split() for line in lines)]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def meanwhile(function, *arguments, **named):
    """Calls a function in a thread; the value it returns can be waited for."""
    pool = ThreadPoolExecutor(1)
    found = pool.submit(function, *arguments, **named)
    pool.shutdown(wait=False)
    return found


def pids(folder: Path) -> set[int]:
    return {pid for pid, _ in asked_by(folder)}


def wait_for_each(folder: Path, seconds: float) -> None:
    """Sets how long the teacher of a folder takes for each answer, from now on."""
    (folder / "new").write_text(str(seconds))
    (folder / "new").replace(folder / "seconds")


def keys(store: Path) -> Counter:
    return Counter(entry["key"] for entry in segments(str(store)))


def test_a_cluster_changes_no_answer_and_no_artifact(raw, tmp_path):
    facts, there = run(raw, str(tmp_path / "there"))
    assert len(pids(tmp_path)) == 2
    assert facts["num_asked"] == NUM_ROWS
    alone = {name: value for name, value in raw.items() if name != "cluster"}
    _, here = run(alone, str(tmp_path / "here"))
    assert [(r.id, r.text, r.state) for r in there] == [(r.id, r.text, r.state) for r in here]
    again, _ = run(alone, str(tmp_path / "there"))
    assert again["num_asked"] == 0


def test_replicas_of_vllm_give_the_answers_and_the_signal_of_one(student, tmp_path, cluster):
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} + {n}?"}) + "\n" for n in range(16)))
    runtime = {"max_num_seqs": 4, "num_threads": 1, "replicas": 2, "parity_samples": 2}
    more = {"max_tokens": 6, "top_k": 4, "max_model_len": 64, "dtype": "float32"}
    raw = job(student, rows, "vllm", runtime=runtime, **more)
    one = {**raw, "generate": {**raw["generate"], "runtime": {**runtime, "replicas": 1}}}
    facts, there = run({**raw, "cluster": {"ray": cluster.address}}, str(tmp_path / "there"))
    alone, here = run(one, str(tmp_path / "here"))
    assert [r.token_ids for r in there] == [r.token_ids for r in here]
    assert facts["num_signals"] == alone["num_signals"] == len(there) == 16
    assert facts["top_k_mass"] == pytest.approx(alone["top_k_mass"], abs=1e-5)
    assert facts["parity"].keys() == alone["parity"].keys()


def test_replicas_of_vllm_on_a_node_that_comes_and_one_that_is_killed_answer_each_row_once(
    student, tmp_path, cluster
):
    rows, number, store = tmp_path / "train.jsonl", 240, str(tmp_path / "store")
    rows.write_text("".join(json.dumps({"question": f"{n} + {n}?"}) + "\n" for n in range(number)))
    runtime = {"max_num_seqs": 2, "num_threads": 1, "replicas": [1, 3], "parity_samples": 0}
    more = {"max_tokens": 40, "top_k": 4, "max_model_len": 96, "dtype": "float32"}
    raw = job(student, rows, "vllm", runtime=runtime, **more)
    running = meanwhile(run, {**raw, "cluster": {"ray": cluster.address}}, store)
    wait_until(lambda: len(segments(store)) > 10)
    node = cluster.add_node(**NODE)
    os.kill(replicas()[0].pid, signal.SIGKILL)
    facts, responses = running.result(300)
    cluster.remove_node(node)
    assert len(responses) == facts["num_signals"] == number
    assert set(keys(tmp_path / "store").values()) == {1}
    assert {r.state for r in responses} <= {"accepted", "truncated"}


def replicas() -> list[psutil.Process]:
    """The processes in which replicas run, wherever Ray put them."""
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if "ray::_Replica" in " ".join(each.info["cmdline"] or ())]


def test_a_replica_that_is_killed_is_replaced_and_its_rows_are_asked_again(raw, tmp_path):
    said = []
    wait_for_each(tmp_path, 0.1)
    running = meanwhile(run, raw, str(tmp_path / "store"), Reporter(said.append))
    wait_until(lambda: len(asked_by(tmp_path)) > 40)
    os.kill(asked_by(tmp_path)[-1][0], signal.SIGKILL)
    wait_until(lambda: len(pids(tmp_path)) == 3)
    wait_for_each(tmp_path, 0.0)
    _, responses = running.result(120)
    assert len(responses) == NUM_ROWS and {r.state for r in responses} == {"accepted"}
    assert set(keys(tmp_path / "store").values()) == {1}
    assert len(asked_by(tmp_path)) - NUM_ROWS <= WINDOW
    lost = [e["text"] for e in said if e["kind"] == "note" and "was lost" in e["text"]]
    assert len(lost) == 1 and "requests are handed out again" in lost[0]


def test_a_replica_that_is_lost_while_it_is_timed_is_an_engine_that_died(tmp_path, cluster):
    import ray

    (tmp_path / "teacher").mkdir()
    wait_for_each(tmp_path, 0.0)
    settings = Settings(str(tmp_path / "teacher"), 0.0, 1.0, 8, None, 0, "auto", 0, {})
    request = Request("one", [{"role": "user", "content": "hello"}])
    try:
        engine = open_replicas(ENGINE, settings, Cluster(cluster.address), print)
        assert engine.timed(request).whole_seconds < 60 and engine.shown == "1 of 1 replicas"
        host, gpu = engine.peaks()
        assert host > 1e7 and gpu is None
        os.kill(asked_by(tmp_path)[-1][0], signal.SIGKILL)
        with pytest.raises(EngineDiedError, match="a replica was lost"):
            engine.timed(request)
    finally:
        ray.shutdown()


def test_a_node_that_comes_takes_part_and_one_that_goes_is_done_without(raw, tmp_path, cluster):
    raw["generate"]["runtime"]["replicas"] = [1, 3]
    wait_for_each(tmp_path, 0.2)
    running = meanwhile(run, raw, str(tmp_path / "store"))
    wait_until(lambda: len(asked_by(tmp_path)) > 40)
    node = cluster.add_node(**NODE)
    wait_until(lambda: len(pids(tmp_path)) == 3)
    cluster.remove_node(node, allow_graceful=False)
    wait_for_each(tmp_path, 0.0)
    _, responses = running.result(120)
    assert len(responses) == NUM_ROWS and set(keys(tmp_path / "store").values()) == {1}
    assert len(asked_by(tmp_path)) - NUM_ROWS <= WINDOW


DRIVER = """
import json, sys
from tests.support.stages import run
run(json.loads(sys.stdin.read()), sys.argv[1])
"""


def test_a_driver_that_is_killed_goes_on_elsewhere_with_what_was_committed(raw, tmp_path):
    store = tmp_path / "store"
    wait_for_each(tmp_path, 0.02)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(store)],
        stdin=subprocess.PIPE,
        env={**environment(), FOLDER: str(ROOT)},
        text=True,
        start_new_session=True,
    )
    driver.stdin.write(json.dumps(raw))
    driver.stdin.close()
    deadline = time.monotonic() + 90
    while len(segments(str(store))) < 50:
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)
    processes.end(driver, 0.0, signal.SIGKILL)
    committed = set(keys(store))
    wait_for_each(tmp_path, 0.0)
    (tmp_path / "asked").unlink()
    alone = {name: value for name, value in raw.items() if name != "cluster"}
    _, responses = run(alone, str(store))
    assert len(responses) == NUM_ROWS
    assert not committed & {key for _, key in asked_by(tmp_path)}


def test_a_cluster_that_is_not_there_is_refused_with_the_remedy(raw, tmp_path):
    raw["cluster"] = {"ray": "127.0.0.1:1"}
    with pytest.raises(SpecError, match=r"cluster.ray: 127.0.0.1:1; no Ray cluster .*ray start"):
        run(raw, str(tmp_path / "store"), SILENT)


def test_what_the_cluster_lacks_is_said_before_anything_waits_for_it(raw):
    raw["cluster"]["num_gpus"] = 2
    raw["train"] = {**raw["train"], "runtime": {"num_nodes": 3, "num_processes": 2}}
    lines = devices.check(build(raw))
    assert any(
        re.fullmatch(r"cluster.ray: \S+, [34] nodes, [23] CPUs, 0 GPUs", line) for line in lines
    )
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert any(
        "generate.runtime: 2 replicas take 4 GPUs, and the cluster has 0" in w for w in warnings
    )
    assert any(
        "3 nodes with 2 processes and 4 GPUs each, and the cluster has 0" in w for w in warnings
    )


def test_a_cluster_of_rays_own_commands_takes_only_who_has_the_token(tmp_path):
    """As docker/compose.yaml starts it: a head, a node that joins it, and a member's driver."""
    port, words = free_port(), ("--num-cpus=1", "--object-store-memory=80000000", "--block")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"

    def start(name: str, *more: str) -> subprocess.Popen:
        command = [str(BIN / "ray"), "start", *more, *words]
        log = (tmp_path / name).open("w")
        env = environment(**token)
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def nodes(**env: str) -> int | None:
        code = (
            f"import ray; ray.init('{address}', logging_level=40); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=environment(**env), capture_output=True, text=True, check=False, timeout=90
        )
        return int(done.stdout) if done.returncode == 0 else None

    started = [start("head", "--head", f"--port={port}", "--include-dashboard=false")]
    try:
        wait_until(lambda: nodes(**token) == 1)
        started.append(start("node", f"--address={address}"))
        wait_until(lambda: nodes(**token) == 2)
        assert nodes() is None
        assert nodes(**{**token, "RAY_AUTH_TOKEN": "8" * 64}) is None
    finally:
        for process in reversed(started):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait(30)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Stage:
    folder = tmp_path_factory.mktemp("training")
    return made(load(write_job(folder, engine="transformers"))[0].model_dump(mode="json"), folder)


# Enough steps that what happens to a node on the way does not come too late.
TWO, PASSES = {"num_nodes": 2}, {"num_epochs": 20}


@pytest.fixture(scope="module")
def on_one_machine(ready, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("one") / "out"
    run_training(ready, out, {"num_processes": 2}, **PASSES)
    return student_of(out)


def student_of(out: Path) -> bytes:
    return Folder(str(out)).read("student/model.safetensors")


def free_cpus(cluster) -> float:
    """The cluster's, as one that asks it in a process of its own sees them."""
    code = (
        f"import ray; ray.init('{cluster.address}', logging_level=40); "
        "print(ray.available_resources().get('CPU', 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def test_two_nodes_teach_what_two_processes_of_one_machine_do(
    ready, tmp_path, cluster, on_one_machine
):
    said = []
    report = Reporter(said.append)
    run_training(ready, tmp_path / "out", TWO, report, cluster.address, **PASSES)
    how = "2 processes on 2 machines, the student replicated by DDP"
    assert f"training on cpu, {how}, 1 threads" in notes(said)
    assert student_of(tmp_path / "out") == on_one_machine


def test_a_node_that_is_lost_costs_a_try_and_the_next_goes_on_from_the_checkpoint(
    ready, tmp_path, cluster, on_one_machine
):
    out, said = tmp_path / "out", []
    often = {**TWO, "checkpoint_seconds": 0}
    other = cluster.add_node(num_cpus=1, **SMALL)
    running = meanwhile(
        run_training, ready, out, often, Reporter(said.append), cluster.address, **PASSES
    )
    wait_until(lambda: any(e["kind"] == "progress" and e["done"] > 6 for e in said))
    for node in list(cluster.worker_nodes):
        if node is not other:
            cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(LostNodeError, match=r"is gone .*the next attempt goes on") as raised:
        running.result(120)
    assert raised.value.transient
    cluster.add_node(**NODE)
    said.clear()
    run_training(ready, out, TWO, Reporter(said.append), cluster.address, **PASSES)
    continued = [text for text in notes(said) if text.startswith("continuing after step ")]
    assert continued and int(continued[0].split()[3]) >= 3
    assert student_of(out) == on_one_machine


def test_a_training_that_is_cancelled_frees_its_place_on_the_cluster(ready, tmp_path, cluster):
    said = []
    report = Reporter(said.append)
    running = meanwhile(
        run_training, ready, tmp_path / "out", TWO, report, cluster.address, **PASSES
    )
    wait_until(lambda: any(e["kind"] == "progress" and e["done"] > 2 for e in said))
    processes.end_all()
    with pytest.raises(StageError, match="KeyboardInterrupt"):
        running.result(120)
    wait_until(lambda: free_cpus(cluster) == len(cluster.worker_nodes))


def test_a_whole_job_moves_onto_a_cluster_and_back_and_stays_cached(tmp_path, cluster):
    job_file = write_job(tmp_path, "echo")
    command = [str(BIN / "retort"), "run", str(job_file), "--store", str(tmp_path / "store")]
    on_cluster = [*command, "--set", f"cluster.ray={cluster.address}"]
    more = ["--set", "evaluate.rounds=2"]  # a model that stayed open would keep the others waiting

    def done(words: list[str]) -> str:
        found = subprocess.run(
            words, capture_output=True, text=True, timeout=300, env=environment(), check=False
        )
        assert found.returncode == 3, found.stderr  # the gate has nothing to compare
        return found.stderr

    assert ": cached" not in done([*on_cluster, *more])
    assert done([*command, *more]).count(": cached\n") == 7


def test_trials_of_a_sweep_train_side_by_side_on_the_nodes(tmp_path, cluster):
    path = test_sweep.write(tmp_path, trials=2, rungs=1)
    test_sweep.ask(path, tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    alone = test_sweep.swept(path, tmp_path / "store")
    job_file = yaml.safe_load(path.read_text())
    job_file["train"]["runtime"]["num_threads"] = 1
    path.write_text(yaml.safe_dump({**job_file, "cluster": {"ray": cluster.address}}))
    at_once, most = set[str](), 0

    def listen(name: str, event) -> None:
        nonlocal most
        if name.startswith("train-") and event["kind"] == "started":
            at_once.add(name)
            most = max(most, len(at_once))
        elif event["kind"] == "done":
            at_once.discard(name)

    found = test_sweep.swept(path, tmp_path / "other", listen)
    assert most == 2
    told = [[(each.values, each.scores) for each in f.candidates] for f in (alone, found)]
    assert told[0] == told[1]
    assert found.winner.values == alone.winner.values
