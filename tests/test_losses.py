"""Losses against a slow float64 reference, and the traps of distillation."""

import math

import pytest
import torch
from torch import Tensor

from retort.losses import Target, cross_entropy, forward_kl

N, V, K = 8, 40, 6


def case(seed: int = 0, scale: float = 2.0, k: int = K) -> tuple[Tensor, Target, Tensor]:
    """Student logits, the stored target, and the teacher's whole distribution (float64)."""
    random = torch.Generator().manual_seed(seed)
    teacher = torch.log_softmax(scale * torch.randn(N, V, generator=random).double(), dim=1)
    logprobs, ids = teacher.topk(k, dim=1)
    tail = torch.log1p(-logprobs.exp().sum(1))
    labels = torch.randint(0, V, (N,), generator=random)
    target = Target(labels, ids, logprobs.float(), tail.float())
    return scale * torch.randn(N, V, generator=random), target, teacher


def slow_kl(logits: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """The same divergence, token by token and bucket by bucket, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(logits)):
        p = torch.softmax(logits[n].double(), dim=0)
        top = [p[i] for i in target.ids_NK[n]]
        student = torch.stack([*top, 1 - sum(top)])
        teacher = torch.cat([target.logprobs_NK[n], target.tail_N[n : n + 1]]).double().exp()
        student, teacher = (x ** (1 / temperature) for x in (student, teacher))
        student, teacher = student / student.sum(), teacher / teacher.sum()
        total = total + (teacher * (teacher.log() - student.log())).sum()
    return total * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_agree_with_float64(seed, temperature):
    logits, target, _ = case(seed)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value, reference = forward_kl(ours, target, temperature), slow_kl(exact, target, temperature)
    value.backward()
    reference.backward()
    assert value.item() == pytest.approx(reference.item(), rel=1e-5)
    error = (ours.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-5


def test_cross_entropy_is_the_sum_of_negative_log_probabilities():
    logits, target, _ = case()
    logprobs = torch.log_softmax(logits.double(), dim=1)
    expected = -sum(logprobs[n, target.labels_N[n]].item() for n in range(N))
    assert cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_perfect_student_pays_nothing_and_is_not_moved(temperature):
    _, target, teacher = case()
    logits = (teacher.float() + 5.0).requires_grad_()
    value = forward_kl(logits, target, temperature)
    value.backward()
    assert abs(value.item()) < 1e-4
    assert logits.grad.abs().max() < 1e-4


def test_it_is_never_negative():
    for seed in range(50):
        logits, target, _ = case(seed, scale=4.0)
        assert forward_kl(logits, target).item() >= 0


def test_a_batch_is_the_sum_of_its_tokens():
    logits, target, _ = case()
    alone = [
        forward_kl(
            logits[n : n + 1],
            Target(
                target.labels_N[n : n + 1],
                target.ids_NK[n : n + 1],
                target.logprobs_NK[n : n + 1],
                target.tail_N[n : n + 1],
            ),
        ).item()
        for n in range(N)
    ]
    assert forward_kl(logits, target).item() == pytest.approx(sum(alone), rel=1e-5)


def test_mass_in_the_tail_is_not_free():
    logits, target, _ = case()
    outside = next(v for v in range(V) if v not in target.ids_NK[0].tolist())
    raised = logits.clone()
    raised[0, outside] += 10
    raised.requires_grad_()
    value = forward_kl(raised, target)
    value.backward()
    assert value > forward_kl(logits, target)
    assert raised.grad[0, outside] > 1e-3


def test_the_gradient_keeps_its_size_in_the_temperature():
    logits, target, _ = case(scale=0.5, k=V - 1)
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        leaf = logits.clone().requires_grad_()
        forward_kl(leaf, target, temperature).backward()
        norms.append(leaf.grad.norm().item())
    assert max(norms) < 2.5 * min(norms)


def test_extreme_logits_and_a_certain_teacher_give_finite_numbers():
    logits, target, _ = case()
    certain = Target(
        target.labels_N,
        target.ids_NK,
        torch.tensor([0.0] + [-60.0] * (K - 1)).expand(N, K),
        torch.full((N,), math.log(1e-12)),
    )
    for scale in (1e4, -1e4):
        leaf = (logits * scale).requires_grad_()
        value = forward_kl(leaf, certain) + cross_entropy(leaf, certain)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(leaf.grad).all()


def test_no_token_at_all_is_a_zero_that_can_be_differentiated():
    logits, target, _ = case()
    none = Target(target.labels_N[:0], target.ids_NK[:0], target.logprobs_NK[:0], target.tail_N[:0])
    leaf = logits[:0].clone().requires_grad_()
    value = forward_kl(leaf, none) + cross_entropy(leaf, none)
    value.backward()
    assert value.item() == 0


def test_bf16_logits_are_computed_in_fp32():
    logits, target, _ = case()
    half = logits.bfloat16()
    assert forward_kl(half, target).dtype == torch.float32
    assert forward_kl(half, target).item() == pytest.approx(
        slow_kl(half.float(), target).item(), rel=1e-4
    )
