"""The learning rate over a run, as a share of its peak."""

import math

from retort.spec import Train


def share(step: int, num_steps: int, knobs: Train) -> float:
    """Returns linear warm-up, then what `schedule` says: cosine or linear decay to
    `min_learning_rate_ratio`, or the peak to the end. Steps count from 0.

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
