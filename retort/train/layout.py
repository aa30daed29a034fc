"""How many processes train a student, and how: by the spec, or a file of `accelerate config`.

The surprise: accelerate's file is read, but torch's own `fully_shard` does what it says: accelerate
shards on GPUs alone, and a student trains on CPUs, too. Imports nothing heavy: every run asks this.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import SpecError
from retort.spec import Train

OPTION = "train.runtime.accelerate_config"


@dataclass(frozen=True)
class Layout:
    """How many processes there are, and whether the student is cut up among them (FSDP2).

    `reshards` lets a layer's weights go between forward and backward: less memory, more traffic.
    """

    num_processes: int = 1
    shards: bool = False
    reshards: bool = True


def layout_of(knobs: Train) -> Layout:
    """Returns the layout that the spec asks for. Raises `SpecError` for a file that cannot be read,
    or that asks for something else than DDP or FSDP2 on one machine."""
    path = knobs.runtime.accelerate_config
    if path is None:
        return Layout(knobs.runtime.num_processes)
    from accelerate.commands.config.config_args import (  # type: ignore[import-untyped]
        load_config_from_file,
    )

    if not Path(path).is_file():
        raise SpecError(f"{OPTION}: no file {path}; `accelerate config --config_file` writes one")
    try:
        config = load_config_from_file(path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(f"{OPTION}: {path} is no file of `accelerate config`: {error}") from error
    kind, fsdp = str(config.distributed_type).rpartition(".")[2], config.fsdp_config or {}
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI_"):
        raise SpecError(
            f"{OPTION}: {path} asks for {kind}; MULTI_GPU, MULTI_CPU and FSDP are known"
        )
    if int(config.num_machines or 1) > 1:
        raise SpecError(f"{OPTION}: {path} asks for {config.num_machines} machines; set it to 1")
    if kind == "FSDP" and int(fsdp.get("fsdp_version", 1)) != 2:
        raise SpecError(f"{OPTION}: {path} asks for FSDP of the first kind; set fsdp_version: 2")
    if _is_true(fsdp.get("fsdp_offload_params", False)):
        raise SpecError(f"{OPTION}: {path} has weights offloaded; set fsdp_offload_params: false")
    if config.mixed_precision not in (None, "no", _precision(knobs)):
        raise SpecError(
            f"{OPTION}: {path} says mixed_precision: {config.mixed_precision}, but train.dtype is "
            f"{knobs.dtype}; the spec decides, so make them agree"
        )
    num_processes = max(1, int(config.num_processes or 1))
    return Layout(
        num_processes,
        shards=kind == "FSDP" and num_processes > 1,
        reshards=_is_true(fsdp.get("fsdp_reshard_after_forward", True)),
    )


def _precision(knobs: Train) -> str:
    return "bf16" if knobs.dtype == "bfloat16" else "no"


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "full_shard")
