"""`retort up` as a user would run it: started, waited for until it is ready, ended by Ctrl-C.

Its servers ask for a login: the block is given what a shell has after `source .retort/login.env`.
"""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

from retort.jobs import login
from tests.support.servers import BIN, START_SECONDS, environment


@contextmanager
def up(folder, ports, *flags, **env):
    """A running `retort up`, whose words go to `up.log`; it has to end well when it is asked to."""
    with (folder / "up.log").open("a+") as log:
        flags += tuple(f"--{name}-port={port}" for name, port in ports.items())
        running = subprocess.Popen(
            [str(BIN / "retort"), "up", *flags],
            stderr=log,
            cwd=folder,
            env=environment(**env),
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            before = log.seek(0, os.SEEK_END)
            while "started!" not in read(log, before):
                assert running.poll() is None and time.monotonic() < deadline, read(log, 0)
                time.sleep(0.2)
            yield login.read(folder / ".retort")
            running.send_signal(signal.SIGINT)
            assert running.wait(90) == 0, read(log, before)
        finally:
            # Its servers are groups of their own, and end with it alone.
            running.send_signal(signal.SIGINT)
            running.wait(90)
    assert not any(map(is_listening, ports.values()))


def read(log, start):
    """What is written from a place on."""
    log.seek(start)
    return log.read()


def is_listening(port):
    """Whether anyone answers on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
