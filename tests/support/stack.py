"""docker/compose.yaml without an engine: every service's own command as a process on this machine.

What compose does is done here, read from the same file: secrets are filled in, services wait for
one another, nothing of the machine's environment reaches them. Addresses differ, because all
containers are this one machine: NAME:PORT becomes a free port of loopback.
"""

import os
import re
import runpy
import secrets
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tests.support.postgres import PROGRAMS, serving
from tests.support.servers import BIN, QUIET, ROOT, START_SECONDS, free_port

DOCKER = ROOT / "docker"
TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
# A job and no server: it is run by hand, after the others.
JOB = "quickstart"
WORKER = "worker-cpu"
SERVICES: dict[str, dict[str, Any]] = {
    name: service
    for name, service in COMPOSE["services"].items()
    if service.get("profiles", ["cpu"]) == ["cpu"]
}
HOST = "127.0.0.1"
PORTS = {"postgres": 5432, "redis": 6379, "s3": 8333, "prefect": 4200, "mlflow": 5000}
# The time that compose gives a worker to end; the others need less.
GRACE_SECONDS = 90
RUN_SECONDS = 600
HEALTHY = runpy.run_path(str(DOCKER / "healthy.py"))["main"]


class Stack:
    """The services of the profile `cpu` that run now, in `processes`, and their addresses."""

    def __init__(self, folder: Path):
        self.folder, self.app = folder, folder / "app"
        self.ports = {name: free_port() for name in (*PORTS, WORKER)}
        self.secrets = {name: secrets.token_hex(24) for name in re.findall(r"\{(\w+):\?", TEXT)}
        published = {f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        self.given = {**self.secrets, **published}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.held = ExitStack()
        self.seen: set[str] = set()
        self.app.mkdir()
        for name in ("deployments", "flows", "retort", "tasks"):
            (self.app / name).symlink_to(ROOT / name)

    def resolve(self, text: str) -> str:
        """Returns a text of the file with its variables and its addresses filled in."""
        filled = re.sub(
            r"\$\{(\w+)(?::[?-]([^}]*))?\}",
            lambda found: self.given.get(found[1]) or found[2] or "",
            text,
        ).replace("$$", "$")
        for name, port in PORTS.items():
            filled = re.sub(rf"\b{name}:{port}\b", f"{HOST}:{self.ports[name]}", filled)
        return filled

    def environment(self, name: str) -> dict[str, str]:
        """Returns what a service's process knows of its surroundings."""
        given = {
            key: HOST if key.endswith("_HOST") and value in PORTS else self.resolve(value)
            for key, value in SERVICES[name].get("environment", {}).items()
        }
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return {
            **QUIET,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "XDG_CACHE_HOME": str(Path.home() / ".cache"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),  # the image has the project installed
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_REDIS_MESSAGING_PORT": str(self.ports["redis"]),
            "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_PORT": str(self.ports["redis"]),
            "PREFECT_WORKER_WEBSERVER_HOST": HOST,
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports[WORKER]),
            **given,
        }

    def command(self, name: str) -> list[str]:
        """Returns what a service starts, on loopback and its own port; moto for the S3 store."""
        port = str(self.ports.get(name, ""))
        if name == "s3":
            return [str(BIN / "moto_server"), "-H", HOST, "-p", port]
        words = [self.resolve(word) for word in SERVICES[name]["command"]]
        words = [HOST if word == "0.0.0.0" else word for word in words]
        if name == "redis":
            settings = self.folder / "redis.conf"
            settings.write_text(self.resolve(COMPOSE["configs"]["redis"]["content"]))
            data = self.folder / "redis"
            data.mkdir()
            return [words[0], str(settings), "--port", port, "--dir", str(data), "--bind", HOST]
        if "--port" in words:
            words[words.index("--port") + 1] = port
        elif name == "prefect":
            words += ["--port", port]
        return words

    def log(self, name: str) -> Path:
        """Where a service's lines are."""
        return self.folder / "logs" / f"{name}.log"

    def start(self, name: str) -> None:
        """Starts a service."""
        self.log(name).parent.mkdir(exist_ok=True)
        if name == "postgres":
            scripts = [DOCKER / v.split(":")[0] for v in SERVICES[name]["volumes"] if ".sql" in v]
            settings = {k: self.resolve(v) for k, v in SERVICES[name]["environment"].items()}
            there = serving(settings, *scripts, log=self.log(name), port=self.ports[name])
            self.held.enter_context(there)
            return
        with self.log(name).open("a") as stream:
            self.processes[name] = subprocess.Popen(
                self.command(name),
                stdout=stream,
                stderr=stream,
                env=self.environment(name),
                cwd=self.app,
                start_new_session=True,
            )

    def run(self, name: str) -> str:
        """Runs a service that ends by itself, which it has to do well; what it said."""
        before = self.log(name).read_text() if self.log(name).exists() else ""
        self.start(name)
        code = self.processes[name].wait(RUN_SECONDS)
        said = self.log(name).read_text().removeprefix(before)
        assert code == 0, f"{said}\n{self.words()}"
        return said

    def words(self) -> str:
        """The last words of every service."""
        logs = sorted((self.folder / "logs").iterdir())
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in logs)

    def is_healthy(self, name: str) -> bool:
        """Whether a service that was started answers, by the check that the file or image has."""
        process, port = self.processes.get(name), self.ports.get(name)
        assert process is None or process.poll() is None, f"{name} ended\n{self.words()}"
        if name in ("s3", WORKER):
            page = f"http://{HOST}:{port}/{'health' if name == WORKER else ''}"
            with suppress(OSError):
                return bool(urllib.request.urlopen(page, timeout=5).status == 200)
            return False
        kind, *test = SERVICES[name].get("healthcheck", {}).get("test", ["IMAGE"])
        if kind == "IMAGE":
            with suppress(SystemExit):
                HEALTHY(str(process.pid if process else 0))
                return True
            return False
        if kind == "CMD":
            test = [str(PROGRAMS / test[0]), *test[1:], f"--port={port}"]
        else:
            test = ["sh", "-c", test[0].replace("redis-cli", f"redis-cli -p {port}")]
        env = self.environment(name)
        return subprocess.run(test, capture_output=True, env=env, check=False).returncode == 0

    def is_met(self, name: str, rule: str) -> bool:
        """Whether what is waited for has come about: a service answers, or has ended well."""
        if name not in self.processes and name != "postgres":
            return False
        if rule == "service_healthy":
            return self.is_healthy(name)
        code = self.processes[name].poll()
        assert not code, f"{name} failed\n{self.words()}"
        return code == 0

    def stop(self) -> list[str]:
        """Stops the services as docker does, the latest first; which ones left a process behind."""
        for name in reversed(list(self.processes)):
            self.processes[name].terminate()
            self.processes[name].wait(GRACE_SECONDS)
        return [name for name, process in self.processes.items() if is_alive(process.pid)]

    def end(self) -> None:
        """Ends whatever is left, the worker first, for it ends its jobs."""
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.held.close()


def is_alive(group: int) -> bool:
    """Whether a process of a group runs still; one that nobody has waited for does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """Gives the stack, every service of it healthy; at the end, nothing of it is left."""
    stack = Stack(folder)
    with watching(stack):
        try:
            waiting = {name: SERVICES[name].get("depends_on", {}) for name in SERVICES}
            del waiting[JOB]
            deadline = time.monotonic() + START_SECONDS
            while waiting or not stack.is_healthy(WORKER):
                for name, others in list(waiting.items()):
                    if all(
                        stack.is_met(other, rule["condition"]) for other, rule in others.items()
                    ):
                        stack.start(name)
                        del waiting[name]
                assert time.monotonic() < deadline, f"{list(waiting)} wait\n{stack.words()}"
                time.sleep(0.3)
            yield stack
        finally:
            stack.end()


@contextmanager
def watching(stack: Stack) -> Iterator[None]:
    """Meanwhile, keeps every command line of the machine that holds a secret in `stack.seen`."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = path.read_bytes().decode(errors="replace").replace("\0", " ")
                    if any(secret in line for secret in stack.secrets.values()):
                        stack.seen.add(line)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
