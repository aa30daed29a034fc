"""Checkpoints: weights and optimizer state as one safetensors file, so a killed run resumes.

No pickle; the random state needs no saving, for each step seeds its own.
"""

import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from retort.storage import Folder

PREFIX = "scratch/step-"


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


def append_history(out: Folder, records: list[dict[str, float]]) -> None:
    """Writes the training curve so far."""
    out.write("history.json", json.dumps(records).encode())


def _standing(out: Folder) -> list[str]:
    return [name for name in out.files() if name.startswith(PREFIX)]


def _parameters(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _states(model: Any, optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(name, optimizer.state[p]) for name, p in _parameters(model) if p in optimizer.state]
