"""Functions that tests run in a child process."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from retort import processes
from retort.errors import DamagedError, DataError, SpecError, StoreError
from retort.processes import libraries


def double(report, value: int) -> int:
    print("chatter on stdout")
    print("chatter on stderr", file=sys.stderr)
    report.progress(1, 2, "things")
    return 2 * value


def fail(report, kind: str) -> None:
    if kind == "store":
        raise StoreError("the line was cut", transient=True)
    kinds = {"data": DataError, "spec": SpecError, "damage": DamagedError, "other": KeyError}
    raise kinds[kind]("what and where")


def fill(report, path: str) -> None:
    with open(path, "wb", buffering=0) as stream:
        while stream.write(b"x" * (1 << 16)) == 1 << 16:
            pass
        stream.write(b"x" * (1 << 16))


def save_tensors(report, path: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(1 << 20)}, path)


def describe(report) -> dict:
    """Tells what this process is, and how long it took to import torch."""
    started = time.process_time()
    import torch

    return {
        "torch_seconds": time.process_time() - started,
        "threads": torch.get_num_threads(),
        "command": Path("/proc/self/cmdline").read_text().rstrip(" \0").split("\0"),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "folder": os.getcwd(),
        "variable": os.environ.get("RETORT_OF_THIS_TEST"),
        "random": random.random(),
    }


def has_modules(report, names: list[str]) -> dict:
    """Which modules this process had before it imported anything, and whose fork it is."""
    return {"parent": os.getppid(), "had": [name for name in names if name in sys.modules]}


def memory_taken(report) -> dict:
    """What this process takes once it has torch, what else it has, and whose fork it is."""
    libraries.import_all(*libraries.MODELS)
    return {
        "bytes": processes.peak_host_memory_bytes(),
        "import_seconds": libraries.inherited_seconds,
        "has_more": "torch.distributed.checkpoint.state_dict" in sys.modules,
        "parent": os.getppid(),
    }


def wait_for(report, path: str) -> int:
    """Waits until a file is there; tells whose fork this process is."""
    parent = os.getppid()
    while not Path(path).exists():
        time.sleep(0.05)
    return parent


def import_nothing() -> None:
    raise ImportError("there is no such library")


def crash(report) -> None:
    os._exit(7)


def need_memory(report, what: str) -> None:
    """Needs more memory than there is: 64 MB beyond what the process has."""
    import resource

    import psutil

    limit = psutil.Process().memory_info().vms + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if what == "bytes":
        bytearray(1 << 30)
    import torch

    torch.zeros(1 << 28)


def killed(report) -> None:
    os.kill(os.getpid(), 9)


def sleep_with_grandchild(report, pids: str) -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pids).write_text(f"{os.getpid()} {grandchild.pid}")
    report.progress(0, 1, "naps")
    time.sleep(600)


def answer_and_time(report, engine: str, settings: dict, chats: dict) -> dict:
    """Answers chats with an engine, whole and in parts, scores them, and times each alone; returns
    JSON, with what the start imported and compiled."""
    from retort.engines import Request, find_engine

    opened, found = answered_by(engine, settings, chats)
    imported = sorted({"scipy", "sklearn", "pandas", "vllm.entrypoints.llm"} & set(sys.modules))
    asked = [Request(key, [{"role": "user", "content": text}]) for key, text in chats.items()]
    timed = {request.id: vars(opened.timed(request)) for request in asked}
    opened.forget()
    after = {a.id: a.raw["token_ids"] for a in opened.generate(asked)}
    whole = again(find_engine(engine), settings, opened, chats)
    num_compiled = sys.modules["torch"]._dynamo.utils.counters["stats"]["unique_graphs"]
    start = {"num_compiled": num_compiled, "imported": imported}
    return {**found, **whole, "timed": timed, "after": after, "start": start}


def answer_all(report, engine: str, settings: dict, chats: dict) -> dict:
    """Answers chats with an engine; returns the responses and signals as JSON."""
    return answered_by(engine, settings, chats)[1]


def answer_with_each(report, engine: str, settings: dict, models: list, chats: dict) -> list:
    """Answers chats with each of several models, one after the other."""
    return [answer_all(report, engine, {**settings, "model": model}, chats) for model in models]


def answered_by(engine: str, settings: dict, chats: dict) -> tuple:
    from retort.engines import Request, Settings, find_engine

    module = find_engine(engine)
    opened = module.open_engine(Settings(**settings))
    requests = [Request(key, [{"role": "user", "content": text}]) for key, text in chats.items()]
    found = {}
    for answer in opened.generate(requests):
        assert answer.id not in found
        found[answer.id] = {
            **vars(module.parse(answer.id, answer.raw)),
            "signal": as_lists(answer.signal),
        }
    return opened, {"answers": found, "facts": opened.facts}


def again(module, settings: dict, opened, chats: dict) -> dict:
    """The same chats answered in two parts, and the whole answers scored: ids and signals."""
    from retort.engines import Request, Settings

    asked = {key: [{"role": "user", "content": text}] for key, text in chats.items()}
    short = [Request(key, chat, max_tokens=4) for key, chat in asked.items()]
    first = {answer.id: answer for answer in opened.generate(short)}
    cut = {key: a for key, a in first.items() if a.raw["finish_reason"] == "length"}
    rest = [Request(key, asked[key], continues=a.raw["token_ids"]) for key, a in cut.items()]
    second = {answer.id: answer for answer in opened.generate(rest)}
    scorer = module.open_engine(Settings(**{**settings, "scores": True}))
    whole = [Request(key, asked[key], response=a.raw["token_ids"]) for key, a in second.items()]
    scored = {answer.id: answer for answer in scorer.score(whole)}
    return {
        "cut": {key: [a.raw["token_ids"], as_lists(a.signal)] for key, a in cut.items()},
        "continued": {key: [a.raw["token_ids"], as_lists(a.signal)] for key, a in second.items()},
        "scored": {key: [a.raw["token_ids"], as_lists(a.signal)] for key, a in scored.items()},
    }


def as_lists(signal) -> dict | None:
    return {name: value.tolist() for name, value in vars(signal).items()} if signal else None
