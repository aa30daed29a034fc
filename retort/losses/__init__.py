"""Losses: pure functions from student logits to a sum over tokens, in nats and in fp32.

Those of features.py compare hidden states and attention, and have no unit.

The caller divides once, by the valid tokens of the whole optimizer step; so splitting a batch
never changes the loss. Rows handed in are supervised tokens only: masking happened before.

All take a dense teacher, whose V ids are the buckets, or a stored signal: its K ids and one bucket
for all others, on both sides, so that a student pays for mass that it puts there. Over those K + 1
buckets every loss is exact at T = 1, and an f-divergence (all but adaptive_kl) is never above the
dense one, by the data processing inequality. At T != 1 a dense teacher is exact; of a stored one
the tail's single probabilities are unknown, and both tails are tempered as if they were one token:
an approximation whose error goes to 0 as the top k's mass nears 1, and which is still zero for a
perfect student.

Where the teacher has another tokenizer, its ids are events, sets of the student's ids
(`retort.stages.train.translation`), and the tail is all other ids: the losses run on those buckets
as on the others. A token of which nothing is known has one bucket alone, and counts nothing.

Every function of this file whose name has no leading underscore can be named in a spec, and so can
those of features.py.
"""

# N supervised tokens of a batch, V student vocabulary, K teacher top-k, M tokens with a label
# B buckets: V, or K and the tail. p is the teacher, q the student, both at temperature T
import torch
from torch import Tensor

from retort.losses.distributions import (
    Chunks,
    Ranges,
    Target,
    exact,
    head_share,
    kl,
    label_pair,
    mixture,
    pair,
)
from retort.losses.features import attention_relations, hidden_states

__all__ = [
    "Chunks",
    "Ranges",
    "Target",
    "adaptive_kl",
    "attention_relations",
    "chunk_likelihood",
    "cross_entropy",
    "forward_kl",
    "hidden_states",
    "jsd",
    "label_distribution",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
]


def cross_entropy(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns the sum over tokens of -log q(label), nats. `temperature` is not used.

    Equation: L = - sum_t log q(y_t | y_<t, x). It is not zero for a perfect student.
    """
    return torch.nn.functional.cross_entropy(exact(logits_NV), target.labels_N, reduction="sum")


def forward_kl(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the sum over tokens of KL(p || q), nats.

    Equation: KL = sum_b p_b (log p_b - log q_b); Hinton et al. 2015 (arXiv:1503.02531) for the
    temperature and its square. The tail at T != 1: as one token, see the top of this file.
    """
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    return kl(teacher_NB, student_NB).sum() * temperature**2


def reverse_kl(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the sum over tokens of KL(q || p), nats.

    Equation: KL = sum_b q_b (log q_b - log p_b); MiniLLM, Gu et al. 2024 (arXiv:2306.08543), here
    at every token of given text. Infinite where a dense teacher says -inf and the student does
    not. The tail at T != 1: as one token, see the top of this file.
    """
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    return kl(student_NB, teacher_NB).sum() * temperature**2


def jsd(
    logits_NV: Tensor, target: Target, temperature: float = 1.0, *, beta: float = 0.5
) -> Tensor:
    """Returns T^2 times the sum over tokens of the generalised Jensen-Shannon divergence, nats.

    Equation: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; GKD, Agarwal
    et al. 2024 (arXiv:2306.13649), eq. 1. At most ln 2 a token, before T^2. By the equation it is 0
    at beta 0 and 1; as in TRL, beta = 0 here means forward_kl and beta = 1 reverse_kl, to which it
    tends when divided by beta or by 1 - beta. Raises `ValueError` unless 0 <= beta <= 1. The tail
    at T != 1: as one token, see the top of this file.
    """
    _check_share("beta", beta)
    if beta == 0:
        return forward_kl(logits_NV, target, temperature)
    if beta == 1:
        return reverse_kl(logits_NV, target, temperature)
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    mixed_NB = mixture(beta, teacher_NB, student_NB)
    sum_N = beta * kl(teacher_NB, mixed_NB) + (1 - beta) * kl(student_NB, mixed_NB)
    return sum_N.sum() * temperature**2


def skewed_forward_kl(
    logits_NV: Tensor, target: Target, temperature: float = 1.0, *, alpha: float = 0.1
) -> Tensor:
    """Returns T^2 times the sum over tokens of KL(p || alpha p + (1 - alpha) q), nats.

    Source: DistiLLM, Ko et al. 2024 (arXiv:2402.03898), eq. 4. At most -log(alpha) a token, before
    T^2; alpha = 0 is forward_kl. Raises `ValueError` unless 0 <= alpha <= 1. The tail at T != 1: as
    one token, see the top of this file.
    """
    _check_share("alpha", alpha)
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    return kl(teacher_NB, mixture(alpha, teacher_NB, student_NB)).sum() * temperature**2


def skewed_reverse_kl(
    logits_NV: Tensor, target: Target, temperature: float = 1.0, *, alpha: float = 0.1
) -> Tensor:
    """Returns T^2 times the sum over tokens of KL(q || (1 - alpha) p + alpha q), nats.

    Source: DistiLLM, Ko et al. 2024 (arXiv:2402.03898), section 3.1. At most -log(alpha) a token,
    before T^2; alpha = 0 is reverse_kl. Raises `ValueError` unless 0 <= alpha <= 1. The tail at
    T != 1: as one token, see the top of this file.
    """
    _check_share("alpha", alpha)
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    return kl(student_NB, mixture(alpha, student_NB, teacher_NB)).sum() * temperature**2


def adaptive_kl(
    logits_NV: Tensor, target: Target, temperature: float = 1.0, *, mu: float = 0.5
) -> Tensor:
    """Returns T^2 times the sum over tokens of h KL(p || q) + (1 - h) KL(q || p), nats.

    h is the share of sum_b |p_b - q_b| that lies in the teacher's head: its most probable ids
    while their mass together is at most `mu`, and always the first. No gradient flows through h.
    Source: AKL, Wu et al. 2024 (arXiv:2404.02657), split as in the authors' code. A stored
    signal's tail bucket is never in the head. Raises `ValueError` unless 0 <= mu <= 1. The tail at
    T != 1: as one token, see the top of this file.
    """
    _check_share("mu", mu)
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    head_N = head_share(teacher_NB, student_NB, target, mu)
    forward_N, reverse_N = kl(teacher_NB, student_NB), kl(student_NB, teacher_NB)
    return (head_N * forward_N + (1 - head_N) * reverse_N).sum() * temperature**2


def total_variation(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the sum over tokens of the total variation distance, at most 1 before T^2.

    Equation: TV = 1/2 sum_b |p_b - q_b|; f-distill, Wen et al. 2023 (arXiv:2307.15190). Unlike the
    others it is linear, not square, in a small gap: with T^2 its gradient grows like T. The tail at
    T != 1: as one token, see the top of this file.
    """
    teacher_NB, student_NB = pair(logits_NV, target, temperature)
    return 0.5 * (teacher_NB.exp() - student_NB.exp()).abs().sum() * temperature**2


def label_distribution(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the sum of KL(p || q) over the labels of a closed set, nats.

    It counts at the one token of an answer where its label is decided; p and q are renormalised
    over the labels' ids there (`Target.choices_NC`; labels with the same id count as one). Other
    tokens count nothing, and neither does one whose labels are all outside the stored top k. No
    tail is needed: with every label known it is exact at any T. A label outside the top k counts as
    impossible for the teacher, so a perfect student pays -log(1 - m), where m is the share of such
    labels: each is at most the k-th probability.
    """
    teacher_MC, student_MC = label_pair(logits_NV, target, temperature)
    return kl(teacher_MC, student_MC).sum() * temperature**2


def chunk_likelihood(logits_NV: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """Returns the sum over chunks of v - u + u log(u / v), nats: 0 for a perfect student.

    u and v are the surprisals, -log p and -log q, of the same stretch of text, which teacher and
    student spell each with its own tokens: the likelihoods of chunks are made equal, whatever their
    tokens are. It is for a teacher with another tokenizer. The gradient by v is 1 - u / v. No tail
    is needed, and `temperature` is not used. Source: ALM, Minixhofer et al. 2025
    (arXiv:2503.20083), in the limit of an infinite temperature. Raises `ValueError` where the
    target holds no chunks.
    """
    if target.chunks is None:
        raise ValueError("chunk_likelihood compares chunks; teacher and student share their tokens")
    surprisal_N = target.chunks.surprisal_N
    own_N = torch.nn.functional.cross_entropy(exact(logits_NV), target.labels_N, reduction="none")
    ends_N = target.chunks.ends_N.to(own_N.device)
    chunk_N = ends_N.cumsum(0) - ends_N.long()
    own_C = own_N.new_zeros(len(own_N)).index_add(0, chunk_N, own_N)
    v_N = own_C[chunk_N].clamp(min=_LEAST_SURPRISAL)
    u_N = surprisal_N.to(v_N.dtype)
    is_learned_N = ends_N & ~u_N.isnan()
    u_N = torch.where(is_learned_N, u_N, v_N.detach()).clamp(min=0)
    gap_N = v_N - u_N + torch.xlogy(u_N, u_N) - u_N * v_N.log()
    return torch.where(is_learned_N, gap_N, 0.0).sum()


# Below this a chunk is certain, and its surprisal rounds to 0 in fp32.
_LEAST_SURPRISAL = 1e-7


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value:g}; it must be a share, from 0 to 1")
