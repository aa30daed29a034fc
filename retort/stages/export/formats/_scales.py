"""Scales of quantized weights: a search that weighs the error of a channel by its importance."""

# N output channels, C input channels, G groups of them, S channels of a group
from collections.abc import Callable
from typing import Any


def grouped(weight_NC: Any, importance: Any, size: int) -> tuple[Any, Any]:
    """Returns a layer's weights [N, G, S] in float32, and the importance of their channels [G, S],
    which is 1 where it was not measured."""
    import torch

    importance_C = torch.ones(weight_NC.shape[1])
    if importance is not None:
        importance_C = torch.from_numpy(importance).float()
    return weight_NC.float().unflatten(1, (-1, size)), importance_C.unflatten(0, (-1, size))


def search(
    groups: tuple[Any, Any], base_NG: Any, factors: list[float], rounded: Callable[[Any], Any]
) -> tuple[Any, float]:
    """Returns each group's scale [N, G], the best of its base's multiples, and the relative error.

    The error is the mean squared one of the layer's outputs, were its inputs independent. `rounded`
    maps weights in units of their scale to what the format can hold. Scales have the base's dtype.
    """
    import torch

    weight_NGS, importance_GS = groups
    least_NG, best_NG = torch.full_like(base_NG, torch.inf, dtype=torch.float32), base_NG
    for factor in factors:
        scale_NG = base_NG * factor
        scale_NG1 = scale_NG.float()[..., None]
        difference_NGS = rounded(weight_NGS / scale_NG1) * scale_NG1 - weight_NGS
        error_NG = (importance_GS * difference_NGS.square()).sum(2)
        best_NG = torch.where(error_NG < least_NG, scale_NG, best_NG)
        least_NG = torch.minimum(least_NG, error_NG)
    whole = (importance_GS * weight_NGS.square()).sum()
    return best_NG, float(least_NG.sum() / whole.clamp(min=1e-30))
