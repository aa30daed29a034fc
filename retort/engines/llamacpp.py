"""The llamacpp engine: an exported GGUF file, answered by llama.cpp on this machine's processors.

The model is the export's folder: chats become ids by the student's own tokenizer, and llama.cpp is
given ids and returns ids. Nothing is kept of a prompt when its answer is finished.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from retort.data import encoding
from retort.engines import Answer, Request, Settings, Timing, cut_at, take_requests
from retort.engines._gguf_header import Header, read_header
from retort.engines._llama_server import Completion, LlamaServer
from retort.engines._local import TokenizedRequest, local_raw, parse_local, tokenize
from retort.errors import SpecError
from retort.processes.libraries import lean_imports, stay_offline
from retort.records import JsonObject
from retort.store.signals import Signal, captured

GIVES_SIGNAL = True
SCORES = CONTINUES = REMOTE = PENALTIES = TORCH = False
FILE = "model.gguf"
MOST_SLOTS = 256  # llama.cpp's own limit on sequences
parse = parse_local


def open_engine(settings: Settings) -> "LlamaCppEngine":
    """Returns the engine with the file loaded. Raises `SpecError` where there is no such file, or
    no package to run it."""
    if not find_spec("xllamacpp"):
        raise SpecError("engine llamacpp needs the package xllamacpp: pip install 'retort[export]'")
    if not (Path(settings.model) / FILE).is_file():
        raise SpecError(f"{settings.model} has no {FILE}; engine llamacpp answers with an export")
    stay_offline(settings.model)
    with lean_imports("torch"):
        return LlamaCppEngine(settings)


class LlamaCppEngine:
    """Holds the loaded file; ended with its process."""

    def __init__(self, settings: Settings):
        self._settings = settings
        path = Path(settings.model) / FILE
        header = read_header(path)
        limit = header.context
        self._max_length = min(settings.max_model_len or limit, limit)
        self._num_slots = _num_slots(settings, self._max_length, header)
        self._tokenizer = encoding.load_tokenizer(settings.model)
        self._end_ids = encoding.end_ids(settings.model, self._tokenizer)
        if not self._end_ids:
            raise SpecError(
                f"{settings.model} has no end token; name one in its generation_config.json"
            )
        self._server = LlamaServer(
            path,
            num_slots=self._num_slots,
            context=self._max_length,
            num_threads=_num_threads(settings),
            is_exact=header.quantization == "f32",
        )
        self.facts = {
            "engine": "llamacpp",
            "engine_version": version("xllamacpp"),
            "dtype": header.quantization,
            "max_model_len": self._max_length,
            "vocabulary": header.vocabulary,
            "logprobs_mode": "raw_logprobs",
        }

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer when it is finished, as many at a time as there are slots."""
        source, more = iter(requests), True
        pending: set[Future[Answer]] = set()
        pool = ThreadPoolExecutor(self._num_slots)
        try:
            while more or pending:
                room = 2 * self._num_slots - len(pending)
                if more and room >= self._num_slots // 2:
                    batch, more = take_requests(source, room)
                    rows, answers = tokenize(self._tokenizer, batch, self._max_length)
                    yield from answers
                    pending |= {pool.submit(self._answer, row) for row in rows}
                if pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Raises `NotImplementedError`: llama.cpp's server gives no distribution of a prompt."""
        raise NotImplementedError("engine llamacpp scores no existing answers")

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one request; no first token if the request is refused.

        The first token is asked for alone, and the others with what is kept of the prompt.
        """
        started, first_token_seconds = time.monotonic(), None
        rows, _ = tokenize(self._tokenizer, [request], self._max_length)
        for row in rows:
            with contextlib.suppress(ValueError):
                ids = self._complete(row.ids, 1, request.seed).token_ids
                first_token_seconds = time.monotonic() - started
                if ids[-1] not in self._end_ids:
                    self._answer(replace(row, answer_ids=ids), keeps=True)
        return Timing(time.monotonic() - started, first_token_seconds)

    def forget(self) -> None:
        """Does nothing: no prompt is cached."""

    def _answer(self, row: TokenizedRequest, keeps: bool = False) -> Answer:
        """Returns the answer to one request; `keeps`: what llama.cpp has of the prompt is used."""
        settings = self._settings
        most = (row.request.max_tokens or settings.max_tokens) - len(row.answer_ids)
        room = min(most, self._max_length - len(row.ids))
        ids: list[int] = []
        found: list[JsonObject] = []
        reason, signal = "length", None
        try:
            while len(ids) < room:
                part = self._complete(row.ids + ids, room - len(ids), row.request.seed, keeps)
                start, ids = len(ids), ids + part.token_ids
                found += part.logprobs
                ends = (place for place in range(start, len(ids)) if ids[place] in self._end_ids)
                end = next(ends, None)
                if end is not None:
                    ids, reason = ids[: end + 1], "stop"
                elif part.stop_type == "word":
                    reason = "stop"
                elif part.stop_type == "eos" and part.token_ids:
                    continue  # a token that ends an answer for llama.cpp, and not for this model
                break
            if settings.top_k and ids:
                signal = self._signal(row.ids, ids, found)
        except ValueError as error:
            return Answer(row.request.id, local_raw(row.prompt_ids, [], "error", cause=str(error)))
        whole = self._tokenizer.decode(ids, skip_special_tokens=True)
        text = cut_at(whole, settings.stop)
        reason = "stop" if text != whole else reason
        return Answer(row.request.id, local_raw(row.prompt_ids, ids, reason, text), signal)

    def _complete(
        self, ids: list[int], num_tokens: int, seed: int | None, keeps: bool = False
    ) -> Completion:
        settings = self._settings
        samplers = ["temperature"] if settings.temperature == 0 else ["temperature", "top_p"]
        return self._server.complete(
            ids,
            num_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            samplers=samplers,
            seed=settings.seed if seed is None else seed,
            n_probs=settings.top_k,
            stop=list(settings.stop),
            cache_prompt=keeps,
        )

    def _signal(self, prompt_ids: list[int], ids: list[int], found: list[JsonObject]) -> Signal:
        """Returns an answer's signal; a distribution that the server left out is asked for."""
        if [entry["id"] for entry in found[: len(ids)]] != ids:
            found = [self._distribution(prompt_ids + ids[:t], ids[t]) for t in range(len(ids))]
        tops = [entry["top_logprobs"] for entry in found[: len(ids)]]
        return captured(
            np.array([[top["id"] for top in row] for row in tops], np.int32),
            np.array([[top["logprob"] for top in row] for row in tops], np.float32),
            np.array(ids, np.int32),
            np.array([entry["logprob"] for entry in found[: len(ids)]], np.float32),
        )

    def _distribution(self, ids: list[int], target: int) -> JsonObject:
        """Returns the distribution after some ids, whatever token llama.cpp would choose there.

        The server leaves out that of a token that ends amid a character: it is made to choose an
        end token, which changes nothing in the distribution before the choice.
        """
        ask = partial(
            self._server.complete,
            ids,
            1,
            logit_bias=[[self._end_ids[0], 1e6]],
            temperature=0,
            cache_prompt=True,
        )
        top_k = self._settings.top_k
        top = ask(n_probs=top_k).logprobs[0]["top_logprobs"]
        whole = top
        if all(entry["id"] != target for entry in top):
            whole = ask(n_probs=self.facts["vocabulary"]).logprobs[0]["top_logprobs"]
        logprob = next(entry["logprob"] for entry in whole if entry["id"] == target)
        return {"id": target, "logprob": logprob, "top_logprobs": top}


def _num_threads(settings: Settings) -> int:
    given = settings.runtime.get("num_threads") or os.environ.get("OMP_NUM_THREADS")
    return int(given or os.cpu_count() or 1)


def _num_slots(settings: Settings, context: int, header: Header) -> int:
    """Returns how many sequences are answered at a time: as many as the memory holds.

    Raises `SpecError` where it does not hold one.
    """
    runtime = settings.runtime
    most = min(int(runtime["max_num_seqs"]), MOST_SLOTS)
    each = header.numbers_of_token * (4 if header.quantization == "f32" else 2)
    room = int(runtime["kv_cache_gib"]) << 30
    if each * context > room:
        raise SpecError(
            f"the keys and values of {context:,} tokens take {each * context / 2**30:.1f} GiB, "
            "more than runtime.kv_cache_gib; raise it, or lower max_model_len"
        )
    return max(1, min(most, room // (each * context)))
