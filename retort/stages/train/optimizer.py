"""The optimizer, and its learning rate over a run."""

import math
from typing import Any

import torch

from retort.spec import Train


def optimizer_of(model: Any, knobs: Train) -> torch.optim.Optimizer:
    """Returns AdamW over what trains; norms and biases do not decay.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": knobs.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=knobs.learning_rate,
        betas=(0.9, knobs.adam_beta2),
        fused=True,
    )


def lr_factor(step: int, num_steps: int, knobs: Train) -> float:
    """Returns the factor on the peak learning rate at a step, counted from 0: linear warm-up, then
    cosine or linear decay to `min_learning_rate_ratio`, or the peak to the end.

    Cosine: Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts.
    """
    warmup = max(1, round(knobs.warmup_ratio * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    if knobs.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, num_steps - warmup)
    left = 1 - done if knobs.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    floor = knobs.min_learning_rate_ratio
    return floor + (1 - floor) * left
