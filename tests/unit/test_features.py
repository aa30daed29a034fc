"""Hidden states and attention's relations against slow float64 versions, token by token."""

import math

import pytest
import torch
from torch import Tensor

from retort.losses import attention_relations, features, hidden_states
from retort.losses.features import Vectors

# Two rows of 7 tokens: an item of 7, then items of 3 and 2 and two tokens of padding.
ITEMS = ((0, 0, 7), (1, 0, 3), (1, 3, 2))
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 0, 0]])
PLACES = (torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([4, 5, 6, 2, 3, 4]))
HEADS = 2


def vectors(widths: tuple[int, ...], seed: int, dtype=torch.float64) -> list[Tensor]:
    """Queries, keys and values of two layers; keys and values may be narrower."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 7, w, generator=random, dtype=dtype) for w in (*widths, *widths)]


def slow_relations(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The equation, one token, head and vector at a time, over the tokens of its item up to it."""

    def relation(x: Tensor, row: int, start: int, time: int, head: int) -> Tensor:
        size = x.shape[2] // HEADS
        own = x[row, :, head * size : (head + 1) * size]
        scores = [own[time].dot(own[u]) / math.sqrt(size) for u in range(start, time + 1)]
        powers = torch.stack(scores).exp()
        return powers / powers.sum()

    total = torch.zeros((), dtype=torch.float64)
    for row, time in zip(*(place.tolist() for place in PLACES), strict=True):
        (start,) = (s for r, s, length in ITEMS if r == row and s <= time < s + length)
        for own, other in zip(student, teacher, strict=True):
            for head in range(HEADS):
                p, q = (relation(x, row, start, time, head) for x in (other, own))
                total = total + (p * (p / q).log()).sum() / HEADS
    return total / (len(student) / 3)


def relations(student: list[Tensor], teacher: list[Tensor], places=PLACES) -> Tensor:
    pair = (Vectors(x, places, POSITIONS) for x in (student, teacher))
    return attention_relations(*pair, relation_heads=HEADS)


@pytest.mark.parametrize("block", [1, 1 << 21])
def test_relations_and_their_gradients_are_those_of_the_equation_in_any_chunks(block, monkeypatch):
    monkeypatch.setitem(features.BLOCK_ELEMENTS, "cpu", block)
    student, teacher = vectors((8, 4, 4), seed=0), vectors((12, 6, 10), seed=1)
    found = []
    for function in (relations, slow_relations):
        leaves = [x.clone().requires_grad_() for x in student]
        value = function(leaves, teacher)
        value.backward()
        found.append((value, [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert found[0][0] > 0.5
    rounded = relations([x.bfloat16() for x in student], [x.bfloat16() for x in teacher])
    assert rounded.dtype == torch.float32


def test_relations_see_neither_later_tokens_nor_padding_nor_the_rows_other_items():
    student, teacher = vectors((8, 8, 8), seed=2), vectors((8, 8, 8), seed=3)
    expected = relations(student, teacher)
    earlier = (PLACES[0][[0, 1, 3]], PLACES[1][[0, 1, 3]])
    short = relations(student, teacher, earlier)
    for row, time in [(0, 6), (1, 3), (1, 4), (1, 5), (1, 6)]:  # which none of these places may see
        for x in (*student, *teacher):
            x[row, time] = 50.0
    assert torch.equal(short, relations(student, teacher, earlier))
    assert not torch.isclose(expected, relations(student, teacher))


def test_a_perfect_student_pays_nothing_and_parts_of_the_tokens_add_up():
    student, teacher = vectors((8, 4, 4), seed=4), vectors((12, 6, 6), seed=5)
    assert relations(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    parts = [(PLACES[0][part], PLACES[1][part]) for part in (slice(0, 2), slice(2, 6))]
    split = sum(relations(student, teacher, part) for part in parts)
    torch.testing.assert_close(split, relations(student, teacher))
    none = (torch.zeros(0, dtype=torch.long),) * 2
    leaf = student[0].requires_grad_()
    relations(student, teacher, none).backward()
    assert leaf.grad.abs().max() == 0


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_states_are_compared_by_the_equation_with_its_gradient(distance):
    random = torch.Generator().manual_seed(6)
    student, teacher = (
        [torch.randn(5, 4, generator=random, dtype=torch.float64) for _ in range(3)]
        for _ in range(2)
    )
    leaves = [x.clone().requires_grad_() for x in student]
    found = hidden_states(leaves, teacher, distance=distance)
    found.backward()
    total = 0.0
    for own, other, leaf in zip(student, teacher, leaves, strict=True):
        for s, t, slope in zip(own.tolist(), other.tolist(), leaf.grad.tolist(), strict=True):
            gaps = [a - b for a, b in zip(s, t, strict=True)]
            norms = math.hypot(*s), math.hypot(*t)
            near = sum(a * b for a, b in zip(s, t, strict=True)) / (norms[0] * norms[1])
            if distance == "mse":
                total += sum(gap**2 for gap in gaps) / 4 / 3
                expected = [2 * gap / 4 / 3 for gap in gaps]
            else:
                total += (1 - near) / 3
                cosines = zip(s, t, strict=True)
                expected = [
                    -(b / (norms[0] * norms[1]) - near * a / norms[0] ** 2) / 3 for a, b in cosines
                ]
            assert slope == pytest.approx(expected, rel=1e-9)
    assert found.item() == pytest.approx(total, rel=1e-12)
    assert hidden_states(teacher, teacher, distance=distance).item() == pytest.approx(0, abs=1e-12)
