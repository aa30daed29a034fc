"""The vLLM engine: continuous batching with a step loop of our own.

The engine core runs in this very process (already a child of Retort's), which halves the start.
Prompts go in as token ids, so that the stored ids are what the model saw. Log-probabilities are
taken from the core's own arrays (`LogprobsTap`), before vLLM makes a Python object of each token's,
which takes longer than computing them.
"""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from retort.data import encoding
from retort.engines import Answer, Request, Settings, Timing, cut_at, take_requests, timed_alone
from retort.engines._kv_cache import cache_bytes
from retort.engines._local import TokenizedRequest, local_raw, parse_local, tokenize
from retort.errors import StageError
from retort.processes.libraries import import_all, lean_imports, stay_offline
from retort.store import model_folder
from retort.store.signals import Signal, captured

GIVES_SIGNAL = SCORES = CONTINUES = True
REMOTE = False
parse = parse_local

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def open_engine(settings: Settings) -> "VllmEngine":
    """Returns an engine with the model loaded: 7 CPU seconds and more."""
    _set_environment()
    stay_offline(settings.model)
    with lean_imports():
        return VllmEngine(settings, _load(settings))


def import_libraries() -> None:
    """Imports most of what opening an engine does: 5 CPU seconds."""
    _set_environment()
    import_all("vllm.engine.arg_utils", "vllm.v1.engine.llm_engine")
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import_all("vllm.v1.worker.cpu_worker")


def _set_environment() -> None:
    """Sets the variables that vLLM reads while it is imported, and later."""
    # A child's temporary folder is deleted with it; compiled kernels should stay.
    kernels = str(model_folder.cache_folder() / "inductor")
    for name, value in {**ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": kernels}.items():
        os.environ.setdefault(name, value)


class LogprobsTap:
    """Takes the log-probabilities of expected requests off the engine core's outputs.

    `first_token_at` is when the first token came after it was last set to None, on the monotonic
    clock: the core's outputs show each token, the engine's only a finished request.
    """

    def __init__(self, core: Any):
        self._get_output = core.get_output
        self._logprobs: dict[str, list[Any]] = {}  # a list of vLLM's LogprobsLists by internal id
        self.first_token_at: float | None = None
        core.get_output = self

    def __call__(self) -> Any:
        """Returns the core's next outputs without the expected log-probabilities, kept here."""
        batch = self._get_output()
        if self.first_token_at is None and any(output.new_token_ids for output in batch.outputs):
            self.first_token_at = time.monotonic()
        for output in batch.outputs:
            if output.new_logprobs is not None and output.request_id in self._logprobs:
                self._logprobs[output.request_id].append(output.new_logprobs)
                output.new_logprobs = None
        return batch

    def expect(self, internal_id: str) -> None:
        """Keeps the log-probabilities of a request from now on."""
        self._logprobs[internal_id] = []

    def forget(self) -> None:
        """Drops what it keeps: no request is expected any more."""
        self._logprobs.clear()

    def take(self, internal_id: str, num_tokens: int) -> Signal | None:
        """Returns the signal of a finished request, None if it was not expected.

        Raises `StageError` if log-probabilities are missing. Each row of vLLM's holds K + 1
        entries: the sampled token, then the K largest.
        """
        steps = self._logprobs.pop(internal_id, None)
        if not steps:
            return None
        ids = np.concatenate([step.logprob_token_ids for step in steps]).astype(np.int32)
        logprobs = np.concatenate([step.logprobs for step in steps]).astype(np.float32)
        if len(ids) != num_tokens:
            raise StageError(f"vllm gave log-probabilities for {len(ids)} of {num_tokens} tokens")
        return captured(ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])


class VllmEngine:
    """Holds the loaded model; ended with its process. `llm_engine` is vLLM's own."""

    def __init__(self, settings: Settings, llm_engine: Any):
        import vllm
        from vllm.sampling_params import RequestOutputKind

        self.steps = 0
        self._settings, self._llm_engine = settings, llm_engine
        self._tokenizer = encoding.load_tokenizer(settings.model)
        self._pending: dict[str, tuple[TokenizedRequest, str]] = {}  # with vLLM's internal id
        self._tap = LogprobsTap(llm_engine.engine_core)
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
        self._parameters_by_limit: dict[int, Any] = {}  # of unseeded requests, by max_tokens
        config = llm_engine.model_config
        self._max_length = config.max_model_len
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
        """Answers one token, so that kernels compiled on first use do not count as work."""
        parameters = self._parameters.clone()
        parameters.max_tokens = 1
        self._llm_engine.add_request("warm-up", {"prompt_token_ids": [0]}, parameters)
        while self._llm_engine.has_unfinished_requests():
            self._llm_engine.step()

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields each answer when it is finished; never queues more than twice the batch."""
        try:
            yield from self._answers(iter(requests))
        except (GeneratorExit, ConnectionError):  # nobody waits for the others any more
            under_way = [internal_id for _, internal_id in self._pending.values()]
            self._llm_engine.abort_request(under_way, internal=True)
            self._tap.forget()
            self._pending.clear()
            raise

    def _answers(self, source: Iterator[Request | None]) -> Iterator[Answer]:
        more = True
        bound = 2 * int(self._settings.runtime["max_num_seqs"])
        while more or self._pending:
            room = bound - len(self._pending)
            # Many at a time: rendering and tokenizing chats together takes a fraction of the time.
            if more and room >= bound // 4:
                batch, more = take_requests(source, room)
                yield from self._enqueue(batch)
            if self._pending:
                outputs = self._llm_engine.step()
                self.steps += 1
                for output in outputs:
                    if output.finished:
                        yield self._answer(output)

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one request; no first token if the request is refused."""
        self._tap.first_token_at = None
        return timed_alone(self.generate, request, lambda: self._tap.first_token_at)

    def forget(self) -> None:
        """Drops the cached keys and values of earlier prompts."""
        self._llm_engine.reset_prefix_cache()

    def reload(self, folder: str) -> None:
        """Takes the weights of another model of the same shape, while no request is under way."""
        from vllm.platforms import current_platform

        self._llm_engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if current_platform.is_cpu():
            self._llm_engine.apply_model(_pack_heads)
        if not self._llm_engine.reset_prefix_cache():
            raise StageError("vllm keeps keys and values of the weights before; start it anew")

    def rest(self, keeps_weights: bool) -> bool:
        """Gives back the GPU's memory; the weights are kept in the machine's, or dropped. Returns
        whether it did: a CPU has nothing to give back."""
        from vllm.platforms import current_platform

        if current_platform.is_cuda():
            self._llm_engine.sleep(level=1 if keeps_weights else 2)
        return bool(current_platform.is_cuda())

    def wake(self) -> None:
        """Takes the GPU's memory again; weights that were dropped have to be reloaded."""
        self._llm_engine.wake_up()

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of existing answers: one pass over prompt and answer."""
        self._parameters.prompt_logprobs = self._settings.top_k
        self._parameters.logprobs = None
        self._parameters.max_tokens = 1
        yield from self.generate(requests)

    def _enqueue(self, requests: list[Request]) -> Iterator[Answer]:
        """Queues requests; yields the answers of those that the model cannot take."""
        fitting, answers = tokenize(self._tokenizer, requests, self._max_length)
        yield from answers
        for row in fitting:
            prompt, name = {"prompt_token_ids": row.ids}, row.request.id
            internal_id = self._llm_engine.add_request(name, prompt, self._sampling(row))
            self._pending[name] = row, internal_id
            if self._settings.top_k and not self._settings.scores:
                self._tap.expect(internal_id)

    def _sampling(self, row: TokenizedRequest) -> Any:
        """Returns a request's SamplingParams; vLLM copies them, so equal ones are made once."""
        if self._settings.scores:
            return self._parameters
        request = row.request
        max_tokens = (request.max_tokens or self._settings.max_tokens) - len(row.answer_ids)
        parameters = self._parameters_by_limit.get(max_tokens)
        if parameters is None or request.seed is not None:
            parameters = self._parameters.clone()
            parameters.max_tokens, parameters.seed = max_tokens, request.seed
        if request.seed is None:
            self._parameters_by_limit[max_tokens] = parameters
        return parameters

    def _answer(self, output: Any) -> Answer:
        """Returns the answer in a finished output of vLLM's."""
        row, internal_id = self._pending.pop(output.request_id)
        completion = output.outputs[0]
        signal: Signal | None
        if self._settings.scores:
            ids, reason = row.answer_ids, "stop"
            signal = self._prompt_signal(output.prompt_logprobs, len(row.prompt_ids))
        else:
            ids = [*row.answer_ids, *completion.token_ids]
            reason = completion.finish_reason or "unknown"
            signal = self._tap.take(internal_id, len(completion.token_ids))
        text = self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        text = cut_at(text, self._settings.stop)
        return Answer(output.request_id, local_raw(row.prompt_ids, ids, reason, text), signal)

    def _prompt_signal(self, flat: Any, start: int) -> Signal:
        """Returns the signal in a prompt's FlatLogprobs from a token on. They hold K + 1 entries a
        token: its own, then the K largest; none for the first token of all."""
        width = self._settings.top_k + 1
        first = flat.start_indices[start]
        ids = np.asarray(flat.token_ids[first:], dtype=np.int32).reshape(-1, width)
        logprobs = np.asarray(flat.logprobs[first:], dtype=np.float32).reshape(-1, width)
        return captured(ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])


def _load(settings: Settings) -> Any:
    """Returns vLLM's engine, not its `LLM`, which imports the protocols of its servers."""
    import vllm
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    if current_platform.is_cpu():
        _skip_compiling()
    engine_arguments = vllm.EngineArgs(**arguments(settings))
    gc.freeze()  # what is imported stays
    return vllm.LLMEngine.from_engine_args(engine_arguments, usage_context=UsageContext.LLM_CLASS)


def _pack_heads(model: Any) -> None:
    """Has the output layer compute with the weights that it has now.

    vLLM's kernels for a CPU read a packed copy. `reload_weights` packs what it loads, but not a
    head that is tied to the embeddings, which would go on with those of the model before.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            layer.quant_method.process_weights_after_loading(layer)


def _skip_compiling() -> None:
    """Spares a start on a CPU a compiled kernel and another process.

    The kernel counts the rank of each sampled token, which nothing here reads: 3 CPU seconds of a
    start, 10 on a new machine. The process inspects the model's class without touching a GPU, and
    imports all of vLLM for it: 9 CPU seconds for each new class of models.
    """
    import torch
    from vllm.model_executor.models import registry
    from vllm.v1.sample import sampler

    def no_ranks(logprobs_BV: Any, sampled_B1: Any) -> Any:
        return torch.zeros(len(sampled_B1), dtype=torch.int64)

    def call(function: Callable[[], Any]) -> Any:
        return function()

    sampler.batched_count_greater_than = no_ranks
    registry._run_in_subprocess = call


def arguments(settings: Settings) -> dict[str, Any]:
    """Returns the arguments of vLLM's own EngineArgs."""
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
        # Open bug of vLLM: prompt log-probabilities can be wrong if the prompt's start is cached.
        "enable_prefix_caching": not settings.scores,
        "enforce_eager": on_cpu,
        "enable_sleep_mode": current_platform.is_cuda() and bool(runtime.get("is_resident")),
        # On a CPU a seeded request whose prompt is split crashes ("does not use offset").
        "enable_chunked_prefill": False if on_cpu and settings.temperature > 0 else None,
        "disable_log_stats": True,
    }
