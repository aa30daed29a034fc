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

from retort.stages.train.distributed import cut_like, whole
from retort.store import Folder

PREFIX, BEST = "scratch/step-", "scratch/best.safetensors"


def write(out: Folder, step: int, model: Any, optimizer: Any, is_first: bool = True) -> None:
    """Writes the state after `step` steps; removes the older checkpoints afterwards.

    All processes must call it, for a cut up tensor takes all; the first one writes.
    """
    tensors = _gathered({f"model.{name}": value for name, value in _parameters(model)}, is_first)
    for name, state in _states(model, optimizer):
        pairs = {f"optimizer.{name}.{key}": torch.as_tensor(v) for key, v in state.items()}
        tensors |= _gathered(pairs, is_first)
    if not is_first:
        return
    mine = f"{PREFIX}{step:09d}.safetensors"
    out.write(mine, save(tensors))
    for name in _standing(out):
        if name != mine:
            out.remove(name)


def resume(out: Folder, model: Any, optimizer: Any) -> int:
    """Loads the newest checkpoint in place; returns how many steps it stands after, 0 for none."""
    standing = _standing(out)
    if not standing:
        return 0
    tensors = load(out.read(standing[-1]))
    put(model, {key.removeprefix("model."): t for key, t in tensors.items() if key[0] == "m"})
    for name, parameter in _parameters(model):
        start = f"optimizer.{name}."
        state: dict[str, Tensor] = {
            key.removeprefix(start): cut_like(value, parameter)
            for key, value in tensors.items()
            if key.startswith(start) and "." not in key.removeprefix(start)
        }
        if state:
            optimizer.state[parameter] = state
    return int(standing[-1].removeprefix(PREFIX).removesuffix(".safetensors"))


def write_best(out: Folder, model: Any, is_first: bool = True) -> None:
    """Writes the weights alone, of the best pass so far. All processes must call it."""
    weights = trained(model, is_first)
    if is_first:
        out.write(BEST, save(weights))


def load_best(out: Folder, model: Any) -> None:
    """Loads the weights of the best pass in place."""
    put(model, load(out.read(BEST)))


def trained(model: Any, is_first: bool = True) -> dict[str, Tensor]:
    """Returns the weights that train, whole and on the CPU; nothing but for the first process.

    All processes must call it.
    """
    return _gathered(dict(_parameters(model)), is_first)


@torch.no_grad()  # type: ignore[untyped-decorator]
def put(model: Any, tensors: dict[str, Tensor]) -> None:
    """Loads the weights that train in place, each as it lies among the processes."""
    for name, parameter in _parameters(model):
        parameter.copy_(cut_like(tensors[name], parameter))


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


def _gathered(tensors: dict[str, Tensor], is_first: bool) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if is_first:
            found[name] = full.cpu().contiguous()
    return found


def _parameters(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _states(model: Any, optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(name, optimizer.state[p]) for name, p in _parameters(model) if p in optimizer.state]
