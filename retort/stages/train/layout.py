"""How many processes train a student, and how: from the spec, or a file of `accelerate config`.

Note: accelerate's file is read, but torch's own `fully_shard` carries it out, because accelerate
shards on GPUs alone. This file imports nothing heavy, because every run reads it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import SpecError
from retort.spec import Train

OPTION = "train.runtime.accelerate_config"


@dataclass(frozen=True)
class Layout:
    """How many processes there are in all, whether the student is sharded among them (FSDP2), and
    over how many machines they are spread, equally many on each.

    `reshards` frees a layer's gathered weights between forward and backward: less memory, more
    traffic.
    """

    num_processes: int = 1
    shards: bool = False
    reshards: bool = True
    num_nodes: int = 1

    @property
    def num_processes_here(self) -> int:
        """How many of the processes run on one machine."""
        return self.num_processes // self.num_nodes


def layout_of(knobs: Train) -> Layout:
    """Returns the layout that the spec asks for. Raises `SpecError` for a file that cannot be read,
    or that asks for something other than DDP or FSDP2."""
    path, num_nodes = knobs.runtime.accelerate_config, knobs.runtime.num_nodes
    if path is None:
        return Layout(knobs.runtime.num_processes * num_nodes, num_nodes=num_nodes)
    config = _read(path)
    fsdp, shards = config.fsdp_config or {}, _shards(path, config)
    if config.mixed_precision not in (None, "no", _precision(knobs)):
        raise SpecError(
            f"{OPTION}: {path} says mixed_precision: {config.mixed_precision}, but train.dtype is "
            f"{knobs.dtype}, which is what counts; make them agree"
        )
    num_processes, num_machines = (
        max(1, int(number or 1)) for number in (config.num_processes, config.num_machines)
    )
    if num_nodes not in (1, num_machines):
        raise SpecError(
            f"{OPTION}: {path} says num_machines: {num_machines}, but train.runtime.num_nodes is "
            f"{num_nodes}; make them agree, or leave num_nodes out"
        )
    if num_processes % num_machines:
        raise SpecError(
            f"{OPTION}: {path} has {num_processes} processes on {num_machines} machines; its "
            "num_processes counts those of all machines, and each gets equally many"
        )
    return Layout(
        num_processes,
        shards=shards and num_processes > 1,
        reshards=_is_true(fsdp.get("fsdp_reshard_after_forward", True)),
        num_nodes=num_machines,
    )


def _read(path: str) -> Any:
    """Returns accelerate's object of a file of `accelerate config`."""
    from accelerate.commands.config.config_args import (  # type: ignore[import-untyped]
        load_config_from_file,
    )

    if not Path(path).is_file():
        raise SpecError(f"{OPTION}: no file {path}; `accelerate config --config_file` writes one")
    try:
        return load_config_from_file(path)
    except Exception as error:  # accelerate and YAML raise errors of many kinds
        raise SpecError(f"{OPTION}: {path} is no file of `accelerate config`: {error}") from error


def _shards(path: str, config: Any) -> bool:
    """Whether a file asks for FSDP2; raises `SpecError` for what is neither FSDP2 nor DDP."""
    kind, fsdp = str(config.distributed_type).rpartition(".")[2], config.fsdp_config or {}
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI_"):
        raise SpecError(
            f"{OPTION}: {path} asks for {kind}; MULTI_GPU, MULTI_CPU and FSDP are known"
        )
    if kind == "FSDP" and str(fsdp.get("fsdp_version", 1)) != "2":
        raise SpecError(f"{OPTION}: {path} asks for FSDP's first version; set fsdp_version: 2")
    if _is_true(fsdp.get("fsdp_offload_params", False)):
        raise SpecError(f"{OPTION}: {path} offloads weights; set fsdp_offload_params: false")
    return kind == "FSDP"


def _precision(knobs: Train) -> str:
    return "bf16" if knobs.dtype == "bfloat16" else "no"


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "full_shard")
