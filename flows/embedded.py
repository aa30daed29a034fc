"""A Prefect server of a single `retort run`, where the user names none: it ends with the run.

It is started before Prefect itself is imported here, so that the two load side by side. The port is
opened by the parent: requests wait in it until the server answers. Only this run knows the
server's password, and nothing of its API is open to pages of another origin.
"""

import contextlib
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from retort.errors import StageError
from retort.processes.disk import open_log

HOST = "127.0.0.1"
START_SECONDS = 240.0
GRACE_SECONDS = 5.0
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect's own lines and tracebacks would drown the progress; they are in its UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
OF_SERVER = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "",
}

_is_used = False


def has_server() -> bool:
    """Whether the user's environment or active Prefect profile names a server."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        home = os.environ.get("PREFECT_HOME") or Path.home() / ".prefect"
        profiles = tomllib.loads((Path(home) / "profiles.toml").read_text(encoding="utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
        return "PREFECT_API_URL" in profiles.get("profiles", {}).get(active, {})
    return False


def is_used() -> bool:
    """Whether the Prefect server of this process is its own: that one has no pages."""
    return _is_used


def use_settings(settings: dict[str, str]) -> None:
    """Adds settings to the environment where it has none, or an empty one."""
    os.environ.update({name: v for name, v in settings.items() if not os.environ.get(name)})


@contextlib.contextmanager
def server(state: Path) -> Iterator[Callable[[], None]]:
    """Starts a Prefect server whose database is in the folder `state`, and ends it after the block.

    Meanwhile the environment of this process leads to it. Gives what waits until it answers, and
    raises `StageError` if it never does.
    """
    from flows import databases

    global _is_used  # noqa: PLW0603

    before = dict(os.environ)
    home, log = state / "prefect", state / "logs" / "prefect.log"
    login = f"retort:{secrets.token_urlsafe(24)}"
    use_settings(databases.files(state).prefect)
    use_settings({"PREFECT_HOME": str(home), "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage")})
    with socket.create_server((HOST, 0)) as listener, open_log(log) as stream:
        os.environ["PREFECT_API_URL"] = f"http://{HOST}:{listener.getsockname()[1]}/api"
        os.environ["PREFECT_API_AUTH_STRING"] = login
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.embedded", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            umask=0o077,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            env={**os.environ, **OF_SERVER, "PREFECT_SERVER_API_AUTH_STRING": login},
        )
    _is_used = True
    try:
        yield partial(_wait, log)
    finally:
        _is_used = False
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.environ.clear()
        os.environ.update(before)


def _wait(log: Path) -> None:
    import httpx

    try:
        url = f"{os.environ['PREFECT_API_URL']}/health"
        httpx.get(url, timeout=START_SECONDS, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise StageError(
            f"the embedded Prefect server did not start ({type(error).__name__}); its log is {log}"
        ) from None


def main() -> None:
    """Serves on the listening socket whose number is given, until the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(fileno=int(sys.argv[1]))
    gc.set_threshold(100_000, 50, 100)  # as of a command: what imports make stays
    # Prefect imports it wherever it is installed, for cache keys that no server makes.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(final=True), log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
