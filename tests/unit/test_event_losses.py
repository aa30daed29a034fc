"""Losses on a teacher with another tokenizer: events in place of ids, and chunks; against a slow
reference in float64, values and gradients."""

import math

import numpy as np
import pytest
import torch

from retort import losses
from retort.losses import Chunks, Ranges, Target
from retort.spec.train import FEATURE_LOSSES
from retort.stages.train.head import Head, Term, losses_of, sums_of
from retort.stages.train.objective import agreement

NUM_TOKENS, NUM_IDS, K = 11, 40, 4
OTHERS = {"Chunks", "Ranges", "Target", "chunk_likelihood", *FEATURE_LOSSES}
NAMES = sorted({*losses.__all__} - OTHERS)


@pytest.fixture
def target():
    """Events of 1 to 9 ids in a shuffled order; some empty, and two tokens without any."""
    rng = np.random.default_rng(3)
    order_V = torch.from_numpy(rng.permutation(NUM_IDS - 3))
    edges = np.stack(
        [np.sort(rng.choice(NUM_IDS - 3, 2 * K, replace=False)) for _ in range(NUM_TOKENS)]
    )
    first_NK, end_NK = (torch.from_numpy(edges[:, at::2]) for at in (0, 1))
    masses = rng.dirichlet(np.ones(K + 1), NUM_TOKENS)
    end_NK[2, 1] = first_NK[2, 1]
    masses[2, K] += masses[2, 1]
    masses[2, 1] = 0
    for token in (4, 7):
        end_NK[token] = first_NK[token]
        masses[token] = [0] * K + [1]
    mass_NB = torch.from_numpy(masses)
    ends_N = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    ends_N[[1, 2, 6, 9, 10]] = True
    surprisal_N = torch.full((NUM_TOKENS,), math.nan, dtype=torch.float64)
    surprisal_N[[1, 6, 9, 10]] = torch.tensor([0.5, 9.0, 2.0, 0.0], dtype=torch.float64)
    return Target(
        torch.from_numpy(rng.integers(0, NUM_IDS, NUM_TOKENS)),
        ids_NK=Ranges(first_NK, end_NK, order_V),
        logprobs_NK=mass_NB[:, :K].log(),
        tail_N=mass_NB[:, K].log(),
        chunks=Chunks(surprisal_N, ends_N),
        choices_NC=torch.from_numpy(rng.integers(0, NUM_IDS, (NUM_TOKENS, 2))),
    )


@pytest.fixture
def logits_NV():
    torch.manual_seed(0)
    return (torch.randn(NUM_TOKENS, NUM_IDS, dtype=torch.float64) * 2).requires_grad_()


def dense(logits_NV, target):
    """The same tokens over buckets that are summed one by one; those without an event left out."""
    rows, teachers = [], []
    ranges = target.ids_NK
    for n in range(NUM_TOKENS):
        share_V = torch.softmax(logits_NV[n], 0)
        groups = [
            ranges.order_V[a:b] for a, b in zip(ranges.first_NK[n], ranges.end_NK[n], strict=True)
        ]
        sums = [share_V[ids].sum() for ids in groups if len(ids)]
        kept = [p.exp() for p, ids in zip(target.logprobs_NK[n], groups, strict=True) if len(ids)]
        if sums:
            pad = [share_V.new_tensor(1e-300)] * (K - len(sums))
            rows.append(torch.stack([*sums, *pad, 1 - sum(sums)]).log())
            teachers.append(torch.stack([*kept, *pad, target.tail_N[n].exp()]).log())
    return torch.stack(rows), torch.stack(teachers)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", sorted({*NAMES} - {"cross_entropy", "label_distribution"}))
def test_every_loss_runs_on_events_as_on_buckets(name, temperature, logits_NV, target):
    loss = getattr(losses, name)
    value = loss(logits_NV, target, temperature)
    (gradient,) = torch.autograd.grad(value, logits_NV)
    buckets_NB, teacher_NB = dense(logits_NV, target)
    wanted = Target(torch.zeros(len(buckets_NB), dtype=torch.long), teacher_logits_NV=teacher_NB)
    if name == "adaptive_kl":  # the tail is never in the head, and a dense teacher has none
        ids_NK = torch.arange(K).expand(len(buckets_NB), K)
        wanted = Target(wanted.labels_N, ids_NK, teacher_NB[:, :K], teacher_NB[:, K])
    slow = loss(buckets_NB, wanted, temperature)
    assert value.item() == pytest.approx(slow.item(), rel=1e-9)
    (slow_gradient,) = torch.autograd.grad(slow, logits_NV)
    assert torch.allclose(gradient, slow_gradient, rtol=1e-6, atol=1e-10)
    assert (gradient[[4, 7]] == 0).all() and gradient.isfinite().all()


def test_a_perfect_student_has_no_divergence_on_events(logits_NV, target):
    share_NV = torch.log_softmax(logits_NV.detach(), dim=1)
    ranges = target.ids_NK
    own = torch.full((NUM_TOKENS, K), -math.inf, dtype=torch.float64)
    taken = torch.zeros(NUM_TOKENS, NUM_IDS, dtype=torch.bool)
    for n in range(NUM_TOKENS):
        for k in range(K):
            ids = ranges.order_V[ranges.first_NK[n, k] : ranges.end_NK[n, k]]
            if len(ids):
                own[n, k] = share_NV[n, ids].logsumexp(0)
                taken[n, ids] = True
    tail_N = share_NV.masked_fill(taken, -math.inf).logsumexp(1)
    perfect = Target(target.labels_N, ranges, own, tail_N)
    for name in sorted({*NAMES} - {"cross_entropy", "label_distribution"}):
        assert getattr(losses, name)(logits_NV, perfect).item() == pytest.approx(0, abs=1e-9), name


def test_label_distribution_reads_the_mass_of_the_event_that_holds_a_label(logits_NV, target):
    value = losses.label_distribution(logits_NV, target).item()
    wanted = 0.0
    for n in range(NUM_TOKENS):
        masses = []
        ids = target.choices_NC[n].tolist()
        for label in ids:
            for k in range(K):
                event = target.ids_NK.order_V[
                    target.ids_NK.first_NK[n, k] : target.ids_NK.end_NK[n, k]
                ].tolist()
                if label in event:
                    masses.append(
                        target.logprobs_NK[n, k].exp().item() / sum(i in event for i in ids)
                    )
                    break
            else:
                masses.append(0.0)
        if sum(masses) > 0 and len(set(ids)) == 2:
            q = torch.softmax(logits_NV[n, ids], 0).tolist()
            p = [m / sum(masses) for m in masses]
            wanted += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)
    assert value == pytest.approx(wanted, rel=1e-6) and wanted > 0


def test_chunk_likelihood_compares_surprisals_of_chunks(logits_NV, target):
    value = losses.chunk_likelihood(logits_NV, target)
    (gradient,) = torch.autograd.grad(value, logits_NV)
    own_N = -torch.log_softmax(logits_NV, 1).gather(1, target.labels_N[:, None])[:, 0]
    slow = logits_NV.new_zeros(())
    for (a, b), u in {(0, 2): 0.5, (3, 7): 9.0, (7, 10): 2.0, (10, 11): 0.0}.items():
        v = own_N[a:b].sum()
        slow = slow + v - u + (u * torch.log(u / v) if u else 0)
    assert value.item() == pytest.approx(slow.item(), rel=1e-9)
    assert torch.allclose(gradient, torch.autograd.grad(slow, logits_NV)[0], atol=1e-12)
    assert (gradient[2] == 0).all()  # a chunk that is not learned


def test_a_certain_student_has_a_finite_chunk_likelihood(target):
    sure_NV = torch.zeros(NUM_TOKENS, NUM_IDS)
    sure_NV[torch.arange(NUM_TOKENS), target.labels_N] = 200.0
    sure_NV.requires_grad_()
    value = losses.chunk_likelihood(sure_NV, target)
    (gradient,) = torch.autograd.grad(value, sure_NV)
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_a_head_in_chunks_never_cuts_one_of_the_teachers(chunk_tokens, target, monkeypatch):
    monkeypatch.setitem(
        __import__("retort.stages.train.head", fromlist=["x"]).BLOCK_ELEMENTS, "cpu", 2 * NUM_IDS
    )
    torch.manual_seed(1)
    hidden_NH = torch.randn(NUM_TOKENS, 8, dtype=torch.float64, requires_grad=True)
    project = torch.nn.Linear(8, NUM_IDS, bias=False, dtype=torch.float64)
    terms = [Term(n, getattr(losses, n), w) for n, w in (("chunk_likelihood", 0.7), ("jsd", 1.0))]
    terms.append(Term("agreement", agreement, 0.0))
    head = Head(project, NUM_IDS, chunk_tokens=chunk_tokens)
    sums = losses_of(hidden_NH, head, target, terms)
    whole = sums_of(head.logits(hidden_NH), target, terms)
    assert torch.allclose(sums.values_L, whole.values_L)
    gradients = [torch.autograd.grad(s.total_, [hidden_NH, project.weight]) for s in (sums, whole)]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
    spans = target.spans(chunk_tokens)
    assert [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]] and spans[-1][1] == NUM_TOKENS
    assert all(target.chunks.ends_N[b - 1] for _, b in spans)


def test_agreement_counts_an_id_of_the_most_probable_event_and_elsewhere_the_label(target):
    best = target.logprobs_NK.argmax(1)
    logits_NV = torch.zeros(NUM_TOKENS, NUM_IDS)
    for n in range(NUM_TOKENS):
        first = target.ids_NK.first_NK[n, best[n]]
        wanted = target.labels_N[n] if n in (4, 7) else target.ids_NK.order_V[first]
        logits_NV[n, wanted] = 1.0
    assert agreement(logits_NV, target).item() == NUM_TOKENS
    assert agreement(-logits_NV, target).item() < NUM_TOKENS / 2
