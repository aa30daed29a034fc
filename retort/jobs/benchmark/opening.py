"""How a model becomes one that the harness can ask: transformers', vLLM's, or one at an endpoint.

The surprise: vLLM's environment is that of `retort.engines.vllm`, so that both load a model alike.
"""

import importlib.metadata
import os
from typing import Any

VLLM_ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# Prompts at once: each brings the logits of all its tokens, gigabytes for a long one. On a GPU the
# harness tries how many there is room for.
BATCH: dict[str, int | str] = {"cpu": 4, "cuda": "auto"}
Facts = dict[str, Any]


def open_model(model: Facts, generates: bool) -> Any:
    """Returns the model as the harness's class for its kind."""
    if model["kind"] == "endpoint":
        from retort.engines import Settings
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

    device = model["runtime"]["device"]
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFLM(**shared, device=device, batch_size=BATCH[device])


def _vllm(shared: Facts, runtime: dict[str, Any], generates: bool) -> Any:
    """Returns the harness's vLLM model.

    It looks for a distribution named vllm, which a CPU build is not: its version is told as vLLM
    itself reads it.
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
