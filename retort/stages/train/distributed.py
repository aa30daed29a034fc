"""The processes that train one student together, each on its part of every step.

torchrun starts them (`retort.processes`). The student is replicated in each (DDP) or sharded among
them (FSDP2), as layout.py says. Note: what gathers or divides a sharded tensor (`whole`,
checkpoint.py) must be called by all processes.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from retort.errors import StageError
from retort.processes.libraries import resolve_device
from retort.spec import Train
from retort.stages.train.layout import Layout, layout_of
from retort.stages.train.objective import Objective


@dataclass(frozen=True)
class Ranks:
    """This process among the others: `rank` of `size`, its device, and the layout."""

    rank: int
    size: int
    device: str
    layout: Layout

    def __str__(self) -> str:
        how = "sharded by FSDP2" if self.layout.shards else "replicated by DDP"
        nodes = f" on {self.layout.num_nodes} machines" if self.layout.num_nodes > 1 else ""
        several = f", {self.size} processes{nodes}, the student {how}"
        return self.device.partition(":")[0] + (several if self.size > 1 else "")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over all processes, on the CPU in float64."""
        total = values.detach().to(self.device, torch.float64)
        if self.size > 1:
            distributed.all_reduce(total)
        return total.cpu()

    def agree(self, first: bool, anyone: bool) -> tuple[bool, bool]:
        """Returns `first` of the first process, and whether `anyone` is true in any process."""
        if self.size == 1:
            return first, anyone
        flags = torch.tensor([first and self.is_first, anyone], device=self.device).int()
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        of_first, of_any = flags.bool().tolist()
        return of_first, of_any

    def meet(self, step: int) -> None:
        """Waits until all processes are here, after the same step.

        Raises `StageError` where one of them has read another checkpoint.
        """
        if self.size > 1 and self.sum(torch.tensor(float(step))).item() != step * self.size:
            raise StageError(
                "the processes have read different checkpoints; give all machines that train the "
                "same --store, one that shows at once what another machine wrote"
            )

    def wrap(self, objective: Objective) -> nn.Module:
        """Returns the module to call: the objective, or DDP or FSDP2 around it.

        FSDP2 shards in place: each layer by itself (the classes that the model names in
        `_no_split_modules`), and the rest with the objective.
        """
        if self.layout.shards:
            return self._sharded(objective)
        if self.size == 1:
            return objective
        # An expert that no token was routed to has no gradient.
        has_experts = any("expert" in name for name, _ in objective.named_modules())
        index = torch.device(self.device).index
        devices = None if index is None else [index]
        return nn.parallel.DistributedDataParallel(
            objective, device_ids=devices, find_unused_parameters=has_experts
        )

    def _sharded(self, objective: Objective) -> nn.Module:
        mesh = init_device_mesh(torch.device(self.device).type, (self.size,))
        names = set(objective.model._no_split_modules or [])
        for module in list(objective.model.modules()):
            if type(module).__name__ in names:
                fully_shard(module, mesh=mesh, reshard_after_forward=self.layout.reshards)
        fully_shard(objective, mesh=mesh)
        return objective


def join(knobs: Train) -> Ranks:
    """Returns this process's rank, after joining the others where there are any.

    The process group is never destroyed, because `destroy_process_group` can deadlock with a thread
    that waits for it; the process ends right after the stage (`retort.processes`).
    """
    layout, device = layout_of(knobs), resolve_device(knobs.runtime.device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(0, 1, device, layout)
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(distributed.get_rank(), size, device, layout)


@contextlib.contextmanager
def accumulating(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Lets the ranks exchange gradients only after the last micro-batch of a step."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not is_last:
        with module.no_sync():
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(is_last)
    yield


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be sharded among the ranks in one piece; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
