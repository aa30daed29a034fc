"""The search of scales: each group has the best of its candidates, by its own weighted error."""

import numpy as np
import torch

from retort.stages.export.formats._scales import grouped, search

FACTORS = [1.0, 0.9, 0.8, 0.7]


def rounded(weights):
    return weights.round().clamp(-8, 7)


def made_up() -> tuple[torch.Tensor, np.ndarray]:
    chosen = np.random.default_rng(7)
    weight_NC = torch.from_numpy(chosen.standard_t(3, (5, 24)).astype(np.float32))
    return weight_NC, (10 ** chosen.uniform(-3, 1, 24)).astype(np.float32)


def test_each_group_has_the_factor_of_its_least_weighted_error():
    weight_NC, importance_C = made_up()
    groups = grouped(weight_NC, importance_C, 8)
    base_NG = groups[0].abs().amax(2) / 7.5
    scale_NG, error = search(groups, base_NG, FACTORS, rounded)
    total, used = 0.0, set()
    for row in range(5):
        for group in range(3):
            part = slice(8 * group, 8 * group + 8)
            weights, wanted = weight_NC[row, part].numpy(), importance_C[part]
            base = abs(weights).max() / 7.5
            tried = []
            for factor in FACTORS:
                held = np.clip(np.round(weights / (base * factor)), -8, 7) * base * factor
                tried.append(float((wanted * (held - weights) ** 2).sum()))
            best = int(np.argmin(tried))
            total += tried[best]
            used.add(best)
            assert np.isclose(float(scale_NG[row, group]), base * FACTORS[best])
    assert len(used) > 2
    assert np.isclose(error, total / (importance_C * weight_NC.numpy() ** 2).sum(), rtol=1e-4)


def test_scales_are_those_that_their_type_can_hold_and_groups_of_zeros_stay_zeros():
    weight_NC = torch.cat([made_up()[0][:1], torch.zeros(1, 24)])
    groups = grouped(weight_NC, None, 8)
    base_NG = (groups[0].abs().amax(2) / 7.5).clamp(min=1e-30).bfloat16()
    scale_NG, error = search(groups, base_NG, FACTORS, rounded)
    assert scale_NG.dtype == torch.bfloat16
    assert torch.isfinite(scale_NG).all()
    assert 0 < error < 0.05
    assert search(groups, base_NG, [1.0], rounded)[1] >= error
