"""Functions that tests run in a child process."""

import os
import subprocess
import sys
import time
from pathlib import Path

from retort.errors import DataError, SpecError, StoreError


def double(report, value: int) -> int:
    print("chatter on stdout")
    print("chatter on stderr", file=sys.stderr)
    report.progress(1, 2, "things")
    return 2 * value


def fail(report, kind: str) -> None:
    if kind == "store":
        raise StoreError("the line was cut", transient=True)
    raise {"data": DataError, "spec": SpecError, "other": KeyError}[kind]("what and where")


def crash(report) -> None:
    os._exit(7)


def killed(report) -> None:
    os.kill(os.getpid(), 9)


def sleep_with_grandchild(report, pids: str) -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pids).write_text(f"{os.getpid()} {grandchild.pid}")
    report.progress(0, 1, "naps")
    time.sleep(600)


def answer_all(report, engine: str, settings: dict, chats: dict) -> dict:
    """Answers chats with an engine; returns the responses and signals as JSON."""
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
    return {"answers": found, "facts": opened.facts}


def as_lists(signal) -> dict | None:
    return {name: value.tolist() for name, value in vars(signal).items()} if signal else None
