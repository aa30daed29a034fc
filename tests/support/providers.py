"""Providers of batches on loopback, for both protocols, that lose, repeat and shuffle results.

`python -m tests.support.providers ENGINE URL STATE` is a client that a test can kill: it asks
three things in a batch and prints the answers.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from retort.engines import find_engine
from tests.support.misbehaving import anthropic_body, asking, bad, openai_body, settings


class Provider:
    """Takes batches. `fate` says of a row, by its text and the number of the batch, what comes of
    it: fine, missing, expired, crash (a 500) or bad (a 400)."""

    def __init__(self, fate: Callable[[str, int], str] = lambda text, number: "fine"):
        self.fate = fate
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.num_polls = 0
        self.silence_seconds = 0.0  # between taking a batch and saying so
        self.extra: list[str] = []  # custom ids of results nobody asked for
        self.refuse: int | None = None  # status of the next order, which is taken nevertheless

    async def made(self, batch: dict[str, Any]) -> web.Response:
        self.batches.append(batch)
        await asyncio.sleep(self.silence_seconds)
        if self.refuse:
            status, self.refuse = self.refuse, None
            return bad(status)
        return web.json_response(batch)

    def found(self, request: web.Request) -> dict[str, Any]:
        for batch in self.batches:
            if batch["id"] == request.match_info["id"]:
                return batch
        raise web.HTTPNotFound

    async def listed(self, request: web.Request) -> web.Response:
        newest = self.batches[::-1]
        ids = [batch["id"] for batch in newest]
        cursor = request.query.get("after") or request.query.get("after_id")
        start = ids.index(cursor) + 1 if cursor else 0
        page = newest[start : start + 2]
        more = start + 2 < len(newest)
        last = page[-1]["id"] if page else None
        return web.json_response({"data": page, "has_more": more, "last_id": last})

    def results(self, rows: list[tuple[str, str]], number: int, shape: Callable[..., Any]) -> bytes:
        """The results of rows of custom id and text, in no order, one of them twice."""
        fates = [(custom_id, text, self.fate(text, number)) for custom_id, text in rows]
        lines = [shape(*row) for row in fates if row[2] != "missing"]
        lines += lines[:1] + [shape(custom_id, "stranger", "fine") for custom_id in self.extra]
        random.Random(number).shuffle(lines)
        return b"\n".join(json.dumps(line).encode() for line in lines)


class OpenAIProvider(Provider):
    """Files, batches, and results in two files."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_get("/v1/files/{id}/content", self.content)
        app.router.add_post("/v1/batches", self.order)
        app.router.add_get("/v1/batches", self.listed)
        app.router.add_get("/v1/batches/{id}", self.batch)
        return app

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()
        return web.json_response({"id": name})

    async def order(self, request: web.Request) -> web.Response:
        asked = await request.json()
        number = len(self.batches)
        return await self.made(
            {"id": f"batch_{number}", "created_at": int(time.time()), "status": "in_progress"}
            | asked
        )

    async def batch(self, request: web.Request) -> web.Response:
        self.num_polls += 1
        found = self.found(request)
        if self.num_polls % 2:
            return web.json_response(found)
        rows = [json.loads(line) for line in self.files[found["input_file_id"]].splitlines()]
        pairs = [(row["custom_id"], row["body"]["messages"][-1]["content"]) for row in rows]
        lines = self.results(pairs, self.batches.index(found), self.shape).splitlines()
        good = [line for line in lines if b'"status_code": 200' in line]
        name = found["id"]
        self.files |= {
            f"{name}-good": b"\n".join(good),
            f"{name}-bad": b"\n".join(line for line in lines if line not in good),
        }
        found |= {"output_file_id": f"{name}-good", "error_file_id": f"{name}-bad"}
        return web.json_response(found | {"status": "completed"})

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    def shape(self, custom_id: str, text: str, fate: str) -> dict[str, Any]:
        row: dict[str, Any] = {"custom_id": custom_id, "response": None, "error": None}
        if fate == "expired":
            return row | {"error": {"code": "batch_expired", "message": "too late"}}
        status = {"fine": 200, "crash": 500, "bad": 400}[fate]
        error = {"error": {"message": f"{fate} {text}"}}
        body = openai_body(text) if fate == "fine" else error
        return row | {"response": {"status_code": status, "body": body}}


class AnthropicProvider(Provider):
    """Batches that carry no note, and results once they have ended."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/messages/batches", self.order)
        app.router.add_get("/v1/messages/batches", self.listed)
        app.router.add_get("/v1/messages/batches/{id}", self.batch)
        app.router.add_get("/v1/messages/batches/{id}/results", self.content)
        return app

    async def order(self, request: web.Request) -> web.Response:
        rows = (await request.json())["requests"]
        name = f"msgbatch_{len(self.batches)}"
        pairs = [(row["custom_id"], row["params"]["messages"][-1]["content"]) for row in rows]
        self.files[name] = self.results(pairs, len(self.batches), self.shape)
        return await self.made(
            {
                "id": name,
                "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "processing_status": "in_progress",
                "request_counts": {"processing": len(rows), "succeeded": 0},
                "results_url": None,
            }
        )

    async def listed(self, request: web.Request) -> web.Response:
        answer = await super().listed(request)
        for batch in self.batches:  # seen unfinished once, finished from then on
            batch["processing_status"] = "ended"
        return answer

    async def batch(self, request: web.Request) -> web.Response:
        self.num_polls += 1
        found = self.found(request)
        if self.num_polls % 2 == 0:
            found["processing_status"] = "ended"
        return web.json_response(found)

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    def shape(self, custom_id: str, text: str, fate: str) -> dict[str, Any]:
        kind = {"crash": "api_error", "bad": "invalid_request_error"}.get(fate)
        error = {"type": "error", "error": {"type": kind, "message": f"{fate} {text}"}}
        result: dict[str, Any] = {"type": fate}
        if fate == "fine":
            result = {"type": "succeeded", "message": anthropic_body(text)}
        elif kind:
            result = {"type": "errored", "error": error}
        return {"custom_id": custom_id, "result": result}


PROVIDERS = {"openai": OpenAIProvider, "anthropic": AnthropicProvider}


def main() -> None:
    """A client that can be killed."""
    name, url, state = sys.argv[1:]
    module = find_engine(name)
    engine = module.open_engine(settings(url, state, batch=True))
    for answer in engine.generate(asking("one", "two", "three")):
        print(answer.id, module.parse(answer.id, answer.raw).text, flush=True)


if __name__ == "__main__":
    main()
