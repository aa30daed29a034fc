"""Endpoints on loopback that score ids as vLLM's server does, out of a real model, or pass them on.

What one of them cannot do, or does wrong, is said by its fields.
"""

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch
import transformers
from aiohttp import web

from tests.support.misbehaving import bad, running


@dataclass
class Scorer:
    """Scores with the model of a folder; `asked` are the bodies of all requests, by path."""

    folder: Path
    max_logprobs: int = 20
    tokenizes: bool = True
    words: bool = True
    swapped: bool = False  # its words are those of other ids
    gives: str = "logprobs"  # or logits, nothing, shifted: what its lists hold
    refusal: web.Response | None = None
    # What becomes of requests to score from the given one on: how, and of how many.
    fault: str = ""
    fault_from: int = 0
    fault_times: int = 0
    asked: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await self.noted(request)
        if not self.tokenizes:
            raise web.HTTPNotFound
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=False
        )
        return web.json_response({"tokens": ids, "count": len(ids), "max_model_len": 128})

    async def score(self, request: web.Request) -> web.Response:
        body = await self.noted(request)
        if self.refusal is not None:
            return self.refusal
        number = len(self.asked[request.path])
        if self.fault and self.fault_from <= number < self.fault_from + self.fault_times:
            return await self.faulty(request)
        ids, k = body["prompt"], body["prompt_logprobs"]
        if k > self.max_logprobs:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: "
            return bad(400, f"{said}{self.max_logprobs}")
        with torch.inference_mode():
            rows_TV = self.model(torch.tensor([ids])).logits[0]
        if self.gives != "logits":
            rows_TV = torch.log_softmax(rows_TV, dim=-1)
        shift = 1 if self.gives == "shifted" else 0
        tokens = ids[1 - shift : len(ids) - shift]
        lists = [self.entry(row_V, own, k) for row_V, own in zip(rows_TV, tokens, strict=False)]
        choice: dict[str, Any] = {"text": "", "finish_reason": "length"}
        if self.gives != "nothing":
            choice["prompt_logprobs"] = [None, *lists]
        return web.json_response({"choices": [choice]})

    async def faulty(self, request: web.Request) -> web.Response:
        if self.fault == "hang":
            await asyncio.sleep(60)
        if self.fault == "death" and request.transport:
            request.transport.close()
        status = {"429": 429, "500": 500}.get(self.fault, 200)
        headers = {"Retry-After": "0"} if status == 429 else {}
        return web.Response(status=status, text="<html>busy</html>", headers=headers)

    def entry(self, row_V: torch.Tensor, own: int, k: int) -> dict[str, dict[str, Any]]:
        """The token itself, then the k best, as vLLM has it."""
        ids = dict.fromkeys([own, *row_V.topk(k).indices.tolist()])
        return {str(i): {"logprob": float(row_V[i]), "decoded_token": self.word(i)} for i in ids}

    def word(self, token_id: int) -> str | None:
        shown = (token_id + 7) % 60 if self.swapped else token_id
        return self.tokenizer.decode([shown]) if self.words else None

    async def noted(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.asked.setdefault(request.path, []).append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        return body

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/completions", self.score)
        return app


@contextmanager
def scoring(folder: Path, **more: Any):
    """Gives a scorer and its address."""
    found = Scorer(folder, **more)
    with running(found.app()) as url:
        yield found, url


@contextmanager
def counting(url: str):
    """Gives what was asked of another endpoint, as (path, body), and the address to ask at."""
    seen: list[tuple[str, dict[str, Any]]] = []

    async def forward(request: web.Request) -> web.Response:
        seen.append((request.path, await request.json()))
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url.removesuffix('/v1')}{request.path}", json=seen[-1][1]) as answer,
        ):
            return web.json_response(await answer.json(), status=answer.status)

    app = web.Application()
    app.router.add_post("/{path:.*}", forward)
    with running(app) as address:
        yield seen, address
