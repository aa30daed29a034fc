"""Fused signals: against a slow sum over the whole vocabulary, and never off by more than said."""

# T tokens, K top-k, V vocabulary
import tracemalloc

import numpy as np
import pytest

from retort.stages.generate.fusion import best_of_each, fuse
from retort.store.signals import Signal, captured

T, K, V = 40, 4, 37


def teachers(number: int, seed: int, sharpness: float = 3.0):
    """The whole distributions of some teachers at the same tokens, and what is stored of each."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(number, T, V)) * sharpness
    whole = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    targets = random.integers(0, V, size=T)
    return whole, targets, [stored(each, targets) for each in whole]


def stored(whole_TV, targets) -> Signal:
    ids = np.argsort(-whole_TV, axis=1)[:, :K]
    logprobs = np.log(np.take_along_axis(whole_TV, ids, axis=1))
    own = np.log(whole_TV[np.arange(T), targets])
    return captured(ids.astype(np.int32), logprobs, targets.astype(np.int32), own)


def slowly(parts, weights, t):
    """A token's mixture over every id: what is stored is known, what is left is spread evenly."""
    total = np.zeros(V)
    for part, weight in zip(parts, weights, strict=True):
        known = dict(zip(part.ids_TK[t].tolist(), np.exp(part.logprobs_TK[t]), strict=True))
        known[int(part.target_ids_T[t])] = np.exp(part.target_logprobs_T[t])
        left = max(1 - sum(known.values()), 0)
        each = left / (V - len(known))
        total += weight / sum(weights) * np.array([known.get(i, each) for i in range(V)])
    return total


@pytest.mark.parametrize(("number", "weights"), [(2, [1.0, 1.0]), (3, [0.5, 2.0, 0.25])])
def test_a_mixture_is_that_of_a_slow_sum_over_the_vocabulary(number, weights):
    _, targets, parts = teachers(number, seed=number)
    fused, _ = fuse(parts, weights, [V] * number, K)
    for t in range(T):
        mixed = slowly(parts, weights, t)
        ids = fused.ids_TK[t]
        assert len(set(ids.tolist())) == K
        assert np.allclose(np.exp(fused.logprobs_TK[t]), mixed[ids], atol=1e-6)
        # No candidate that is left out is more probable than one that is kept.
        candidates = {int(targets[t]), *(i for part in parts for i in part.ids_TK[t].tolist())}
        others = candidates - set(ids.tolist())
        assert all(mixed[other] <= mixed[ids].min() + 1e-9 for other in others)
        assert np.isclose(np.exp(fused.tail_T[t]), 1 - mixed[ids].sum(), atol=1e-6)
        assert np.isclose(np.exp(fused.target_logprobs_T[t]), mixed[targets[t]], atol=1e-6)


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_the_true_mixture_is_never_further_than_the_bound(sharpness):
    whole, _, parts = teachers(3, seed=7, sharpness=sharpness)
    fused, bound_T = fuse(parts, [1.0, 1.0, 1.0], [V] * 3, K)
    true = whole.mean(axis=0)
    kept = np.take_along_axis(true, fused.ids_TK, axis=1)
    error_TB = np.abs(np.exp(fused.logprobs_TK) - kept)
    tail_T = np.abs(np.exp(fused.tail_T) - (1 - kept.sum(axis=1)))
    distance_T = (error_TB.sum(axis=1) + tail_T) / 2
    assert (distance_T <= bound_T + 1e-6).all()
    assert (distance_T > 1e-4).any()  # something is estimated, or the bound would say nothing
    assert (bound_T < 1).all()


def test_where_the_teachers_share_their_top_k_the_mixture_is_exact():
    whole, targets, parts = teachers(1, seed=3)
    other = whole[0].copy()
    ids = parts[0].ids_TK
    turned = np.take_along_axis(other, ids[:, ::-1], axis=1)
    np.put_along_axis(other, ids, turned, axis=1)  # the same ids, their order the other way round
    twice = [parts[0], stored(other, targets)]
    fused, bound_T = fuse(twice, [1.0, 3.0], [V, V], K)
    exact = np.take_along_axis(0.25 * whole[0] + 0.75 * other, fused.ids_TK, axis=1)
    inside_T = (ids == targets[:, None]).any(axis=1)
    assert np.allclose(np.exp(fused.logprobs_TK)[inside_T], exact[inside_T], atol=1e-6)
    assert (bound_T[inside_T] == 0).all()


def test_a_long_answer_is_fused_in_little_memory_and_as_a_short_one():
    _, _, parts = teachers(2, seed=9)
    short, bound_T = fuse(parts, [1.0, 2.0], [V, V], K)
    number = 500
    long = [Signal(*(np.concatenate([c] * number) for c in vars(part).values())) for part in parts]
    tracemalloc.start()
    fused, bounds_T = fuse(long, [1.0, 2.0], [V, V], K)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    num_candidates = 2 * K + 1
    assert peak < number * T * num_candidates * K * 8 / 2  # half of what each of them once took
    assert bounds_T.tolist() == bound_T.tolist() * number
    for one, many in zip(vars(short).values(), vars(fused).values(), strict=True):
        assert (many == np.concatenate([one] * number)).all()


def test_min_ce_takes_the_teacher_that_finds_the_token_most_probable():
    whole, targets, parts = teachers(3, seed=5)
    fused = best_of_each(parts)
    for t in range(T):
        best = int(np.argmax([whole[m][t, targets[t]] for m in range(3)]))
        assert fused.ids_TK[t].tolist() == parts[best].ids_TK[t].tolist()
        assert fused.tail_T[t] == parts[best].tail_T[t]
        assert fused.target_logprobs_T[t] == parts[best].target_logprobs_T[t]
