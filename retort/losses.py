"""Losses: pure functions from student logits to a sum over tokens, in nats and in fp32.

The caller divides once, by the valid tokens of the whole optimizer step; so splitting a batch
never changes the loss. Rows handed in are supervised tokens only: masking happened before.
"""

# N supervised tokens of a batch, V student vocabulary, K teacher top-k
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What the teacher gave for each supervised token; the signal is at temperature 1."""

    labels_N: Tensor
    ids_NK: Tensor | None = None
    logprobs_NK: Tensor | None = None
    tail_N: Tensor | None = None


def cross_entropy(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns the sum over tokens of -log p_student(label), nats. `temperature` is not used.

    Equation: L = - sum_t log p(y_t | y_<t, x).
    """
    return torch.nn.functional.cross_entropy(logits_NV.float(), target.labels_N, reduction="sum")


def forward_kl(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the sum over tokens of KL(teacher || student), nats, over K + 1 buckets.

    Equation: KL = sum_k q_k (log q_k - log p_k) + q_tail (log q_tail - log p_tail), where the
    bucket `tail` holds all mass outside the teacher's top k on both sides, so that the student
    may not put mass there for free (Hinton et al. 2015 for the temperature and its square).
    At T = 1 this is the exact divergence of the bucketed distributions, zero exactly when they
    agree. At T != 1 both tails are tempered as if they were one token, for the teacher's single
    tail probabilities were not stored: an approximation that fades as the top k's mass nears 1.
    """
    teacher_NB = _tempered(_bucketed(target), temperature)
    student_NB = _tempered(_student_buckets(logits_NV, target), temperature)
    terms_NB = teacher_NB.exp() * (teacher_NB - student_NB)
    return terms_NB.sum() * temperature**2


def _bucketed(target: Target) -> Tensor:
    """Returns the teacher's log-probabilities over its top k and the tail, (N, K + 1), fp32."""
    assert target.logprobs_NK is not None and target.tail_N is not None
    joined = torch.cat([target.logprobs_NK.float(), target.tail_N.float()[:, None]], dim=1)
    return torch.log_softmax(joined, dim=1)


def _student_buckets(logits_NV: Tensor, target: Target) -> Tensor:
    """Returns the student's log-probabilities of the teacher's top-k ids and of the rest, fp32.

    The tail is summed over the other logits themselves, never as 1 - sum: that would lose it to
    rounding, and its gradient with it. (N, K + 1)
    """
    assert target.ids_NK is not None
    logits_NV = logits_NV.float()
    top_NK = logits_NV.gather(1, target.ids_NK)
    others_NV = logits_NV.scatter(1, target.ids_NK, torch.finfo(torch.float32).min)
    joined = torch.cat([top_NK, others_NV.logsumexp(dim=1, keepdim=True)], dim=1)
    return torch.log_softmax(joined, dim=1)


def _tempered(logprobs_NB: Tensor, temperature: float) -> Tensor:
    """Returns log-probabilities at a temperature, renormalised over the buckets."""
    if temperature == 1.0:
        return logprobs_NB
    return torch.log_softmax(logprobs_NB / temperature, dim=1)
