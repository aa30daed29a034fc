"""Checkpoints: weights and optimizer state as one safetensors file, so a killed run resumes.

No pickle; the random state needs no saving, for each step seeds its own.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from retort.storage import Folder

PREFIX, BEST = "scratch/step-", "scratch/best.safetensors"


def write(out: Folder, step: int, model: Any, optimizer: Any) -> None:
    """Writes the state after `step` steps; removes the older checkpoints afterwards."""
    tensors = {f"model.{name}": value.contiguous() for name, value in _parameters(model)}
    for name, state in _states(model, optimizer):
        tensors |= {f"optimizer.{name}.{key}": torch.as_tensor(v) for key, v in state.items()}
    data = save({key: value.detach().cpu() for key, value in tensors.items()})
    mine = f"{PREFIX}{step:09d}.safetensors"
    out.write(mine, data)
    for name in _standing(out):
        if name != mine:
            out.remove(name)


def resume(out: Folder, model: Any, optimizer: Any) -> int:
    """Loads the newest checkpoint in place; returns how many steps it stands after, 0 for none."""
    standing = _standing(out)
    if not standing:
        return 0
    tensors = load(out.read(standing[-1]))
    with torch.no_grad():
        for name, parameter in _parameters(model):
            parameter.copy_(tensors[f"model.{name}"])
    for name, parameter in _parameters(model):
        state: dict[str, Tensor] = {
            key.rsplit(".", 1)[1]: value.to(parameter.device)
            for key, value in tensors.items()
            if key.startswith(f"optimizer.{name}.")
            and key.removeprefix(f"optimizer.{name}.").count(".") == 0
        }
        if state:
            optimizer.state[parameter] = state
    return int(standing[-1].removeprefix(PREFIX).removesuffix(".safetensors"))


def write_best(out: Folder, model: Any) -> None:
    """Writes the weights alone, of the best pass so far."""
    out.write(BEST, save({name: p.detach().cpu().contiguous() for name, p in _parameters(model)}))


def load_best(out: Folder, model: Any) -> None:
    """Loads the weights of the best pass in place."""
    tensors = load(out.read(BEST))
    with torch.no_grad():
        for name, parameter in _parameters(model):
            parameter.copy_(tensors[name])


@contextlib.contextmanager
def interrupts_held() -> Iterator[list[int]]:
    """Gives a list in which an interrupt (SIGTERM, Ctrl-C) is noted, for the step under way must
    be whole before its state is saved. Outside the main thread signals are not ours to hold."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda found, _: noted.append(found)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _standing(out: Folder) -> list[str]:
    return [name for name in out.files() if name.startswith(PREFIX)]


def _parameters(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _states(model: Any, optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(name, optimizer.state[p]) for name, p in _parameters(model) if p in optimizer.state]
