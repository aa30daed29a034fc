"""Endpoints on loopback that misbehave on purpose, each on a thread of its own."""

import asyncio
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from retort.engines import Request, Settings, find_engine

SECRET = "sk-a-secret-that-must-not-leak"
# A field that no client knows.
UNKNOWN = {"extension": {"x": [1.5, None]}}
RUNTIME = {
    "max_concurrency": 8,
    "request_timeout_seconds": 10.0,
    "max_attempts": 3,
    "batch": False,
    "batch_poll_seconds": 0.05,
}


def settings(url: str, state: str | None = None, **runtime: Any) -> Settings:
    """The settings of an engine behind a network."""
    return Settings(
        model="tiny",
        temperature=0.0,
        top_p=1.0,
        max_tokens=8,
        max_model_len=None,
        top_k=0,
        dtype="auto",
        seed=0,
        runtime={**RUNTIME, **runtime},
        endpoint=url,
        state=state,
    )


def asking(*texts: str) -> list[Request]:
    """One request a text; the text is its id."""
    return [Request(text, [{"role": "user", "content": text}]) for text in texts]


@contextmanager
def running(app: web.Application, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serves until the block ends; gives the address."""
    ready, address = threading.Event(), ""
    stop: Callable[[], object] = threading.Event().set

    async def serve() -> None:
        nonlocal address, stop
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        stop = lambda: loop.call_soon_threadsafe(stopped.set)  # noqa: E731
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        scheme = "https" if tls else "http"
        address = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    ready.wait()
    try:
        yield address
    finally:
        stop()
        thread.join()


class Endpoint:
    """Answers chats as `behave` says, and remembers what it saw."""

    def __init__(self, behave: Callable[["Endpoint", web.Request, str], Awaitable[Any]]):
        self.behave = behave
        self.seen: list[tuple[float, str]] = []  # when, and the last turn's text
        self.bodies: list[dict[str, Any]] = []
        self.num_active, self.most_active = 0, 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][-1]["content"]
        self.seen.append((time.monotonic(), text))
        self.bodies.append(body)
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            return await self.behave(self, request, text) or fine(text)
        finally:
            self.num_active -= 1

    def times(self, text: str) -> int:
        """How often a text was asked."""
        return sum(seen == text for _, seen in self.seen)


@contextmanager
def endpoint(behave: Callable[[Endpoint, web.Request, str], Awaitable[Any]]):
    """Gives an endpoint and its address; `behave` returns None for a plain answer."""
    app, found = web.Application(), Endpoint(behave)
    app.router.add_post("/v1/chat/completions", found.answer)
    app.router.add_post("/v1/messages", found.answer)
    with running(app) as url:
        yield found, url


def openai_body(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": f"to {text}"}
    return {
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": len(text), "completion_tokens": 1},
        **UNKNOWN,
    }


def anthropic_body(text: str) -> dict[str, Any]:
    return {
        "content": [{"type": "text", "text": f"to {text}"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": len(text), "output_tokens": 1},
        **UNKNOWN,
    }


def fine(text: str) -> web.Response:
    """A good answer in both protocols at once."""
    return web.json_response({**openai_body(text), **anthropic_body(text)})


def bad(status: int, message: str = "no", code: str | None = None, **headers: str) -> web.Response:
    """An error in the usual shape."""
    body = {"error": {"message": message, "code": code}}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response(body, status=status, headers=given)


def answered(name, url, requests, **runtime):
    """All answers of an engine as responses, by id; each request is answered exactly once."""
    module = find_engine(name)
    answers = list(module.open_engine(settings(url, **runtime)).generate(requests))
    assert sorted(a.id for a in answers) == sorted(r.id for r in requests if r)
    assert SECRET not in str([a.raw for a in answers])
    return {a.id: module.parse(a.id, a.raw) for a in answers}


async def well(endpoint, request, text):
    """Answers after a moment."""
    await asyncio.sleep(0.02)
