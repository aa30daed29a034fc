"""A resident engine answers as a stage's own does, takes new weights, and dies without a loss."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from retort import processes
from retort.data.encoding import load_tokenizer, render
from retort.engines import Answer, Engine, Request, Settings, find_engine
from retort.engines._resident import ResidentEngine, serve
from retort.errors import EngineDiedError, SpecError
from retort.jobs.run import JobRun
from retort.processes.resident import Address, Resident
from retort.spec import build
from retort.stages.engine_settings import resident_of
from retort.stages.generate import generate
from retort.stages.generate.parity import compare
from retort.stages.stage import read_responses
from retort.store import open_store
from tests.conftest import ROOT, environment
from tests.stages.test_child import gone
from tests.support.stages import job, run, segments, stage_of
from tests.support.tiny import save_model, write_rows

SLOW = "tests.support.slow_echo"
RUNTIME = {
    "device": "auto",
    "max_num_seqs": 4,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "gpu_memory_utilization": 0.3,
    "kv_cache_gib": 1,
    "distributed_executor": "auto",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two models of one shape, whose heads are tied to their embeddings."""
    folder = tmp_path_factory.mktemp("models")
    return [save_model(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture
def resident(tmp_path):
    found = Resident(serve, tmp_path / "log", {"num_threads": 1})
    yield found
    found.end()


def settings(model: Path, **knobs) -> Settings:
    return Settings(str(model), 0.0, 1.0, 9, 64, 0, "float32", 0, dict(RUNTIME), **knobs)


def requests(number: int) -> list[Request]:
    chats = {f"q{n}": [{"role": "user", "content": f"{n} + {3 * n} = ?"}] for n in range(number)}
    return [Request(name, chat, seed=n) for n, (name, chat) in enumerate(chats.items())]


@contextmanager
def opened(resident: Resident, engine: str, wanted: Settings):
    client = ResidentEngine(Address(**resident.address()), engine, wanted)
    yield client
    client.close()


def ids(answers: list[Answer]) -> dict[str, list[int]]:
    return {answer.id: answer.raw["token_ids"] for answer in answers}


def begun(resident: Resident) -> tuple[int, int]:
    """What tells one start of the process from the next: it makes its socket anew."""
    found = Path(resident._address.path).stat()
    return found.st_ino, found.st_ctime_ns


def test_a_resident_answers_each_model_as_an_engine_of_its_own_does(resident, models, tmp_path):
    sampled = [replace(settings(m), temperature=1.0, top_k=3, seed=5) for m in models]
    expected, found, starts = [], [], set()
    for wanted in (sampled[0], sampled[1], sampled[1], sampled[0]):
        alone = find_engine("transformers").open_engine(wanted)
        expected.append(list(alone.generate(requests(11))))
        with opened(resident, "transformers", wanted) as client:
            found.append(list(client.generate(iter(requests(11)))))
            starts.add(begun(resident))
            assert client.facts == alone.facts
    assert len(starts) == 1
    for mine, theirs in zip(found, expected, strict=True):
        assert ids(mine) == ids(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert np.array_equal(one.signal.logprobs_TK, other.signal.logprobs_TK)
    assert ids(found[0]) != ids(found[1])


def test_another_engine_or_shape_is_opened_in_a_process_that_begins_anew(
    resident, models, tmp_path
):
    other = settings(save_model(tmp_path / "other", hidden=32, seed=2))
    starts = []
    for wanted in (
        settings(models[0]),
        settings(models[0], state="x"),
        other,
        replace(other, seed=1),
    ):
        with opened(resident, "echo", wanted) as client:
            (answer,) = client.generate(requests(1))
            assert answer.raw["text"] == "0 + 0 = ?"
            assert 0 < client.timed(requests(1)[0]).whole_seconds < 1
            client.forget()
            starts.append(begun(resident))
    assert starts[0] == starts[1]
    assert len(set(starts)) == 2


def test_what_an_engine_refuses_is_told_as_it_is(resident, models):
    wanted = settings(models[0])
    with opened(resident, "echo", wanted) as client, pytest.raises(SpecError, match="cannot score"):
        list(client.score(requests(3)))
    with opened(resident, "echo", wanted) as client:
        assert len(list(client.generate(requests(3)))) == 3


@pytest.fixture
def slow(models, tmp_path) -> Settings:
    """Of an engine that takes a while for each answer, and notes who answers what."""
    (tmp_path / "model").symlink_to(models[0])
    (tmp_path / "seconds").write_text("0.01")
    return settings(tmp_path / "model")


def asked(folder: Path) -> list[tuple[int, str]]:
    path = folder / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), name) for pid, name in (line.split() for line in lines)]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_resident_that_is_killed_at_work_is_a_dead_engine_and_comes_back(
    resident, slow, tmp_path
):
    (tmp_path / "seconds").write_text("0.4")
    with opened(resident, SLOW, slow) as client:
        answers = client.generate(requests(100))
        assert [next(answers).id for _ in range(3)] == ["q0", "q1", "q2"]
        assert client.steps > 0  # told while it works, so that the stage knows it alive
        os.kill(asked(tmp_path)[0][0], signal.SIGKILL)
        with pytest.raises(EngineDiedError, match=rf"is gone; its log is {tmp_path}/log"):
            list(answers)
    (tmp_path / "seconds").write_text("0.01")
    with opened(resident, SLOW, slow) as client:
        assert len(list(client.generate(requests(100)))) == 100
    assert len({pid for pid, _ in asked(tmp_path)}) == 2


CLIENT = """
import json, sys
from retort.engines import Request, Settings
from retort.engines._resident import ResidentEngine
from retort.processes.resident import Address
address, settings = json.loads(sys.stdin.readline())
engine = ResidentEngine(Address(**address), "tests.support.slow_echo", Settings(**settings))
chat = [{"role": "user", "content": "?"}]
list(engine.generate(Request(f"lost{n}", chat) for n in range(10_000)))
"""


def test_a_client_that_is_killed_at_work_is_dropped_and_the_next_is_served(
    resident, slow, tmp_path
):
    given = json.dumps([resident.address(), vars(slow)])
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT], env=environment(), cwd=ROOT, stdin=subprocess.PIPE
    )
    client.stdin.write(f"{given}\n".encode())
    client.stdin.flush()
    wait_until(lambda: len(asked(tmp_path)) > 20)
    before = begun(resident)  # it is alive, but has no time for another now
    client.kill()
    client.wait()
    with opened(resident, SLOW, slow) as engine:
        found = list(engine.generate(requests(40)))
    assert [answer.id for answer in found] == [f"q{n}" for n in range(40)]
    assert begun(resident) == before
    assert len({pid for pid, _ in asked(tmp_path)}) == 1
    assert len(asked(tmp_path)) < 1000


OWNER = """
import sys, time
from pathlib import Path
from retort.engines._resident import serve
from retort.processes.resident import Resident
resident = Resident(serve, Path(sys.argv[1]), {"num_threads": 1})
address = resident.address()
print(resident._process.pid, flush=True)
time.sleep(600)
"""


def test_a_resident_ends_with_its_owner_even_if_that_is_killed(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path / "log")]
    owner = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE)
    pid = int(owner.stdout.readline())
    assert psutil.pid_exists(pid)
    owner.kill()
    owner.wait()
    assert gone([pid])


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stage_has_its_answers_from_a_resident_and_nothing_else_changes(
    slow, tmp_path, monkeypatch, death
):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(processes.resident, "IDLE_SECONDS", 1.0)
    rows = write_rows(tmp_path / "train.jsonl", 40, seed=1)
    runtime = {"max_num_seqs": 4, "num_threads": 1, "stall_seconds": 2, "max_restarts": 1}
    raw = job(slow.model, rows, SLOW, spending={"pilot_rows": 0}, runtime=runtime)
    plain, responses = run(raw, str(tmp_path / "plain"))
    (tmp_path / "asked").unlink()
    store = str(tmp_path / "store")
    first = stage_of("prepare", raw, str(tmp_path / "plain"), {})
    stage = stage_of("generate", raw, store, {"prepare": first.out.finished()})
    stage = replace(stage, resident=resident_of(stage.spec, stage.log))
    said: list[str] = []
    killed: list[int] = []

    def killing(event: dict) -> None:
        """Kills or stops the resident once, when it has answered some."""
        said.append(event.get("text", ""))
        if event["kind"] == "progress" and event["done"] > 5 and not killed:
            killed.extend(pids())
            os.kill(*killed, death)

    def pids() -> set[int]:
        return {pid for pid, _ in asked(tmp_path)}

    (tmp_path / "seconds").write_text("0.1")
    stage = replace(stage, report=replace(stage.report, emit=killing))
    facts = generate(stage)
    key = stage.resident.address()["key"]
    stage.resident.end()
    assert read_responses(stage.out) == responses
    why = "resident engine is gone" if death == signal.SIGKILL else "did nothing for"
    assert facts["num_restarts"] == 1 and any(why in text for text in said)
    assert len(pids()) == 2 and not any(map(psutil.pid_exists, pids()))
    assert set(Counter(entry["key"] for entry in segments(store)).values()) == {1}
    same = ("states", "ledger", "num_tokens", "engine", "dtype")
    assert {name: facts[name] for name in same} == {name: plain[name] for name in same}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if key.encode() in path.read_bytes()]


def test_rounds_share_a_resident_for_answers_and_one_for_scores_and_an_endpoint_has_none(
    models, tmp_path
):
    rows = write_rows(tmp_path / "train.jsonl", 4, seed=1)
    raw = job(models[0], rows, "echo")
    run = JobRun(build(raw), open_store(str(tmp_path / "store")), (), lambda name, event: None)
    rounds = [f"{kind}-{index}" for kind in ("rollouts", "scores") for index in (1, 2)]
    run.recipes |= dict.fromkeys(rounds, run.recipes["generate"])
    first, second, scores, last = (run._resident(name) for name in rounds)
    assert first is second is not scores is last
    assert run._resident("generate") is None
    address = Address(**first.address())
    run.close()
    with pytest.raises(EngineDiedError):
        replace(address, path=str(tmp_path)).connect()
    assert not Path(address.path).exists()
    remote = build({**raw, "generate": {**raw["generate"], "engine": "openai", "top_k": 0}})
    assert resident_of(remote, tmp_path / "log") is None


def farthest(folder: Path, answers: list[Answer]) -> float:
    """The largest distance of a log-probability in the answers' signals from a plain forward
    pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, chats, gaps = (
        load_tokenizer(str(folder)),
        {r.id: r.messages for r in requests(9)},
        [],
    )
    for answer in answers:
        (prompt,) = render(tokenizer, [chats[answer.id]])
        tokens = torch.tensor([prompt + answer.raw["token_ids"]])
        with torch.inference_mode():
            logits = model(tokens).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1).numpy()
        plain = np.take_along_axis(logprobs, answer.signal.ids_TK, axis=1)
        gaps += [
            np.abs(plain - answer.signal.logprobs_TK).max(),
            compare(answer.signal, logprobs)[1].max(),
        ]
    return float(max(gaps))


def sampled_by(engine: Engine) -> list[Answer]:
    answers = list(engine.generate(requests(9)))
    assert len(answers) == 9
    return answers


def test_vllm_takes_new_weights_and_a_client_that_leaves_stops_nobody(resident, models):
    pytest.importorskip("vllm")
    wanted = [replace(settings(m), temperature=1.0, top_k=5) for m in models]
    with opened(resident, "vllm", wanted[0]) as client:
        before, start = sampled_by(client), begun(resident)
        left = client.generate(requests(9))
        next(left)
        left.close()
    assert farthest(models[0], before) < 5e-4
    assert farthest(models[1], before) > 0.1
    with opened(resident, "vllm", wanted[1]) as client:
        assert farthest(models[1], sampled_by(client)) < 5e-4
    with opened(resident, "vllm", wanted[0]) as client:
        assert ids(sampled_by(client)) == ids(before)
    assert begun(resident) == start


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("keeps_weights", [True, False])
def test_vllm_gives_back_its_gpu_between_two_stages(resident, models, keeps_weights):
    pytest.importorskip("vllm")
    wanted = [replace(settings(m), temperature=1.0, top_k=5) for m in models]
    with opened(resident, "vllm", wanted[0]) as client:
        sampled_by(client)
    start, (free, _) = begun(resident), torch.cuda.mem_get_info()
    resident.rest(keeps_weights)
    assert torch.cuda.mem_get_info()[0] > free + (1 << 30)
    for model, settings_ in zip(models[::-1], wanted[::-1], strict=True):
        with opened(resident, "vllm", settings_) as client:
            assert farthest(model, sampled_by(client)) < 5e-3
    assert begun(resident) == start
