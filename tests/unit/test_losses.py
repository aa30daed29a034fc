"""Every loss against a slow float64 version in plain probabilities, and the traps of distillation.

Of each loss the same is asked for a dense teacher and for a stored top-k with its tail.
"""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from retort import losses
from retort.losses import Target, cross_entropy, forward_kl, label_distribution
from retort.plugins import function_names
from retort.spec.train import FEATURE_LOSSES

N, V, K = 8, 40, 6
LOSSES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "jsd": losses.jsd,
    "jsd_0.1": partial(losses.jsd, beta=0.1),
    "skewed_forward_kl": losses.skewed_forward_kl,
    "skewed_reverse_kl": losses.skewed_reverse_kl,
    "skewed_reverse_kl_0.7": partial(losses.skewed_reverse_kl, alpha=0.7),
    "adaptive_kl": losses.adaptive_kl,
    "total_variation": losses.total_variation,
}
SMOOTH = [name for name in LOSSES if name != "total_variation"]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_kind = pytest.mark.parametrize("kind", ["dense", "stored"])


def case(seed: int = 0, scale: float = 2.0, k: int = K) -> tuple[Tensor, Target, Tensor]:
    """Student logits, the stored target, and the teacher's whole distribution (float64)."""
    random = torch.Generator().manual_seed(seed)
    teacher = torch.log_softmax(scale * torch.randn(N, V, generator=random).double(), dim=1)
    logprobs, ids = teacher.topk(k, dim=1)
    tail = teacher.scatter(1, ids, -torch.inf).logsumexp(1).clamp(min=math.log(1e-12))
    labels = torch.randint(0, V, (N,), generator=random)
    target = Target(labels, ids, logprobs.float(), tail.float())
    return scale * torch.randn(N, V, generator=random), target, teacher


def of_kind(kind: str, target: Target, teacher: Tensor) -> Target:
    return target if kind == "stored" else Target(target.labels_N, teacher_logits_NV=teacher + 3.0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def slow_adaptive(p: Tensor, q: Tensor, is_stored: bool) -> Tensor:
    gap, mass, head = (p - q).abs().detach().tolist(), 0.0, 0.0
    ids = sorted(range(len(p) - is_stored), key=lambda i: -p[i].item())
    for rank, i in enumerate(ids):
        mass += p[i].item()
        if rank == 0 or mass <= 0.5:
            head += gap[i]
    share = head / sum(gap)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def slow_token(name: str, p: Tensor, q: Tensor, is_stored: bool) -> Tensor:
    """The equation of each paper; p is the teacher, q the student."""
    if name in ("jsd", "jsd_0.1"):
        b = 0.1 if name == "jsd_0.1" else 0.5
        return b * kl(p, b * p + (1 - b) * q) + (1 - b) * kl(q, b * p + (1 - b) * q)
    if name == "skewed_reverse_kl_0.7":
        return kl(q, 0.3 * p + 0.7 * q)
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "skewed_forward_kl": lambda: kl(p, 0.1 * p + 0.9 * q),
        "skewed_reverse_kl": lambda: kl(q, 0.9 * p + 0.1 * q),
        "adaptive_kl": lambda: slow_adaptive(p, q, is_stored),
        "total_variation": lambda: (p - q).abs().sum() / 2,
    }[name]()


def slow(name: str, logits: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """The loss token by token and bucket by bucket, in float64, in probabilities."""
    total = torch.zeros((), dtype=torch.float64)
    is_stored = target.teacher_logits_NV is None
    for n in range(len(logits)):
        if is_stored:
            whole, top = torch.softmax(logits[n].double(), dim=0), target.ids_NK[n].tolist()
            rest = whole[[v for v in range(V) if v not in top]].sum()
            q = torch.stack([*(whole[i] for i in top), rest]) ** (1 / temperature)
            p = torch.cat([target.logprobs_NK[n], target.tail_N[n : n + 1]]).double()
            p = p.exp() ** (1 / temperature)
        else:
            q = torch.exp(logits[n].double() / temperature)
            p = torch.exp(target.teacher_logits_NV[n].double() / temperature)
        total = total + slow_token(name, p / p.sum(), q / q.sum(), is_stored)
    return total * temperature**2


def value_and_gradient(loss, logits: Tensor, target: Target, *more) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target, *more)
    value.backward()
    return value.item(), leaf.grad.double()


def distance(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@every_kind
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@every_loss
def test_value_and_gradient_agree_with_float64(name, temperature, kind):
    logits, target, teacher = case()
    target = of_kind(kind, target, teacher)
    value, gradient = value_and_gradient(LOSSES[name], logits, target, temperature)
    exact, slope = value_and_gradient(partial(slow, name), logits.double(), target, temperature)
    assert value == pytest.approx(exact, rel=1e-6)
    assert distance(gradient, slope) < 1e-5
    value, gradient = value_and_gradient(LOSSES[name], logits.bfloat16(), target, temperature)
    rounded = logits.bfloat16().double()
    exact, slope = value_and_gradient(partial(slow, name), rounded, target, temperature)
    assert value == pytest.approx(exact, rel=1e-6)  # in fp32 inside, whatever comes in
    assert distance(gradient, slope) < 2e-2


def test_cross_entropy_is_the_sum_of_negative_log_probabilities():
    logits, target, _ = case()
    logprobs = torch.log_softmax(logits.double(), dim=1)
    expected = -sum(logprobs[n, target.labels_N[n]].item() for n in range(N))
    assert cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-6)
    assert cross_entropy(logits.bfloat16(), target).dtype == torch.float32


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@every_loss
def test_a_perfect_student_pays_nothing_and_is_not_moved(name, temperature, kind):
    _, target, teacher = case()
    target = of_kind(kind, target, teacher)
    value, gradient = value_and_gradient(LOSSES[name], teacher.float() + 5, target, temperature)
    assert abs(value) < 1e-5 * temperature**2
    if name != "total_variation":  # which has a kink there
        assert gradient.abs().max() < 1e-5 * temperature**2


@every_kind
@every_loss
def test_a_batch_is_the_sum_of_its_tokens(name, kind):
    logits, target, teacher = case()
    target = of_kind(kind, target, teacher)
    alone = [LOSSES[name](logits[n : n + 1], target.part(n, n + 1)).item() for n in range(N)]
    assert LOSSES[name](logits, target).item() == pytest.approx(sum(alone), rel=1e-6)


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_stored_signal_of_all_ids_or_all_but_one_is_the_dense_teacher(name, temperature):
    logits, _, teacher = case()
    dense = Target(torch.zeros(N, dtype=torch.long), teacher_logits_NV=teacher)
    expected, slope = value_and_gradient(LOSSES[name], logits, dense, temperature)
    for k in (V - 1, V):
        _, stored, _ = case(k=k)
        value, gradient = value_and_gradient(LOSSES[name], logits, stored, temperature)
        assert value == pytest.approx(expected, rel=2e-6)
        assert distance(gradient, slope) < 1e-5


def test_the_bounds_of_the_papers_hold():
    for seed in range(20):
        logits, target, teacher = case(seed, scale=8.0)
        dense = of_kind("dense", target, teacher)
        for kind in (dense, target):
            of = {name: loss(logits, kind).item() / N for name, loss in LOSSES.items()}
            assert all(value >= 0 for value in of.values())
            assert of["jsd"] <= math.log(2)
            assert of["total_variation"] <= 1
            assert of["skewed_forward_kl"] <= -math.log(0.1)
            assert of["skewed_reverse_kl"] <= -math.log(0.1)
            assert of["total_variation"] <= math.sqrt(of["forward_kl"] / 2)  # Pinsker
            assert of["forward_kl"] >= of["skewed_forward_kl"]
        for name, loss in LOSSES.items():  # data processing: buckets only ever hide differences
            assert name == "adaptive_kl" or loss(logits, target) <= loss(logits, dense) + 1e-4


@every_kind
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jsd_has_the_convention_of_trl(beta, kind):
    logits, target, teacher = case()
    target = of_kind(kind, target, teacher)
    ours = losses.jsd(logits, target, beta=beta).item()
    if kind == "stored":
        limit = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta)
        assert limit is None or ours == LOSSES[limit](logits, target).item()
        return
    student = torch.log_softmax(logits.double(), -1)
    divergence = partial(torch.nn.functional.kl_div, reduction="sum", log_target=True)
    if beta in (0.0, 1.0):
        expected = divergence(student, teacher) if beta == 0 else divergence(teacher, student)
    else:
        mixed = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        expected = beta * divergence(mixed, teacher) + (1 - beta) * divergence(mixed, student)
    assert ours == pytest.approx(expected.item(), rel=1e-6)


def test_the_limits_of_jsd_and_of_the_skewed_are_the_plain_divergences():
    logits, target, _ = case()
    logits = logits.double()
    forward = losses.forward_kl(logits, target).item()
    reverse = losses.reverse_kl(logits, target).item()
    assert losses.jsd(logits, target, beta=1e-7).item() / 1e-7 == pytest.approx(forward, rel=1e-4)
    near = losses.jsd(logits, target, beta=1 - 1e-7).item() / 1e-7
    assert near == pytest.approx(reverse, rel=1e-4)
    assert losses.skewed_forward_kl(logits, target, alpha=0.0) == forward
    assert losses.skewed_reverse_kl(logits, target, alpha=0.0) == reverse


@every_kind
@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_keeps_its_size_in_the_temperature(name, kind):
    logits, target, teacher = case(scale=0.5, k=V - 1)
    target = of_kind(kind, target, teacher)
    norms = [
        value_and_gradient(LOSSES[name], logits, target, temperature)[1].norm().item()
        for temperature in (1.0, 2.0, 4.0, 8.0)
    ]
    assert max(norms) < 2.5 * min(norms)


def test_total_variation_is_linear_so_its_gradient_grows_like_the_temperature():
    logits, target, teacher = case(scale=0.5)
    dense = of_kind("dense", target, teacher)
    small, large = (
        value_and_gradient(losses.total_variation, logits, dense, temperature)[1].norm().item()
        for temperature in (8.0, 16.0)
    )
    assert large / small == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_mass_in_the_tail_is_not_free(name):
    logits, target, _ = case()
    outside = next(v for v in range(V) if v not in target.ids_NK[0].tolist())
    raised = logits.clone()
    raised[0, outside] += 10
    value, gradient = value_and_gradient(LOSSES[name], raised, target)
    assert value > LOSSES[name](logits, target)
    assert gradient[0, outside] > 1e-4


@pytest.mark.parametrize("name", ["forward_kl", "skewed_forward_kl", "jsd"])
def test_a_tail_of_1e_7_keeps_its_value_and_its_gradient(name):
    logits, target, _ = case()
    inside = torch.zeros(N, V).scatter(1, target.ids_NK, 1.0).bool()
    sure = torch.where(inside, logits, logits - 22)  # the student's tail is about 1e-9
    value, gradient = value_and_gradient(LOSSES[name], sure, target)
    exact, slope = value_and_gradient(partial(slow, name), sure.double(), target)
    assert value == pytest.approx(exact, rel=1e-6)
    assert distance(gradient[~inside], slope[~inside]) < 1e-5


def test_the_head_of_a_flat_teacher_is_found_beyond_the_first_ranking():
    random = torch.Generator().manual_seed(0)
    teacher, logits = torch.randn(2, 2000, generator=random) / 4, torch.randn(2, 2000)
    dense = Target(torch.zeros(2, dtype=torch.long), teacher_logits_NV=teacher)
    p, q = torch.softmax(teacher.double(), 1), torch.softmax(logits.double(), 1)
    expected = sum(slow_adaptive(p[n], q[n], False).item() for n in range(2))
    assert losses.adaptive_kl(logits, dense).item() == pytest.approx(expected, rel=1e-6)


def test_what_is_asked_wrongly_is_refused_in_words():
    logits, target, teacher = case()
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        losses.skewed_forward_kl(logits, target, alpha=1.5)
    with pytest.raises(ValueError, match="holds no signal"):
        forward_kl(logits, Target(target.labels_N))
    with pytest.raises(ValueError, match="slice both"):
        forward_kl(logits[:, :-1], of_kind("dense", target, teacher))
    with pytest.raises(ValueError, match="holds no labels"):
        label_distribution(logits, target)


def test_every_loss_of_the_list_can_be_named_in_a_spec():
    named = {name.rpartition("_0")[0] if "_0" in name else name for name in LOSSES}
    others = {"cross_entropy", "label_distribution", "chunk_likelihood", *FEATURE_LOSSES}
    assert set(function_names("retort.losses")) == named | others
