"""A proxy in front of a real S3 server that misbehaves as it is told, and remembers all requests.

What it answers itself has S3's own form; what it passes on is done by the server behind it.
"""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest

HANG_SECONDS = 4.0
WRITING = ("PUT", "POST", "DELETE")


@dataclass(frozen=True)
class Asked:
    """A request: `what` is S3's name of the operation, `times` how often the very same came."""

    what: str
    key: str
    times: int
    headers: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """What happens to a request: an error of S3, or what befalls the connection."""

    status: int = 0
    code: str = ""
    kind: str = "error"  # reset, half, lost, hang, blind


SLOW_DOWN = Fault(503, "SlowDown")
INTERNAL = Fault(500, "InternalError")
RESET = Fault(kind="reset")  # the connection ends without an answer
HALF = Fault(kind="half")  # half of the body reaches the server
LOST = Fault(kind="lost")  # the server does it, its answer gets lost
HANG = Fault(kind="hang")  # no answer for a long time
BLIND = Fault(kind="blind")  # the server does not see If-None-Match


@dataclass
class Proxy:
    """The proxy's address and what it saw; `behave` says what befalls a request."""

    server: str
    behave: Callable[[Asked], Fault | None] = lambda asked: None
    url: str = ""
    seen: list[Asked] = field(default_factory=list)

    def well(self) -> None:
        """Forgets what it saw, and behaves."""
        self.behave = lambda asked: None
        self.seen.clear()

    def count(self, what: str = "") -> int:
        """How many requests there were, or how many of an operation."""
        return sum(what in ("", asked.what) for asked in self.seen)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy
    lock = threading.Lock()

    def answer(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what, key = operation(self.command, self.path)
        with self.lock:
            times = sum((a.what, a.key) == (what, key) for a in proxy.seen) + 1
            asked = Asked(what, key, times, {k.lower(): v for k, v in self.headers.items()})
            proxy.seen.append(asked)
        fault = proxy.behave(asked)
        with suppress(OSError, http.client.HTTPException):  # either side has gone
            self.befall(fault, body)
            return
        self.close_connection = True

    def befall(self, fault: Fault | None, body: bytes) -> None:
        if fault is None or fault.kind in ("blind", "lost", "half"):
            answer = self.passed_on(body, fault)
        elif fault.kind == "error":
            answer = fault.status, [("Content-Type", "application/xml")], error(fault)
        else:
            answer = None
            time.sleep(HANG_SECONDS if fault.kind == "hang" else 0)
        if answer is None or (fault and fault.kind in ("lost", "half")):
            self.reset()
        else:
            self.give(*answer)

    def passed_on(self, body: bytes, fault: Fault | None):
        left_out = {"expect", "connection"} | ({"if-none-match"} if fault == BLIND else set())
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        behind = http.client.HTTPConnection(urlsplit(self.proxy.server).netloc, timeout=60)
        try:
            if fault == HALF:
                behind.putrequest(self.command, self.path, skip_host=True)
                for name, value in headers.items():
                    behind.putheader(name, value)
                behind.endheaders(body[: len(body) // 2])
                return None
            behind.request(self.command, self.path, body, headers)
            found = behind.getresponse()
            dropped = ("connection", "transfer-encoding", "server", "date")
            kept = [(k, v) for k, v in found.getheaders() if k.lower() not in dropped]
            return found.status, kept, found.read()
        finally:
            behind.close()

    def give(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if self.command == "HEAD" or name.lower() != "content-length":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        elif not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        return

    do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = do_DELETE = answer


def operation(method: str, path: str) -> tuple[str, str]:
    """What S3 calls a request, and the key, with the number of the part where it is one."""
    parts = urlsplit(path)
    query, key = parse_qs(parts.query, keep_blank_values=True), parts.path.lstrip("/")
    if "uploadId" in query or "uploads" in query:
        names = {"PUT": "part", "DELETE": "abort", "GET": "uploads"}
        what = "begin" if "uploads" in query else "complete"
        return names.get(method, what), f"{key}#{query.get('partNumber', [''])[0]}"
    if "list-type" in query:
        return "list", f"{key}/{query.get('prefix', [''])[0]}"
    return method.lower(), key


def error(fault: Fault) -> bytes:
    """The body of an error as S3 writes it."""
    text = f"<Code>{fault.code}</Code><Message>told by the test: {fault.code}</Message>"
    return f'<?xml version="1.0" encoding="UTF-8"?><Error>{text}</Error>'.encode()


@contextmanager
def slow_s3(s3: dict[str, str]) -> Iterator[Proxy]:
    """Serves a proxy in front of a server, to which the environment leads until the block ends."""
    with in_front_of(s3["AWS_ENDPOINT_URL"]) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3, "AWS_ENDPOINT_URL": proxy.url}.items():
            patch.setenv(name, value)
        forget_clients()
        try:
            yield proxy
        finally:
            forget_clients()


@contextmanager
def in_front_of(server: str) -> Iterator[Proxy]:
    """Serves a proxy in front of any HTTP server until the block ends."""
    proxy = Proxy(server)
    handler = type("Bound", (Handler,), {"proxy": proxy})
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http_server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


def forget_clients() -> None:
    """Makes the next request read the environment again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
