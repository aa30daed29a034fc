"""Losses over what lies inside both models: hidden states, and the relations of attention.

They are sums over the supervised tokens, in fp32 at least; as for the other losses the caller
divides once, by the valid tokens of the whole optimizer step. A perfect student pays nothing. Which
layers are compared, and what projects one width to another, is decided in
retort/stages/train/features.py.
"""

# B batch, T time, N supervised tokens, D width of a vector, R relation heads, d width of one
# Q the most supervised tokens of a row, C those of a chunk
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retort.losses.distributions import exact, kl

# A chunk's relations of one vector in one model: temporaries of 8 MiB on a CPU, 128 MiB on a GPU.
BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 25}


def hidden_states(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    layers: object = "auto",
    distance: str = "mse",
) -> Tensor:
    """Returns the sum over tokens of the distance of hidden states, the mean over pairs of layers.

    Equation: mse is the mean over dimensions of (W h_S - h_T)^2, cosine is 1 - cos(W h_S, h_T), at
    each supervised token. Source: TinyBERT, Jiao et al. 2020 (arXiv:1909.10351), eq. 8; W is one
    matrix a pair, where the widths differ, trained beside the student and not kept. `layers` are
    pairs of student's and teacher's layer, by number from 1 (-1 is the last) or by a module's name;
    auto pairs layer m of M with layer m N / M of the teacher's N, as TinyBERT's uniform strategy.
    """
    total_ = exact(student[0]).new_zeros(())
    for student_ND, teacher_ND in zip(student, teacher, strict=True):
        own_ND, other_ND = exact(student_ND), exact(teacher_ND)
        if distance == "cosine":
            near_N = torch.nn.functional.cosine_similarity(own_ND, other_ND.to(own_ND.dtype), dim=1)
            total_ = total_ + (1 - near_N).sum()
        else:
            total_ = total_ + (own_ND - other_ND).square().mean(dim=1).sum()
    return total_ / len(student)


def attention_relations(
    student: "Vectors",
    teacher: "Vectors",
    *,
    layers: object = "auto",
    relation_heads: int | str = "auto",
) -> Tensor:
    """Returns the sum over tokens, pairs' mean, of KL(teacher || student) of attention's relations.

    Equation: for each of queries, keys and values, KL(softmax(A_T A_T' / sqrt(d)) || softmax(A_S
    A_S' / sqrt(d))), the mean over relation heads and the sum of the three. Source: MiniLM v2, Wang
    et al. 2021 (arXiv:2012.15828), section 3: a layer's vectors of all heads are joined and split
    again into `relation_heads`, so that no width or number of heads need be the same (auto: the
    most that divide all widths, at most the student's attention heads). A causal model sees no
    later token, so the relations of a token are those to itself and to the tokens before it in its
    item; they count at supervised tokens. A are the projections' outputs, before rotary embedding.
    `layers` as in hidden_states; auto is the last layer of both.
    """
    parts = [x[:, :0].sum() for x in student.vectors]  # 0, with a graph where there is no token
    tokens = _Grid.of(student)
    most, size = tokens.times_BQ.shape[1], max(1, _block(student, int(relation_heads)))
    apart = _relations_apart
    if size < most:  # the backward pass would hold the relations of all chunks
        apart = partial(checkpoint, _relations_apart, use_reentrant=False)
    for start in range(0, most, size):
        chunk = tokens.part(start, start + size)
        parts.append(apart(student.vectors, teacher.vectors, chunk, int(relation_heads)))
    # Three vectors a pair of layers, of which the three are added.
    return torch.stack([exact(part) for part in parts]).sum() / (len(student.vectors) / 3)


@dataclass(frozen=True)
class Vectors:
    """A model's queries, keys and values of some layers, (B, T, D) each, and where they count.

    `places` are row and time of the supervised tokens, in row-major order. `positions_BT` count
    from 0 in each item of a row; None where each row is one item, padded on the right.
    """

    vectors: list[Tensor]
    places: tuple[Tensor, Tensor]
    positions_BT: Tensor | None = None


@dataclass(frozen=True)
class _Grid:
    """The supervised tokens row by row, padded: their times, the first of their items, and whether
    there is one."""

    times_BQ: Tensor
    starts_BQ: Tensor
    counts_BQ: Tensor

    @classmethod
    def of(cls, vectors: Vectors) -> "_Grid":
        rows_N, times_N = vectors.places
        positions_BT, num_rows = vectors.positions_BT, len(vectors.vectors[0])
        starts_N = torch.zeros_like(times_N)
        if positions_BT is not None:
            starts_N = times_N - positions_BT[rows_N, times_N]
        counts_B = torch.bincount(rows_N, minlength=num_rows)
        order_N = torch.arange(len(rows_N), device=rows_N.device)
        order_N = order_N - (counts_B.cumsum(0) - counts_B)[rows_N]
        blank_BQ = times_N.new_zeros(num_rows, int(counts_B.max()))
        columns = (times_N, starts_N, torch.ones_like(times_N))
        return cls(*(blank_BQ.index_put((rows_N, order_N), column_N) for column_N in columns))

    def part(self, start: int, end: int) -> "_Grid":
        return _Grid(*(grid_BQ[:, start:end] for grid_BQ in vars(self).values()))


def _block(vectors: Vectors, relation_heads: int) -> int:
    """Returns how many tokens of each row may be in a chunk."""
    first_BTD = vectors.vectors[0]
    row_elements = int(first_BTD.shape[0] * first_BTD.shape[1] * relation_heads)
    return BLOCK_ELEMENTS[first_BTD.device.type] // max(1, row_elements)


def _relations_apart(
    student: list[Tensor], teacher: list[Tensor], tokens: _Grid, relation_heads: int
) -> Tensor:
    """Returns the sum over a chunk's tokens and all vectors of KL, the mean over relation heads."""
    at_T = torch.arange(student[0].shape[1], device=student[0].device)
    inside_BCT = (at_T >= tokens.starts_BQ[..., None]) & (at_T <= tokens.times_BQ[..., None])
    total_ = exact(student[0]).new_zeros(())
    for own_BTD, other_BTD in zip(student, teacher, strict=True):
        own_BRCT, other_BRCT = (
            _relations(vectors_BTD, tokens.times_BQ, inside_BCT, relation_heads)
            for vectors_BTD in (own_BTD, other_BTD)
        )
        apart_ = kl(other_BRCT.flatten(0, 2).to(own_BRCT.dtype), own_BRCT.flatten(0, 2))
        total_ = total_ + (apart_.view(own_BRCT.shape[:3]) * tokens.counts_BQ[:, None]).sum()
    return total_ / relation_heads


def _relations(
    vectors_BTD: Tensor, times_BC: Tensor, inside_BCT: Tensor, relation_heads: int
) -> Tensor:
    """Returns the log-probabilities of a chunk's tokens over the tokens that each sees."""
    split_BRTd = exact(vectors_BTD).unflatten(2, (relation_heads, -1)).transpose(1, 2)
    width = split_BRTd.shape[3]
    at_BRCd = times_BC[:, None, :, None].expand(-1, relation_heads, -1, width)
    scores_BRCT = split_BRTd.gather(2, at_BRCd) @ split_BRTd.mT / math.sqrt(width)
    return torch.log_softmax(scores_BRCT.masked_fill(~inside_BCT[:, None], -torch.inf), dim=3)
