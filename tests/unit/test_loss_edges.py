"""Losses where numbers run out: certain teachers, excluded ids, no tokens; and label sets."""

import math

import pytest
import torch

from retort import losses
from retort.losses import Target, cross_entropy, label_distribution
from retort.losses.choices import label_choices
from tests.unit.test_losses import (
    LOSSES,
    K,
    N,
    V,
    case,
    distance,
    every_kind,
    every_loss,
    kl,
    of_kind,
    value_and_gradient,
)


@every_kind
@every_loss
def test_extreme_logits_and_a_certain_teacher_give_finite_numbers(name, kind):
    logits, target, _ = case()
    logprobs = torch.tensor([0.0] + [-60.0] * (K - 1)).expand(N, K)
    certain = Target(target.labels_N, target.ids_NK, logprobs, torch.full((N,), math.log(1e-12)))
    sure = torch.full((N, V), -500.0).scatter(1, target.ids_NK, logprobs)
    certain = of_kind(kind, certain, sure)
    for scale in (1e4, -1e4):
        leaf = (logits * scale).requires_grad_()
        value = LOSSES[name](leaf, certain) + cross_entropy(leaf, certain)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(leaf.grad).all()


@every_loss
def test_ids_that_both_sides_exclude_with_minus_infinity_change_nothing(name):
    logits, target, teacher = case()
    closed = torch.full((N, 5), -torch.inf)
    dense = of_kind("dense", target, teacher)
    wider = of_kind("dense", target, torch.cat([teacher, closed], dim=1))
    expected, slope = value_and_gradient(LOSSES[name], logits, dense)
    value, gradient = value_and_gradient(LOSSES[name], torch.cat([logits, closed], 1), wider)
    assert value == pytest.approx(expected, rel=1e-6)
    assert distance(gradient[:, :V], slope) < 1e-6
    assert (gradient[:, V:] == 0).all()


@every_loss
def test_an_id_that_the_student_excludes_is_no_part_of_its_tail(name):
    logits, target, _ = case()
    outside = next(v for v in range(V) if not (target.ids_NK == v).any())
    closed, remote = (logits.index_fill(1, torch.tensor([outside]), x) for x in (-torch.inf, -1e3))
    value, gradient = value_and_gradient(LOSSES[name], closed, target)
    expected, slope = value_and_gradient(LOSSES[name], remote, target)
    assert value == expected and torch.equal(gradient, slope)


def test_what_the_teacher_excludes_is_infinite_for_reverse_kl_and_finite_for_the_others():
    logits, target, teacher = case()
    teacher = teacher.index_fill(1, torch.tensor([3]), -torch.inf)
    dense = of_kind("dense", target, teacher)
    for name in ("forward_kl", "jsd", "skewed_reverse_kl", "total_variation"):
        value, gradient = value_and_gradient(LOSSES[name], logits, dense)
        assert math.isfinite(value) and torch.isfinite(gradient).all()
    assert losses.reverse_kl(logits, dense).item() == math.inf


@every_kind
@every_loss
def test_no_token_at_all_is_a_zero_that_can_be_differentiated(name, kind):
    logits, target, teacher = case()
    none = of_kind(kind, target, teacher).part(0, 0)
    leaf = logits[:0].clone().requires_grad_()
    value = LOSSES[name](leaf, none) + cross_entropy(leaf, none)
    value.backward()
    assert value.item() == 0


CHOICES = torch.tensor([[4, 9, 17], [-1, -1, -1], [3, 8, -1]])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@every_kind
def test_label_distribution_compares_over_the_labels_alone(temperature, kind):
    logits, target, teacher = case(k=V - 1)
    target = of_kind(kind, target, teacher).part(0, 3)
    target = Target(**{**vars(target), "choices_NC": CHOICES})
    exact = 0.0
    for n, ids in ((0, [4, 9, 17]), (2, [3, 8])):
        p = (teacher[n, ids] / temperature).softmax(0)
        exact += kl(p, (logits[n, ids].double() / temperature).softmax(0)).item() * temperature**2
    value, gradient = value_and_gradient(label_distribution, logits[:3], target, temperature)
    assert value == pytest.approx(exact, rel=1e-6)
    assert (gradient[1] == 0).all() and (gradient[0] != 0).sum() == 3
    perfect = value_and_gradient(label_distribution, teacher[:3].float(), target, temperature)
    assert abs(perfect[0]) < 1e-6 and perfect[1].abs().max() < 1e-6


def test_a_label_outside_the_top_k_is_impossible_and_not_free():
    ids, logprobs = torch.tensor([[4, 9]]), torch.tensor([[0.6, 0.3]]).log()
    choices = torch.tensor([[4, 9, 17]])
    target = Target(ids[:, 0], ids, logprobs, torch.tensor([0.1]).log(), choices_NC=choices)
    q = torch.tensor([0.5, 0.3, 0.2])
    logits = torch.full((1, V), -2.0).scatter(1, choices, q.log()[None])
    expected = 2 / 3 * math.log((2 / 3) / 0.5) + 1 / 3 * math.log((1 / 3) / 0.3)
    value, gradient = value_and_gradient(label_distribution, logits, target)
    assert value == pytest.approx(expected, rel=1e-6)
    assert gradient[0, 17] == pytest.approx(0.2)
    unknown = Target(**{**vars(target), "choices_NC": torch.tensor([[5, 6]])})
    value, gradient = value_and_gradient(label_distribution, logits, unknown)
    assert value == 0 and (gradient == 0).all()


def test_the_place_of_a_label_is_where_the_spellings_part():
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    answer = ("So: ", "neutral", ".")
    labels = ["entailment", "neutral", "not_entailment"]
    found = label_choices(encode, encode("".join(answer)), answer, labels)
    assert found == (4, [ord("n"), ord("e")])
    assert label_choices(encode, [7, *encode("".join(answer))], answer, labels) is None
    assert label_choices(encode, encode("So: neutral."), answer, ["neutral"]) is None
