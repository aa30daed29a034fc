"""The chunked head against plain float64 autograd over all logits at once."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from retort import losses
from retort.losses import Target
from retort.stages.train import head as chunked
from retort.stages.train.head import Head, Term, losses_of, sums_of
from retort.stages.train.objective import agreement

N, H, V, K = 37, 16, 300, 8
PADDED = V + 20
NO_GPU = not torch.cuda.is_available()
TERMS = [
    Term("cross_entropy", losses.cross_entropy, 0.2),
    Term("skewed_forward_kl", partial(losses.skewed_forward_kl, alpha=0.1), 0.5),
    Term("jsd", partial(losses.jsd, temperature=2.0), 0.3),
    Term("agreement", agreement, 0.0),
]


class Adapted(nn.Module):
    """A head with a low-rank adapter beside its frozen layer, as peft builds them."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(H, 2, bias=False), nn.Linear(2, PADDED, bias=False)
        self.weight = base.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + 0.5 * self.up(self.down(hidden))


def case(kind: str = "stored", bias: bool = True) -> tuple[Tensor, nn.Linear, Target]:
    """Hidden states that require a gradient, a head, and what a teacher says of them."""
    torch.manual_seed(0)
    hidden = torch.randn(N, H, requires_grad=True)
    layer = nn.Linear(H, PADDED, bias=bias)
    teacher = torch.log_softmax(2 * torch.randn(N, V), dim=1)
    labels = torch.randint(0, V, (N,))
    if kind == "dense":
        return hidden, layer, Target(labels, teacher_logits_NV=teacher)
    logprobs, ids = teacher.topk(K, dim=1)
    tail = teacher.scatter(1, ids, -torch.inf).logsumexp(1)
    return hidden, layer, Target(labels, ids, logprobs, tail)


def exact(hidden: Tensor, layer: nn.Module, target: Target, finish=lambda logits: logits):
    """Values and gradients by plain float64 autograd: all logits at once."""
    hidden, layer = hidden.detach().double().requires_grad_(), copy.deepcopy(layer).double()
    sums = sums_of(finish(layer(hidden)[:, :V]), target, TERMS)
    sums.total_.backward()
    return sums, [hidden.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


def gradients(hidden: Tensor, layer: nn.Module) -> list[Tensor]:
    return [hidden.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


def assert_near(ours: list[Tensor], theirs: list[Tensor], most: float) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.double() - other).norm() <= most * other.norm()


@pytest.mark.parametrize("kind", ["stored", "dense"])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 37, 64])
def test_any_chunk_gives_the_values_and_gradients_of_float64(chunk_tokens, kind, monkeypatch):
    monkeypatch.setitem(chunked.BLOCK_ELEMENTS, "cpu", 3 * V)  # so that a chunk has several blocks
    hidden, layer, target = case(kind)
    ours = losses_of(hidden, Head(layer, V, chunk_tokens=chunk_tokens), target, TERMS)
    (ours.total_ / 7).backward()
    reference, expected = exact(hidden, layer, target)
    torch.testing.assert_close(ours.values_L.double(), reference.values_L, rtol=1e-6, atol=0)
    assert ours.total_.item() == pytest.approx(reference.total_.item(), rel=1e-6)
    assert_near(gradients(hidden, layer), [g / 7 for g in expected], 1e-5)
    assert (layer.weight.grad[V:] == 0).all()  # padding of the vocabulary is never trained


def test_in_float64_the_chunked_way_is_the_plain_one():
    hidden, layer, target = case()
    reference, expected = exact(hidden, layer, target)
    hidden, layer = hidden.detach().double().requires_grad_(), layer.double()
    ours = losses_of(hidden, Head(layer, V, chunk_tokens=10), target, TERMS)
    ours.total_.backward()
    assert ours.total_.item() == pytest.approx(reference.total_.item(), rel=1e-14)
    assert_near(gradients(hidden, layer), expected, 1e-14)


CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="no GPU")])


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind", ["stored", "dense"])
def test_under_bf16_autocast_the_gradients_stay_within_two_percent(kind, device):
    hidden, layer, target = case(kind)
    hidden, layer = hidden.detach().to(device).requires_grad_(), layer.to(device)
    target = Target(**{k: None if v is None else v.to(device) for k, v in vars(target).items()})
    with torch.autocast(device, torch.bfloat16):
        ours = losses_of(hidden, Head(layer, V, chunk_tokens=10), target, TERMS)
    ours.total_.backward()
    _, expected = exact(hidden, layer, target)
    assert ours.total_.dtype == layer.weight.grad.dtype == torch.float32
    assert_near(gradients(hidden, layer), expected, 2e-2)


def test_a_model_held_in_bf16_adds_its_gradient_up_in_fp32():
    hidden, layer, target = case(bias=False)
    half, layer = hidden.detach().bfloat16().requires_grad_(), layer.bfloat16()
    losses_of(half, Head(layer, V, chunk_tokens=1), target, TERMS).total_.backward()
    _, expected = exact(half, layer, target)
    assert layer.weight.grad.dtype == torch.bfloat16
    assert_near(gradients(half, layer), expected, 1e-2)


@pytest.mark.parametrize(("scale", "softcap"), [(0.25, None), (1.0, 3.0), (4.0, 5.0)])
def test_scaled_and_capped_logits_are_differentiated_through(scale, softcap):
    hidden, layer, target = case()
    head = Head(layer, V, scale=scale, softcap=softcap, chunk_tokens=8)
    losses_of(hidden, head, target, TERMS).total_.backward()

    def finish(logits: Tensor) -> Tensor:
        return logits * scale if softcap is None else softcap * torch.tanh(logits * scale / softcap)

    assert_near(gradients(hidden, layer), exact(hidden, layer, target, finish)[1], 1e-5)


def test_a_frozen_head_costs_no_gradient_and_the_hidden_states_get_theirs():
    hidden, layer, target = case()
    layer.requires_grad_(False)
    losses_of(hidden, Head(layer, V, chunk_tokens=10), target, TERMS).total_.backward()
    assert layer.weight.grad is None
    assert_near([hidden.grad], exact(hidden, layer, target)[1], 1e-5)


def test_a_tied_head_gets_the_gradient_of_both_its_uses_once():
    _, layer, target = case(bias=False)
    ids = torch.arange(N)

    def run(layer: nn.Linear, is_chunked: bool) -> Tensor:
        hidden = torch.tanh(nn.functional.embedding(ids, layer.weight))
        if is_chunked:
            sums = losses_of(hidden, Head(layer, V, chunk_tokens=10), target, TERMS)
        else:
            sums = sums_of(layer(hidden)[:, :V], target, TERMS)
        sums.total_.backward()
        return layer.weight.grad

    assert_near([run(layer, True)], [run(copy.deepcopy(layer).double(), False)], 1e-5)


def test_a_head_with_an_adapter_runs_under_checkpointing_and_is_exact():
    hidden, layer, target = case()
    adapted = Adapted(layer)
    head = Head(adapted, V, chunk_tokens=10)
    assert not head.is_plain
    assert Head(layer, V).is_plain
    ours = losses_of(hidden, head, target, TERMS)
    ours.total_.backward()
    reference, expected = exact(hidden, adapted, target)
    torch.testing.assert_close(ours.values_L.double(), reference.values_L, rtol=1e-6, atol=0)
    assert_near(gradients(hidden, adapted), expected, 1e-5)


@pytest.mark.parametrize("adapter", [None, Adapted])
def test_no_token_gives_a_zero_whose_gradient_is_zero(adapter):
    hidden, layer, target = case()
    head = Head(adapter(layer) if adapter else layer, V)
    sums = losses_of(hidden[:0], head, target.part(0, 0), TERMS)
    sums.total_.backward()
    assert sums.total_.item() == 0 and (hidden.grad == 0).all()
    assert all((g == 0).all() for g in gradients(hidden, head.project))


def test_without_training_there_is_no_gradient_and_the_same_value():
    hidden, layer, target = case()
    head = Head(layer, V, chunk_tokens=10)
    trained = losses_of(hidden, head, target, TERMS)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            sums = losses_of(hidden, head, target, TERMS)
        assert not sums.total_.requires_grad
        assert torch.equal(sums.values_L, trained.values_L)


def test_a_live_teachers_logits_are_made_chunk_by_chunk():
    hidden, layer, target = case()
    torch.manual_seed(1)
    states, teacher = torch.randn(N, 24), nn.Linear(24, V + 7).requires_grad_(False)
    live = Target(target.labels_N, teacher_hidden_NH=states)
    head, theirs = Head(layer, V, chunk_tokens=10), Head(teacher, V)
    ours = losses_of(hidden, head, live, TERMS, theirs)
    ours.total_.backward()
    dense = Target(target.labels_N, teacher_logits_NV=teacher(states)[:, :V])
    reference, expected = exact(hidden, layer, dense)
    torch.testing.assert_close(ours.values_L.double(), reference.values_L, rtol=1e-6, atol=0)
    assert_near(gradients(hidden, layer), expected, 1e-5)


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    hidden, layer, target = case()
    total = losses_of(hidden, Head(layer, V), target, TERMS).total_
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()


def test_a_loss_that_moves_nothing_gives_gradients_of_zero():
    hidden, layer, target = case()
    still = [Term("still", lambda logits, target: logits.detach().sum())]
    found = torch.autograd.grad(losses_of(hidden, Head(layer, V), target, still).total_, hidden)
    assert (found[0] == 0).all()


def test_the_whole_batchs_logits_never_exist():
    hidden, layer, target = case()
    seen = []

    def watched(logits: Tensor, target: Target) -> Tensor:
        seen.append(len(logits))
        return losses.forward_kl(logits, target)

    losses_of(hidden, Head(layer, V, chunk_tokens=10), target, [Term("kl", watched)])
    assert max(seen) <= 10 and sum(seen) == N


def test_agreement_counts_equal_first_choices():
    hidden, layer, target = case("dense")
    logits = layer(hidden)[:, :V]
    expected = sum(
        int(logits[n].argmax() == target.teacher_logits_NV[n].argmax()) for n in range(N)
    )
    assert agreement(logits, target).item() == expected
    assert agreement(target.teacher_logits_NV, target).item() == N
    _, _, stored = case("stored")
    assert agreement(logits, stored).item() == expected
