"""The login of the servers that `retort up` starts: made once, kept in a file for its owner alone.

`source STORE/login.env` puts it into a shell's environment, where Prefect's and MLflow's own
clients look for it. The commands of `retort` read the file by themselves.
"""

import os
import secrets
import shlex
from pathlib import Path

FILE, USER = "login.env", "retort"
# The address of each server, and the login that its clients read.
API = "PREFECT_API_URL"
CLIENTS = {
    API: ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"),
    "MLFLOW_TRACKING_URI": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}


def write(state: Path, api: str, tracking: str) -> dict[str, str]:
    """Returns what a client of both servers needs in its environment, and writes the file.

    The password is the one that the file had: a browser that knows it goes on.
    """
    password = read(state).get("MLFLOW_TRACKING_PASSWORD") or secrets.token_urlsafe(24)
    login = {
        API: api,
        "PREFECT_API_AUTH_STRING": f"{USER}:{password}",
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in login.items()]
    new = state / f".{FILE}.{os.getpid()}"
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.writelines(lines)
    new.replace(state / FILE)
    return login


def read(state: Path) -> dict[str, str]:
    """Returns what the file says; nothing where there is none, or it is another user's."""
    path = state / FILE
    try:
        if path.stat().st_uid != os.getuid():
            return {}
        words = shlex.split(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = (word.partition("=") for word in words if "=" in word)
    return {name: value for name, _, value in pairs}


def use(store: str) -> None:
    """Adds the file's login to the environment where that names these servers, but no login."""
    for address, names in CLIENTS.items():
        url = os.environ.get(address, "")
        if url and not any(os.environ.get(name) for name in names):
            login = of(store, address, url)
            os.environ.update({name: login[name] for name in names if name in login})


def of(store: str, address: str, url: str) -> dict[str, str]:
    """Returns what the file of a store says, if its server of that kind has this URL."""
    from retort.store import open_store

    login = read(open_store(store).local_state())
    return login if url.rstrip("/") == login.get(address) else {}
