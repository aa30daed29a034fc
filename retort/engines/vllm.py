"""The vLLM engine: continuous batching with a step loop of our own. The only door to vllm.

The engine core runs inside this very process (it is a child of Retort's already), which halves
the start-up; prompts go in as token ids, so that what is stored is what the model saw.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from retort import encoding, models
from retort.engines import Answer, Request, Settings
from retort.records import Response, ids_sha256
from retort.signals import Signal

GIVES_SIGNAL = True


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


class VllmEngine:
    """Holds the loaded model; ended with its process."""

    def __init__(self, settings: Settings):
        import vllm

        runtime = settings.runtime
        self._settings = settings
        self._llm = vllm.LLM(
            model=settings.model,
            # vLLM's own auto would run float32 weights in bfloat16.
            dtype=models.stored_dtype(settings.model)
            if settings.dtype == "auto"
            else settings.dtype,
            seed=settings.seed,
            max_model_len=settings.max_model_len,
            max_num_seqs=runtime["max_num_seqs"],
            max_logprobs=max(settings.top_k, 1),
            logprobs_mode="raw_logprobs",
            tensor_parallel_size=runtime["tensor_parallel_size"],
            pipeline_parallel_size=runtime["pipeline_parallel_size"],
            gpu_memory_utilization=runtime["gpu_memory_utilization"],
            enforce_eager=vllm.platforms.current_platform.is_cpu(),
            disable_log_stats=True,
        )
        self._tokenizer = encoding.load_tokenizer(settings.model)
        self._parameters = vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            logprobs=settings.top_k or None,
            flat_logprobs=True,
            detokenize=False,
            seed=settings.seed if settings.temperature > 0 else None,
        )
        self._max_prompt = self._llm.model_config.max_model_len - 1
        self.facts = {
            "engine": "vllm",
            "engine_version": vllm.__version__,
            "dtype": str(self._llm.model_config.dtype).removeprefix("torch."),
            "max_model_len": self._llm.model_config.max_model_len,
            "logprobs_mode": "raw_logprobs",
        }

    def generate(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields each answer as it finishes; keeps twice the batch queued, never more."""
        engine, waiting = self._llm.llm_engine, iter(requests)
        bound = 2 * int(self._settings.runtime["max_num_seqs"])
        prompts: dict[str, list[int]] = {}
        while True:
            fresh = list(islice(waiting, bound - len(prompts)))
            rendered = encoding.render(self._tokenizer, [r.messages for r in fresh])
            for request, ids in zip(fresh, rendered, strict=True):
                if len(ids) > self._max_prompt:
                    yield _refused(request, ids), None
                    continue
                engine.add_request(request.id, {"prompt_token_ids": ids}, self._parameters.clone())
                prompts[request.id] = ids
            if not prompts and not fresh:
                return
            finished = [output for output in engine.step() if output.finished] if prompts else []
            if finished:
                yield from self._answers(finished, prompts)

    def _answers(self, finished: list[Any], prompts: dict[str, list[int]]) -> list[Answer]:
        ids = [list(output.outputs[0].token_ids) for output in finished]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers: list[Answer] = []
        for output, token_ids, text in zip(finished, ids, texts, strict=True):
            prompt_ids = prompts.pop(output.request_id)
            response = Response(
                id=output.request_id,
                text=text,
                token_ids=token_ids,
                finish_reason=output.outputs[0].finish_reason or "unknown",
                num_prompt_tokens=len(prompt_ids),
                prompt_sha256=ids_sha256(prompt_ids),
            )
            answers.append((response, self._signal(output.outputs[0].logprobs)))
        return answers

    def _signal(self, flat: Any) -> Signal | None:
        """vLLM gives K+1 entries a token: the sampled one, then the K largest."""
        if not self._settings.top_k:
            return None
        width = self._settings.top_k + 1
        ids = np.asarray(flat.token_ids, dtype=np.int32).reshape(-1, width)
        logprobs = np.asarray(flat.logprobs, dtype=np.float32).reshape(-1, width)
        return Signal(ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])


def _refused(request: Request, ids: list[int]) -> Response:
    """A prompt that leaves no room for an answer fails alone, with its reason."""
    return Response(request.id, "", [], "prompt_too_long", len(ids), ids_sha256(ids))
