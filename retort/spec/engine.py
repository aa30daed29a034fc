"""The knobs of an engine that change its speed, never its answers."""

from typing import Literal

from pydantic import field_validator

from retort.records import State
from retort.spec.section import Section, knob

MAX_REPLICAS = 1024


class EngineRuntime(Section):
    """Where and how fast an engine runs. These knobs never change an answer."""

    device: Literal["auto", "cpu", "cuda"] = knob(
        "auto", "name", "Where engine transformers runs the model; vllm runs where it is built for."
    )
    max_num_seqs: int = knob(128, "sequences", "Sequences decoded together.", ge=1)
    tensor_parallel_size: int = knob(
        1, "devices", "Devices that share each layer; for several machines, those of one.", ge=1
    )
    pipeline_parallel_size: int = knob(
        1, "stages", "Groups of devices, each with its part of the layers; one a machine.", ge=1
    )
    gpu_memory_utilization: float = knob(
        0.9, "ratio of memory", "Share of the GPU's memory the engine may take.", gt=0, le=1
    )
    num_threads: int | None = knob(
        None, "threads", "CPU threads; the engine's own choice if not given.", ge=1
    )
    kv_cache_gib: int = knob(1, "GiB", "Memory for attention keys and values on a CPU.", ge=1)
    distributed_executor: Literal["auto", "mp"] = knob(
        "auto", "name", "How vllm spreads over the devices of one machine."
    )
    max_concurrency: int = knob(
        64, "requests", "Most requests at a time to an endpoint; fewer where it limits them.", ge=1
    )
    request_timeout_seconds: float = knob(
        600.0, "seconds", "A request to an endpoint is given up after this time.", gt=0
    )
    max_attempts: int = knob(
        6, "attempts", "Attempts of a request that fails for a transient reason.", ge=1
    )
    batch: bool = knob(
        False, "yes or no", "Use the provider's batch interface: half the price, up to a day."
    )
    batch_poll_seconds: float = knob(60.0, "seconds", "Time between looks at a batch.", gt=0)
    replicas: int | tuple[int, int] = knob(
        1,
        "replicas",
        "Engines on the Ray cluster that answer together; or the least and the most of them, and "
        "validate warns where the least do not fit.",
    )
    timeout_seconds: float = knob(
        86_400.0, "seconds", "The stage is ended and fails after this time.", gt=0
    )

    @field_validator("replicas")
    @classmethod
    def _least_and_most(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = value if isinstance(value, tuple) else (value, value)
        if not 1 <= least <= most <= MAX_REPLICAS:
            raise ValueError(
                f"give a number from 1 to {MAX_REPLICAS}, or [least, most] of such numbers"
            )
        return value

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most replicas."""
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas,) * 2


class GenerateRuntime(EngineRuntime):
    """The knobs of every engine, and those of a long capture."""

    stall_seconds: float = knob(
        900.0, "seconds", "A local engine without progress for this time is restarted.", gt=0
    )
    max_restarts: int = knob(
        3, "restarts", "Restarts of a dead engine, each with half of max_num_seqs.", ge=0
    )
    parity_samples: int = knob(
        4, "responses", "Responses whose signal a plain forward pass must confirm; 0: none.", ge=0
    )
    retry: tuple[State, ...] = knob(
        (),
        "states",
        "Rows in these states are sent to the teacher again although they were answered.",
    )
