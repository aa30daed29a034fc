"""The vLLM engine: continuous batching with a step loop of our own. The only door to vllm.

The engine core runs inside this very process (it is a child of Retort's already), which halves
the start-up; prompts go in as token ids, so that what is stored is what the model saw.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retort import encoding, models
from retort.engines import Answer, Request, Settings, local_raw, parse_local, render_each
from retort.signals import Signal, captured

GIVES_SIGNAL = SCORES = CONTINUES = True
REMOTE = False
parse = parse_local


def open_engine(settings: Settings) -> "VllmEngine":
    """Returns an engine with the model loaded. Slow: 10 seconds and more."""
    runtime = settings.runtime
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(runtime["kv_cache_gib"]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    if os.path.isdir(settings.model):
        os.environ["HF_HUB_OFFLINE"] = "1"
    return VllmEngine(settings)


@dataclass(frozen=True)
class Prompt:
    """What is known of a request under way: its prompt, and the ids that follow it already."""

    prompt_ids: list[int]
    answer_ids: list[int]


class VllmEngine:
    """Holds the loaded model; ended with its process."""

    def __init__(self, settings: Settings):
        self.steps = 0
        self._settings = settings
        self._llm = _load(settings)
        self._tokenizer = encoding.load_tokenizer(settings.model)
        config = self._llm.model_config
        self._max_length = config.max_model_len
        self._waiting: dict[str, Prompt] = {}
        import vllm

        self._parameters = vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            logprobs=settings.top_k or None,
            flat_logprobs=True,
            detokenize=False,
        )
        self.facts = {
            "engine": "vllm",
            "engine_version": vllm.__version__,
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_model_len": config.max_model_len,
            "vocabulary": config.get_vocab_size(),
            "logprobs_mode": "raw_logprobs",
        }

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer as it finishes; keeps twice the batch queued, never more."""
        engine, incoming = self._llm.llm_engine, iter(requests)
        bound = 2 * int(self._settings.runtime["max_num_seqs"])
        ended = False
        while not ended or self._waiting:
            fresh: list[Request] = []
            while not ended and len(fresh) + len(self._waiting) < bound:
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

    def score(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields the signal of answers that exist already: one pass over prompt and answer."""
        self._parameters.prompt_logprobs = self._settings.top_k
        self._parameters.logprobs = None
        self._parameters.max_tokens = 1
        yield from self.generate(requests)

    def _enqueue(self, fresh: list[Request]) -> Iterator[Answer]:
        """Queues requests; yields at once those that cannot be asked."""
        scores = self._parameters.prompt_logprobs is not None
        for request, ids in zip(fresh, render_each(self._tokenizer, fresh), strict=True):
            if isinstance(ids, str):
                yield Answer(request.id, local_raw([], [], "error", cause=ids))
                continue
            known = list(request.continues or [])
            if request.response is not None:
                known = encoding.response_ids(self._tokenizer, request.response)
            if len(ids) + len(known) >= self._max_length:
                reason = "length" if request.continues else "prompt_too_long"
                yield self._answer(request.id, Prompt(ids, known), reason, None)
                continue
            parameters = self._parameters.clone()
            if not scores:
                parameters.max_tokens = (request.max_tokens or parameters.max_tokens) - len(known)
                parameters.seed = request.seed
            self._waiting[request.id] = Prompt(ids, known)
            prompt = {"prompt_token_ids": ids + known}
            self._llm.llm_engine.add_request(request.id, prompt, parameters)

    def _answers(self, finished: list[Any]) -> list[Answer]:
        answers: list[Answer] = []
        for output in finished:
            prompt, completion = self._waiting.pop(output.request_id), output.outputs[0]
            if output.prompt_logprobs is not None and prompt.answer_ids:
                signal = self._read(output.prompt_logprobs, skip=len(prompt.prompt_ids))
                answers.append(self._answer(output.request_id, prompt, "stop", signal))
                continue
            prompt.answer_ids.extend(completion.token_ids)
            own = self._read(completion.logprobs) if self._settings.top_k else None
            reason = completion.finish_reason or "unknown"
            answers.append(self._answer(output.request_id, prompt, reason, own))
        return answers

    def _answer(
        self, request_id: str, prompt: Prompt, reason: str, signal: Signal | None
    ) -> Answer:
        ids = [] if reason == "prompt_too_long" else prompt.answer_ids
        text = self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        return Answer(request_id, local_raw(prompt.prompt_ids, ids, reason, text), signal)

    def _read(self, flat: Any, skip: int = 0) -> Signal:
        """Returns the signal in vLLM's lists, which hold K + 1 entries a token: its own, then the
        K largest. A prompt's list begins with an empty row for its first token."""
        width = self._settings.top_k + 1
        start = flat.start_indices[skip] if skip else 0
        ids = np.asarray(flat.token_ids[start:], dtype=np.int32).reshape(-1, width)
        logprobs = np.asarray(flat.logprobs[start:], dtype=np.float32).reshape(-1, width)
        return captured(ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])


def _load(settings: Settings) -> Any:
    import vllm

    runtime, dtype = settings.runtime, settings.dtype
    executor = runtime["distributed_executor"]
    return vllm.LLM(
        model=settings.model,
        # vLLM's own auto would run float32 weights in bfloat16.
        dtype=models.stored_dtype(settings.model) if dtype == "auto" else dtype,
        seed=settings.seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=runtime["max_num_seqs"],
        max_logprobs=max(settings.top_k, 1),
        logprobs_mode="raw_logprobs",
        tensor_parallel_size=runtime["tensor_parallel_size"],
        pipeline_parallel_size=runtime["pipeline_parallel_size"],
        distributed_executor_backend=None if executor == "auto" else executor,
        gpu_memory_utilization=runtime["gpu_memory_utilization"],
        # An open bug: a prompt's log-probabilities can be wrong where its start was cached.
        enable_prefix_caching=not settings.scores,
        enforce_eager=vllm.platforms.current_platform.is_cpu(),
        disable_log_stats=True,
    )
