"""The processes that train one student together: each on its part of every step, as torch does it.

torchrun starts them (`retort.processes`). The student is copied to each (DDP), or cut up among them
(FSDP2), as layout.py says. The surprise: no tensor of a model that is cut up is whole; `whole` and
`cut_like` are the only ways in and out, and all processes must take them together.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from retort.errors import StageError
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
        how = "cut up by FSDP2" if self.layout.shards else "copied by DDP"
        nodes = f" on {self.layout.num_nodes} machines" if self.layout.num_nodes > 1 else ""
        many = f", {self.size} processes{nodes}, the student {how}"
        return self.device.partition(":")[0] + (many if self.size > 1 else "")

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over all processes, on the CPU in float64."""
        found = values.detach().to(self.device, torch.float64)
        if self.size > 1:
            distributed.all_reduce(found)
        return found.cpu()

    def agree(self, first: bool, anyone: bool) -> tuple[bool, bool]:
        """Returns what the first process says, and whether any process says the other."""
        if self.size == 1:
            return first, anyone
        flags = torch.tensor([first and self.is_first, anyone], device=self.device).int()
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        found = flags.bool().tolist()
        return found[0], found[1]

    def meet(self, step: int) -> None:
        """Returns once all processes are here, after the same step.

        Raises `StageError` where one has read another checkpoint than the others.
        """
        if self.size > 1 and self.sum(torch.tensor(float(step))).item() != step * self.size:
            raise StageError(
                "the processes have read different checkpoints; the store must be the same, and "
                "show what was just written, on all machines that train"
            )

    def wrap(self, objective: Objective) -> nn.Module:
        """Returns what is called in the objective's place: itself, or what keeps the ranks equal.

        FSDP2 cuts up each layer by itself (the class that the model names in `_no_split_modules`)
        and the rest with the objective, in place.
        """
        if self.layout.shards:
            return self._sharded(objective)
        if self.size == 1:
            return objective
        # A mixture of experts leaves those without a gradient that no token chose.
        chooses = any("expert" in name for name, _ in objective.named_modules())
        index = torch.device(self.device).index
        devices = None if index is None else [index]
        return nn.parallel.DistributedDataParallel(
            objective, device_ids=devices, find_unused_parameters=chooses
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
    """Returns this process's place, and has it meet the others where there are any.

    They are never parted: the process ends at once (`retort.processes`), and
    `destroy_process_group` can wait for a thread that waits for it.
    """
    layout = layout_of(knobs)
    wanted: str = knobs.runtime.device
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if size == 1:
        return Ranks(0, 1, wanted, layout)
    if wanted == "cuda":
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(wanted)
    distributed.init_process_group("nccl" if wanted.startswith("cuda") else "gloo")
    return Ranks(distributed.get_rank(), size, wanted, layout)


@contextlib.contextmanager
def accumulating(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Has the ranks exchange gradients after the last micro-batch of a step alone."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not is_last:
        with module.no_sync():
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(is_last)
    yield


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be cut up among the ranks in one piece; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(value: Tensor, tensor: Tensor) -> Tensor:
    """Returns a whole tensor as `tensor` lies: on its device, and cut up where it is."""
    if isinstance(tensor, DTensor) and value.ndim:
        mesh = tensor.device_mesh
        moved = value.to(mesh.device_type)
        return distribute_tensor(moved, mesh, tensor.placements, src_data_rank=None)
    return value.to(tensor.device)
