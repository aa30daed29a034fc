"""The claim of the HTTP engines: an endpoint is kept as busy as by the barest client there can be.

`python -m benchmarks.http_engine` runs both by turns against one local vLLM server of a tiny model.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import orjson

from benchmarks import Measure, show
from retort.engines import Request, Settings, openai
from tests.conftest import vllm_serving

CONCURRENCY = 64
NUM_REQUESTS = 2048
MAX_TOKENS = 32
ROUNDS = 5
TARGET = 0.95


def settings(url: str) -> Settings:
    """Returns the settings of an endpoint that is asked without a key."""
    return Settings(
        model="tiny",
        temperature=0.0,
        top_p=1.0,
        max_tokens=MAX_TOKENS,
        max_model_len=None,
        top_k=0,
        dtype="auto",
        seed=0,
        runtime={
            "max_concurrency": CONCURRENCY,
            "request_timeout_seconds": 120.0,
            "max_attempts": 1,
            "batch": False,
        },
        endpoint=url,
    )


def ours(url: str, requests: list[Request]) -> int:
    """Returns the tokens that the engine got."""
    engine = openai.open_engine(settings(url))
    answers = [openai.parse(answer.id, answer.raw) for answer in engine.generate(requests)]
    assert len(answers) == len(requests)
    return sum(answer.num_tokens for answer in answers)


def bare(url: str, requests: list[Request]) -> int:
    """Returns the tokens that as many bare loops got, each asking one after another."""
    waiting, tokens = iter(requests), 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for request in waiting:
            body = {
                "model": "tiny",
                "messages": request.messages,
                "temperature": 0.0,
                "max_tokens": MAX_TOKENS,
            }
            async with session.post(f"{url}/chat/completions", json=body) as response:
                found = orjson.loads(await response.read())
                tokens += found["usage"]["completion_tokens"]

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=CONCURRENCY)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(worker(session) for _ in range(CONCURRENCY)))

    asyncio.run(run())
    return tokens


def ratios(url: str) -> list[float]:
    """Returns ours over bare of each round: the best of three runs each, by turns."""
    requests = [
        Request(str(i), [{"role": "user", "content": f"What is {i} + {7 * i}?"}])
        for i in range(NUM_REQUESTS)
    ]
    bare(url, requests)
    found = []
    for _ in range(ROUNDS):
        speed = {ours: 0.0, bare: 0.0}
        for client in (bare, ours, ours, bare, bare, ours):
            started = time.perf_counter()
            tokens = client(url, requests)
            speed[client] = max(speed[client], tokens / (time.perf_counter() - started))
        found.append(speed[ours] / speed[bare])
        print(f"{speed[ours]:,.0f} and bare {speed[bare]:,.0f} tokens/s: {found[-1]:.3f}")
    return found


def measures() -> list[Measure]:
    """Returns the median of the rounds."""
    with (
        tempfile.TemporaryDirectory(prefix="retort-bench-") as home,
        vllm_serving(Path(home)) as url,
    ):
        ratio = statistics.median(ratios(url))
    return [("generate.http_over_bare_client", ratio, TARGET, ratio >= TARGET)]


if __name__ == "__main__":
    show(measures())
