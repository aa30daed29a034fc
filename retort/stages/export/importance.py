"""Which inputs of a layer matter: the mean of their squares, on chats that the student learned.

Rounding a weight costs most where its input is large, so that quantizers weigh each rounding error
by it: llama.cpp's importance matrix; Lin et al., "AWQ" (2023, arXiv:2306.00978).
"""

# T tokens, I inputs of a layer
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from retort.data import encoding
from retort.processes.libraries import resolve_device
from retort.stages.export.formats import Importance
from retort.stages.stage import Stage, read_decisions, read_examples, read_responses

LONGEST = 2048


def measured(stage: Stage, folder: Path) -> Importance:
    """Returns the importance of the student's layers, on training chats and the answers that were
    learned from."""
    device = resolve_device(stage.spec.evaluate.runtime.device)
    return importance_of(folder, _chats(stage, folder), device)


def importance_of(folder: Path, chats: list[list[int]], device: str) -> Importance:
    """Returns the mean squared input of each linear layer of a model, (I,), over chats as ids."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(device).eval()
    sums, counts = dict[str, Tensor](), dict[str, int]()

    def watch(name: str) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            x_TI = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, 0) + x_TI.square().sum(0)
            counts[name] = counts.get(name, 0) + len(x_TI)

        return add

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(watch(name))
    with torch.inference_mode():
        for ids in chats:
            model(torch.tensor([ids[:LONGEST]], device=device), use_cache=False)
    return {
        name: (total / counts[name]).cpu().numpy().astype(np.float32)
        for name, total in sums.items()
    }


def _chats(stage: Stage, folder: Path) -> list[list[int]]:
    """Returns the ids of the first training chats, each with its answer where one was kept."""
    tokenizer: Any = encoding.load_tokenizer(str(folder))
    examples = {e.id: e for e in read_examples(stage.input("prepare"), "train")}
    decisions = read_decisions(stage.input("curate"))
    kept = [
        response
        for response in read_responses(stage.input("generate"))
        if response.example_id in examples and decisions[response.id].kept
    ][: stage.spec.export.num_examples]
    own = [examples[response.example_id] for response in kept]
    chats = [r.messages or e.messages for r, e in zip(kept, own, strict=True)]
    rendered = encoding.render_each(tokenizer, chats, [e.tools for e in own])
    return [
        prompt + encoding.response_ids(tokenizer, response.text)
        for prompt, response in zip(rendered, kept, strict=True)
        if not isinstance(prompt, str)
    ]
