"""A real Postgres on loopback, made as its container image makes one and ended by its own id.

Note: Postgres refuses to run as root, so it runs as another user, in a folder of that
user's own: what pytest gives a test cannot be entered by anyone else.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import START_SECONDS, free_port

HOST = "127.0.0.1"
# Debian keeps the server's programs off the path, for several versions can be installed.
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
FOUND = shutil.which("initdb", path=os.pathsep.join(map(str, [*FOLDERS, os.environ["PATH"]])))
PROGRAMS = Path(FOUND).parent if FOUND else Path()
needs_postgres = pytest.mark.skipif(not FOUND, reason="there is no Postgres here")


def someone() -> dict[str, Any]:
    """How a process is started as a user who is not root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextmanager
def serving(environment: dict[str, str], *scripts: Path, log: Path, port: int = 0) -> Iterator[int]:
    """Gives the port of a Postgres with POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB.

    The scripts (SQL) run once in that database. What the server says is in `log`.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="retort-postgres-") as place, log.open("a") as stream:
        folder = Path(place)
        _make(folder, environment)
        server = subprocess.Popen(
            [
                *(str(PROGRAMS / "postgres"), "-D", f"{folder}/data", "-F", "-p", str(port)),
                *("-c", f"listen_addresses={HOST}", "-c", f"unix_socket_directories={folder}"),
            ],
            stdout=stream,
            stderr=stream,
            cwd=folder,
            start_new_session=True,
            **someone(),
        )
        try:
            _wait(server, port, log)
            _fill(environment, scripts, port)
            yield port
        finally:
            # It ends its clients' connections and then itself: waiting for them could be for ever.
            server.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                server.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _make(folder: Path, environment: dict[str, str]) -> None:
    """Makes the data folder, with a user who has to give a password."""
    user, secret = someone(), folder / "password"
    secret.write_text(environment["POSTGRES_PASSWORD"])
    secret.chmod(0o600)
    if user:
        for path in (folder, secret):
            os.chown(path, user["user"], user["group"])
    command = [
        *(str(PROGRAMS / "initdb"), "--no-sync", f"--pgdata={folder}/data", "--encoding=UTF8"),
        *(f"--username={environment['POSTGRES_USER']}", f"--pwfile={secret}"),
        "--auth=scram-sha-256",
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **user)


def _wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    question = [str(PROGRAMS / "pg_isready"), f"--host={HOST}", f"--port={port}"]
    while subprocess.run(question, stdout=subprocess.DEVNULL, check=False).returncode:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)


def _fill(environment: dict[str, str], scripts: tuple[Path, ...], port: int) -> None:
    """Makes the database, and runs the scripts in it."""
    name = environment["POSTGRES_DB"]
    there = (f"--host={HOST}", f"--port={port}", f"--username={environment['POSTGRES_USER']}")
    commands = [[str(PROGRAMS / "createdb"), *there, name]] if name != "postgres" else []
    commands += [
        [str(PROGRAMS / "psql"), *there, f"--dbname={name}", "-v", "ON_ERROR_STOP=1", f"-f{script}"]
        for script in scripts
    ]
    env = {**os.environ, "PGPASSWORD": environment["POSTGRES_PASSWORD"]}
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, env=env)
