"""A machine that trains together with others when the first one calls: `retort node`.

One call is one stage: the student or a control. Between calls only a waiting process remains.
Inputs and checkpoints are read from the store that all machines share; nothing is written. Note:
this machine runs what the endpoint sends, so the endpoint must be in a private network.
"""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from retort import processes
from retort.errors import SpecError
from retort.processes import disk, nodes


def follow(endpoint: str | None, idle_seconds: float, say: Callable[[str], None]) -> None:
    """Takes part in one call after the other; returns when none came for so long.

    Raises `SpecError` where the endpoint is not one, or the first machine has another Retort.
    """
    where = nodes.endpoint(endpoint)
    until = time.monotonic() + idle_seconds
    say(f"waiting to be called by {where[0]}:{where[1]}")
    while line := nodes.connect(where, until):
        with contextlib.closing(line):
            call = line.take()
            if call and "refused" in call:
                raise SpecError(call["refused"])
            if call:
                say(f"called: {call['function']}, machine {call['rank']} of {call['num_nodes']}")
                code = _take_part(call, line)
                say(f"ended with exit code {code}; waiting to be called again")
                until = time.monotonic() + idle_seconds
        # The first machine may still be closing its end.
        time.sleep(nodes.POLL_SECONDS)


def _take_part(call: dict[str, Any], line: nodes.Line) -> int:
    """Returns torchrun's exit code, once this machine's part of a call has ended."""
    place = nodes.Place(call["rank"], call["num_nodes"], line.peer, call["port"])
    with disk.temporary_folder() as scratch:
        process = processes.start(call, place, None, scratch)
        threading.Thread(target=_end_when_cut, args=(line, process), daemon=True).start()
        hand_on = threading.Thread(target=_hand_on, args=(process, line), daemon=True)
        hand_on.start()
        try:
            process.wait()
        finally:
            processes.end(process, nodes.LEAVE_SECONDS)
            hand_on.join(processes.GRACE_SECONDS)
            line.send({"kind": "ended", "code": process.returncode})
    return process.returncode


def _hand_on(process: "subprocess.Popen[str]", line: nodes.Line) -> None:
    """Tells the first machine what this one's processes say."""
    assert process.stdout
    with process.stdout as said:
        for text in said:
            line.send(json.loads(text))


def _end_when_cut(line: nodes.Line, process: "subprocess.Popen[str]") -> None:
    """Ends the part when the first machine is gone, unless it ends by itself, as it should."""
    line.take()
    try:
        process.wait(processes.GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        processes.end(process, processes.GRACE_SECONDS)
