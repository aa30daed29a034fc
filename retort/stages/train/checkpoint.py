"""Checkpoints: weights and optimizer state as one safetensors file, so that a killed run resumes.

There is no pickle, and no random state to save: each step seeds its own. torch's own functions
gather the state, whole and on the CPU, wherever it is sharded; all processes must call them.
"""

from typing import Any

from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from retort.stages.train.curve import NAME, PAUSED
from retort.store import Folder

PREFIX, BEST = "scratch/step-", "scratch/best.safetensors"
# Not strict: a file holds what trains alone, and a tied weight once.
OPTIONS = StateDictOptions(
    full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False
)


def write(out: Folder, step: int, model: Any, optimizer: Any, is_first: bool = True) -> None:
    """Writes the state after `step` steps, then removes the older checkpoints.

    All processes must call it; the first one writes.
    """
    data = packed(model, optimizer)
    if not is_first:
        return
    newest = f"{PREFIX}{step:09d}.safetensors"
    out.write(newest, data)
    for name in _checkpoints(out):
        if name != newest:
            out.remove(name)


def packed(model: Any, optimizer: Any) -> bytes:
    """Returns the state as a safetensors file; in the first process alone it is whole.

    All processes must call it.
    """
    tensors = {f"model.{name}": weight for name, weight in trained(model).items()}
    states = get_optimizer_state_dict(model, optimizer, options=OPTIONS).get("state", {})
    for name, state in states.items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    return bytes(save(tensors))


def resume(out: Folder, model: Any, optimizer: Any) -> int:
    """Loads the newest checkpoint in place; returns the step it was written after, 0 for none."""
    checkpoints = _checkpoints(out)
    if not checkpoints:
        return 0
    restore(out.read(checkpoints[-1]), model, optimizer)
    return int(checkpoints[-1].removeprefix(PREFIX).removesuffix(".safetensors"))


def pause(out: Folder, step: int, model: Any, optimizer: Any, is_first: bool = True) -> None:
    """Keeps the state after `step` steps, the curve so far and the best pass in the artifact, as a
    run that was killed here would leave them. All processes must call it; the first one writes."""
    data = packed(model, optimizer)
    if not is_first:
        return
    out.write(f"{PAUSED}{PREFIX}{step:09d}.safetensors", data)
    for name in (NAME, BEST):
        if out.has(name):
            out.write(f"{PAUSED}{name}", out.read(name))


def restore(data: bytes, model: Any, optimizer: Any) -> None:
    """Loads a packed state in place."""
    tensors = load(data)
    put(model, {key.removeprefix("model."): t for key, t in tensors.items() if key[0] == "m"})
    # torch gathers a whole state in the first process alone, so each makes its own from the file.
    state: dict[str, dict[str, Tensor]] = {}
    for key in (key for key in tensors if key.startswith("optimizer.")):
        name, _, part = key.removeprefix("optimizer.").rpartition(".")
        state.setdefault(name, {})[part] = tensors[key]
    names = {weight: name for name, weight in model.named_parameters()}
    groups = [
        {**group, "params": [names[weight] for weight in group["params"]]}
        for group in optimizer.param_groups
    ]
    whole: dict[str, Any] = {"state": state, "param_groups": groups}
    set_optimizer_state_dict(model, optimizer, whole, options=OPTIONS)


def write_best(out: Folder, model: Any, is_first: bool = True) -> None:
    """Writes the weights alone, of the best pass so far. All processes must call it."""
    weights = trained(model)
    if is_first:
        out.write(BEST, save(weights))


def load_best(out: Folder, model: Any) -> None:
    """Loads the weights of the best pass in place."""
    put(model, load(out.read(BEST)))


def trained(model: Any) -> dict[str, Tensor]:
    """Returns the weights that train, whole and on the CPU; in the first process alone.

    All processes must call it.
    """
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    weights = get_model_state_dict(model, options=OPTIONS)
    return {name: weight.contiguous() for name, weight in weights.items() if name in names}


def put(model: Any, weights: dict[str, Tensor]) -> None:
    """Loads whole weights in place, each as it is sharded. All processes must call it."""
    set_model_state_dict(model, weights, options=OPTIONS)


def _checkpoints(out: Folder) -> list[str]:
    return [name for name in out.files() if name.startswith(PREFIX)]
