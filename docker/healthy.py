"""Leaves with 0 while what a container runs is healthy, with 1 when it does not answer.

What to ask is read off the command of the container's first process, so one check serves all
images. A container that runs a job has no address: it is healthy as long as it runs.
"""

import sys
import urllib.request
from pathlib import Path

# The port where the command names none, and the page that answers when all is well.
PAGES = {
    "prefect server start": (4200, "/api/health"),
    "mlflow server": (5000, "/health"),
    "prefect worker start": (8080, "/health"),
}


def main(pid: str = "1") -> None:
    """Asks what the process `pid` serves, if it serves anything."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    if not command:
        sys.exit(f"process {pid} has not begun, or has ended")
    if address := page(command):
        try:
            urllib.request.urlopen(address, timeout=8).close()
        except OSError as error:
            sys.exit(f"{address}: {error}")


def page(command: str) -> str | None:
    """Returns the address of a command's health page; None where it has none."""
    words = [word.rpartition("/")[2] for word in command.split()]
    line = " ".join(words)
    served = next((known for known in PAGES if f" {known} " in f" {line} "), None)
    if served is None or ("worker" in words and "--with-healthcheck" not in words):
        return None
    port, path = PAGES[served]
    if "--port" in words[:-1]:
        port = int(words[words.index("--port") + 1])
    return f"http://127.0.0.1:{port}{path}"


if __name__ == "__main__":
    main(*sys.argv[1:])
