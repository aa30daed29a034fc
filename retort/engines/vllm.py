"""The vLLM engine: continuous batching with a step loop of our own. The only door to vllm.

The engine core runs inside this very process (it is a child of Retort's already), which halves
the start-up; prompts go in as token ids, so that what is stored is what the model saw. The
surprise: log-probabilities are taken from the core's own arrays (`LogprobsTap`), before vLLM would
turn them into a Python object a token, which costs more than computing them.
"""

import gc
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retort.data import encoding
from retort.engines import (
    Answer,
    Request,
    Settings,
    Timing,
    cut_at,
    local_raw,
    parse_local,
    render_each,
)
from retort.engines._kv_cache import cache_bytes
from retort.errors import StageError
from retort.store import model_folder
from retort.store.signals import Signal, captured

GIVES_SIGNAL = SCORES = CONTINUES = True
REMOTE = False
parse = parse_local


def open_engine(settings: Settings) -> "VllmEngine":
    """Returns an engine with the model loaded. Slow: 10 seconds and more."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # A child's own temporary folder goes with it; what was compiled once should stay.
        "TORCHINDUCTOR_CACHE_DIR": str(model_folder.cache_folder() / "inductor"),
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    if os.path.isdir(settings.model):
        os.environ["HF_HUB_OFFLINE"] = "1"
    # What vLLM imports stays: looking it through for garbage again and again is half of the start.
    gc.disable()
    try:
        return VllmEngine(settings)
    finally:
        gc.enable()


@dataclass(frozen=True)
class PendingPrompt:
    """What is known of a request under way: its prompt, and the ids that follow it already."""

    prompt_ids: list[int]
    answer_ids: list[int]
    internal_id: str = ""


class LogprobsTap:
    """Takes the log-probabilities of expected requests off the engine core's outputs.

    `first_at` is when the first tokens came since it was set to None, on the monotonic clock: the
    core shows each token, while a request's own outputs are only made when it is finished.
    """

    def __init__(self, core: Any):
        self._get_output = core.get_output
        self._rows: dict[str, list[Any]] = {}
        self.first_at: float | None = None
        core.get_output = self

    def __call__(self) -> Any:
        """Returns the core's next outputs without their log-probabilities, which are kept here."""
        found = self._get_output()
        if self.first_at is None and any(output.new_token_ids for output in found.outputs):
            self.first_at = time.monotonic()
        for output in found.outputs:
            if output.new_logprobs is not None and output.request_id in self._rows:
                self._rows[output.request_id].append(output.new_logprobs)
                output.new_logprobs = None
        return found

    def expect(self, internal_id: str) -> None:
        """Keeps the log-probabilities of a request from now on."""
        self._rows[internal_id] = []

    def take(self, internal_id: str, num_tokens: int) -> Signal | None:
        """Returns the signal of a finished request; None where none was asked for.

        Each row holds K + 1 entries: the sampled token, then the K largest.
        """
        rows = self._rows.pop(internal_id, None)
        if not rows:
            return None
        ids = np.concatenate([row.logprob_token_ids for row in rows]).astype(np.int32)
        logprobs = np.concatenate([row.logprobs for row in rows]).astype(np.float32)
        if len(ids) != num_tokens:
            raise StageError(f"vllm gave log-probabilities for {len(ids)} of {num_tokens} tokens")
        return captured(ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])


class VllmEngine:
    """Holds the loaded model; ended with its process."""

    def __init__(self, settings: Settings):
        self.steps = 0
        self._settings = settings
        self._llm = _load(settings)
        self._tokenizer = encoding.load_tokenizer(settings.model)
        config = self._llm.model_config
        self._max_length = config.max_model_len
        self._waiting: dict[str, PendingPrompt] = {}
        self._peel = LogprobsTap(self._llm.llm_engine.engine_core)
        self._made: dict[tuple[int, int | None], Any] = {}
        import vllm
        from vllm.sampling_params import RequestOutputKind

        self._parameters = vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            logprobs=settings.top_k or None,
            flat_logprobs=True,
            detokenize=bool(settings.stop),
            frequency_penalty=settings.frequency_penalty,
            presence_penalty=settings.presence_penalty,
            stop=list(settings.stop) or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.facts = {
            "engine": "vllm",
            "engine_version": vllm.__version__,
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_model_len": config.max_model_len,
            "vocabulary": config.get_vocab_size(),
            "logprobs_mode": "raw_logprobs",
        }
        self._warm_up()

    def _warm_up(self) -> None:
        """Answers one token, so that what is compiled on first use is not counted as work."""
        core, parameters = self._llm.llm_engine, self._parameters.clone()
        parameters.max_tokens = 1
        core.add_request("warm-up", {"prompt_token_ids": [0]}, parameters)
        while core.has_unfinished_requests():
            core.step()

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer as it finishes; keeps twice the batch queued, never more."""
        engine, incoming = self._llm.llm_engine, iter(requests)
        bound = 2 * int(self._settings.runtime["max_num_seqs"])
        ended = False
        while not ended or self._waiting:
            fresh: list[Request] = []
            room = bound - len(self._waiting)
            # Taken by the handful: chats rendered and tokenized together cost a fraction.
            while not ended and len(fresh) < room and room >= bound // 4:
                request = next(incoming, incoming)
                if request is incoming:
                    ended = True
                elif request is None:
                    break
                else:
                    fresh.append(request)  # type: ignore[arg-type]
            yield from self._enqueue(fresh)
            if self._waiting:
                outputs = engine.step()
                self.steps += 1
                if finished := [output for output in outputs if output.finished]:
                    yield from self._answers(finished)

    def timed(self, request: Request) -> Timing:
        """Returns how long one request takes alone; no first token where it cannot be asked."""
        self._peel.first_at, started = None, time.monotonic()
        for _ in self.generate([request]):
            pass
        whole_seconds, first_at = time.monotonic() - started, self._peel.first_at
        return Timing(whole_seconds, None if first_at is None else first_at - started)

    def forget(self) -> None:
        """Drops the keys and values kept of earlier prompts."""
        self._llm.reset_prefix_cache()

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of answers that exist already: one pass over prompt and answer."""
        self._parameters.prompt_logprobs = self._settings.top_k
        self._parameters.logprobs = None
        self._parameters.max_tokens = 1
        yield from self.generate(requests)

    def _enqueue(self, fresh: list[Request]) -> Iterator[Answer]:
        """Queues requests; yields at once those that cannot be asked."""
        for request, ids in zip(fresh, render_each(self._tokenizer, fresh), strict=True):
            if isinstance(ids, str):
                yield Answer(request.id, local_raw([], [], "error", cause=ids))
                continue
            known = list(request.continues or [])
            if request.response is not None:
                known = encoding.response_ids(self._tokenizer, request.response)
            if len(ids) + len(known) >= self._max_length:
                reason = "length" if request.continues else "prompt_too_long"
                yield self._answer(request.id, PendingPrompt(ids, known), reason, None)
                continue
            parameters = self._parameters_of(request, len(known))
            prompt = {"prompt_token_ids": ids + known}
            internal_id = self._llm.llm_engine.add_request(request.id, prompt, parameters)
            self._waiting[request.id] = PendingPrompt(ids, known, internal_id)
            if self._settings.top_k and not self._settings.scores:
                self._peel.expect(internal_id)

    def _parameters_of(self, request: Request, num_known: int) -> Any:
        """Returns the sampling of a request; vLLM copies them, so equal ones are made once."""
        if self._settings.scores:
            return self._parameters
        max_tokens = (request.max_tokens or self._settings.max_tokens) - num_known
        key = (max_tokens, request.seed)
        if key not in self._made:
            parameters = self._parameters.clone()
            parameters.max_tokens, parameters.seed = key
            if request.seed is not None:
                return parameters
            self._made[key] = parameters
        return self._made[key]

    def _answers(self, finished: list[Any]) -> list[Answer]:
        answers: list[Answer] = []
        for output in finished:
            prompt, completion = self._waiting.pop(output.request_id), output.outputs[0]
            if self._settings.scores:
                signal = self._read(output.prompt_logprobs, len(prompt.prompt_ids))
                answers.append(self._answer(output.request_id, prompt, "stop", signal))
                continue
            prompt.answer_ids.extend(completion.token_ids)
            own = self._peel.take(prompt.internal_id, len(completion.token_ids))
            reason = completion.finish_reason or "unknown"
            answers.append(self._answer(output.request_id, prompt, reason, own))
        return answers

    def _answer(
        self, name: str, prompt: PendingPrompt, reason: str, signal: Signal | None
    ) -> Answer:
        ids = [] if reason == "prompt_too_long" else prompt.answer_ids
        text = self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        text = cut_at(text, self._settings.stop)
        return Answer(name, local_raw(prompt.prompt_ids, ids, reason, text), signal)

    def _read(self, flat: Any, skip: int) -> Signal:
        """Returns the signal in a prompt's lists, after the first `skip` tokens. They hold K + 1
        entries a token: its own, then the K largest; none for the first token of all."""
        width = self._settings.top_k + 1
        start = flat.start_indices[skip]
        ids = np.asarray(flat.token_ids[start:], dtype=np.int32).reshape(-1, width)
        logprobs = np.asarray(flat.logprobs[start:], dtype=np.float32).reshape(-1, width)
        return captured(ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])


def _load(settings: Settings) -> Any:
    from vllm import LLM

    gc.freeze()
    return LLM(**arguments(settings))


def arguments(settings: Settings) -> dict[str, Any]:
    """Returns what vLLM's own EngineArgs are made of."""
    from vllm.platforms import current_platform

    runtime, on_cpu = settings.runtime, current_platform.is_cpu()
    executor = runtime["distributed_executor"]
    # vLLM's own auto would run float32 weights in bfloat16.
    dtype = (
        model_folder.stored_dtype(settings.model) if settings.dtype == "auto" else settings.dtype
    )
    return {
        "model": settings.model,
        "dtype": dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": runtime["max_num_seqs"],
        "max_logprobs": max(settings.top_k, 1),
        "logprobs_mode": "raw_logprobs",
        "tensor_parallel_size": runtime["tensor_parallel_size"],
        "pipeline_parallel_size": runtime["pipeline_parallel_size"],
        "distributed_executor_backend": None if executor == "auto" else executor,
        "gpu_memory_utilization": runtime["gpu_memory_utilization"],
        "kv_cache_memory_bytes": cache_bytes(settings, dtype) if on_cpu else None,
        # An open bug: a prompt's log-probabilities can be wrong where its start was cached.
        "enable_prefix_caching": not settings.scores,
        "enforce_eager": on_cpu,
        # On a CPU a seeded request whose prompt is split crashes ("does not use offset").
        "enable_chunked_prefill": False if on_cpu and settings.temperature > 0 else None,
        "disable_log_stats": True,
    }
