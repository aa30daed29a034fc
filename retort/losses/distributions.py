"""Teacher and student as log-probabilities over the same buckets.

The student's tail is the logsumexp of its other logits, never 1 - sum: rounding would lose a small
tail, and its gradient.
"""

# N supervised tokens of a batch, V vocabulary, K teacher top-k, H the teacher's width
# B buckets: the V ids of a dense teacher, or the K stored ids and the tail
# C labels of a closed set, M tokens at which one is decided, R ids ranked by probability
# I ids of a block's events, one after the other; E events
from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranges:
    """Events in place of ids, for a teacher with another tokenizer: each a set of ids, of which the
    text goes on with one.

    Event k are the ids `order_V[first_NK:end_NK]`; those of a token have no id in common, and an
    empty one has no mass on either side.
    """

    first_NK: Tensor
    end_NK: Tensor
    order_V: Tensor

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return self.first_NK.shape

    def __getitem__(self, part: slice) -> "Ranges":
        """Returns those of some tokens, as views."""
        return Ranges(self.first_NK[part], self.end_NK[part], self.order_V)

    def holding(self, ids_N: Tensor) -> Tensor:
        """Returns which event holds each token's id, as a mask, (N, K)."""
        places = torch.arange(len(self.order_V), device=self.order_V.device)
        size = int(self.order_V.max()) + 1
        rank_V = torch.full((size + 1,), -1, dtype=torch.long, device=places.device)
        rank_V[self.order_V] = places
        rank_N1 = rank_V[ids_N.clamp(min=-1, max=size)][..., None]
        return (self.first_NK <= rank_N1) & (rank_N1 < self.end_NK)


@dataclass(frozen=True)
class Chunks:
    """Stretches of tokens that teacher and student both spell, each with its own tokens.

    One ends after each token of which `ends_N` (on the CPU) is true; `surprisal_N` is there the
    teacher's -log p of the whole stretch, nats, and NaN elsewhere and where it is not learned.
    """

    surprisal_N: Tensor
    ends_N: Tensor

    def __getitem__(self, part: slice) -> "Chunks":
        """Returns those of some tokens, as views."""
        return Chunks(self.surprisal_N[part], self.ends_N[part])


@dataclass(frozen=True)
class Target:
    """The teacher's distribution at each supervised token; a stored signal is at temperature 1.

    The teacher is stored (`ids_NK`, `logprobs_NK` and `tail_N`, the log-probability of all other
    ids) or dense: `teacher_logits_NV`, logits or log-probabilities over the student's own ids; the
    dense one counts where both are there. `teacher_hidden_NH` are a live teacher's last hidden
    states, of which `retort.stages.train.head` makes dense logits a chunk at a time. `choices_NC`
    are the ids with which the labels of a closed set begin, at the token where the label is
    decided, and -1 elsewhere (see `retort.losses.choices`). A row holds no id twice. Of a teacher
    with another tokenizer `ids_NK` are `Ranges` of the student's ids, and `chunks` are known.
    """

    labels_N: Tensor
    ids_NK: Tensor | Ranges | None = None
    logprobs_NK: Tensor | None = None
    tail_N: Tensor | None = None
    teacher_logits_NV: Tensor | None = None
    teacher_hidden_NH: Tensor | None = None
    choices_NC: Tensor | None = None
    chunks: Chunks | None = None

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Returns the tokens in parts of about `size`, of which none ends inside a chunk.

        There is one part at least, which may be empty.
        """
        number = len(self.labels_N)
        if self.chunks is None:
            return [(at, min(at + size, number)) for at in range(0, max(number, 1), size)]
        ends = (self.chunks.ends_N.nonzero()[:, 0] + 1).tolist()
        found: list[tuple[int, int]] = []
        at = 0
        while at < number or not found:
            place = bisect_right(ends, at + size)
            before = ends[place - 1] if place else 0
            after = before if before > at else (ends[place] if place < len(ends) else number)
            found.append((at, after))
            at = after
        return found

    def part(self, start: int, end: int) -> "Target":
        """Returns the tokens from `start` to before `end`, as views."""
        whole = ((field.name, getattr(self, field.name)) for field in fields(self))
        return Target(**{name: None if t is None else t[start:end] for name, t in whole})


def exact(values: Tensor) -> Tensor:
    """Returns the values in fp32 at least; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def pair(logits_NV: Tensor, target: Target, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities of teacher and student, in fp32 at least, (N, B) each.

    A stored signal has K + 1 buckets, the last one the tail; at T != 1 the tail is tempered on both
    sides as if it were one token. Raises `ValueError` where the target holds no teacher, or one of
    another vocabulary.
    """
    dense_NV = target.teacher_logits_NV
    if dense_NV is not None:
        if dense_NV.shape != logits_NV.shape:
            raise ValueError(
                f"the teacher's logits are {tuple(dense_NV.shape)}, the student's "
                f"{tuple(logits_NV.shape)}; slice both to the tokenizer's ids"
            )
        return _log_softmax(dense_NV, logits_NV, temperature)
    ids_NK, top_NK, tail_N = target.ids_NK, target.logprobs_NK, target.tail_N
    if ids_NK is None or top_NK is None or tail_N is None:
        raise ValueError("the loss compares with a teacher, but the target holds no signal")
    if isinstance(ids_NK, Ranges):
        teacher_NB = torch.cat([top_NK, tail_N[:, None]], dim=1)
        student_NB = _Events.apply(logits_NV, ids_NK.first_NK, ids_NK.end_NK, ids_NK.order_V)
    elif ids_NK.shape[1] == logits_NV.shape[1]:  # every id is stored: there is no tail
        teacher_NB, student_NB = top_NK, exact(logits_NV).gather(1, ids_NK)
    else:
        teacher_NB = torch.cat([top_NK, tail_N[:, None]], dim=1)
        student_NB = _Buckets.apply(logits_NV, ids_NK)
    return _log_softmax(teacher_NB, student_NB, temperature)


def _log_softmax(
    teacher_NB: Tensor, student_NB: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns both as log-probabilities at a temperature, in the student's dtype, fp32 at least."""
    student_NB = exact(student_NB)
    teacher_NB = teacher_NB.to(student_NB.dtype)
    if temperature != 1:
        teacher_NB, student_NB = teacher_NB / temperature, student_NB / temperature
    return torch.log_softmax(teacher_NB, dim=1), torch.log_softmax(student_NB, dim=1)


class _Buckets(torch.autograd.Function):  # type: ignore[misc]
    """The logits of the stored ids, and the logsumexp of all others: (N, K + 1).

    One pass of exp serves value and gradient: d tail / d logit = exp(logit - tail).
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
        others_NV = torch.empty_like(logits_NV, dtype=exact(logits_NV[:0]).dtype).copy_(logits_NV)
        top_NK = others_NV.gather(1, ids_NK)
        others_NV.scatter_(1, ids_NK, torch.finfo(others_NV.dtype).min)
        highest_N1 = others_NV.amax(dim=1, keepdim=True)
        sum_N1 = others_NV.sub_(highest_N1).exp_().sum(dim=1, keepdim=True)
        ctx.save_for_backward(others_NV, sum_N1, ids_NK)
        ctx.dtype = logits_NV.dtype
        return torch.cat([top_NK, highest_N1 + sum_N1.log()], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_NB: Tensor) -> tuple[Tensor, None]:
        others_NV, sum_N1, ids_NK = ctx.saved_tensors
        grad_NV = others_NV * (grad_NB[:, -1:] / sum_N1)
        grad_NV.scatter_(1, ids_NK, grad_NB[:, :-1])
        return grad_NV.to(ctx.dtype), None


class _Events(torch.autograd.Function):  # type: ignore[misc]
    """The logsumexp of the ids of each event, -inf for an empty one, and of all others: (N, K + 1).

    The events' ids stand one after the other, so that no (N, K, V) or (V, N) copy is made: I is at
    most N V, and about N K where most events are one id.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, first_NK: Tensor, end_NK: Tensor, order_V: Tensor
    ) -> Tensor:
        lengths_E = (end_NK - first_NK).flatten()
        number, width = logits_NV.shape
        starts_E = lengths_E.cumsum(0) - lengths_E
        event_I = torch.repeat_interleave(lengths_E)
        places_I = torch.arange(len(event_I), device=logits_NV.device) - starts_E[event_I]
        ids_I = order_V[first_NK.flatten()[event_I] + places_I]
        at_I = event_I.div(max(first_NK.shape[1], 1), rounding_mode="floor") * width + ids_I
        others_NV = torch.empty_like(logits_NV, dtype=exact(logits_NV[:0]).dtype).copy_(logits_NV)
        flat_ = others_NV.view(-1)
        own_I = flat_[at_I]
        highest_E = torch.segment_reduce(own_I, "max", lengths=lengths_E, unsafe=True)
        own_I = own_I.sub_(highest_E[event_I]).exp_()
        sum_E = torch.segment_reduce(own_I, "sum", lengths=lengths_E, unsafe=True, initial=0)
        flat_[at_I] = torch.finfo(others_NV.dtype).min
        highest_N1 = others_NV.amax(dim=1, keepdim=True)
        sum_N1 = others_NV.sub_(highest_N1).exp_().sum(dim=1, keepdim=True)
        ctx.save_for_backward(others_NV, sum_N1, own_I, sum_E, event_I, at_I)
        ctx.dtype = logits_NV.dtype
        events_NK = torch.where(lengths_E > 0, highest_E + sum_E.log(), -torch.inf)
        return torch.cat([events_NK.view(number, -1), highest_N1 + sum_N1.log()], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_NB: Tensor) -> tuple[Tensor, None, None, None]:
        others_NV, sum_N1, own_I, sum_E, event_I, at_I = ctx.saved_tensors
        grad_NV = others_NV * (grad_NB[:, -1:] / sum_N1)
        grad_E = grad_NB[:, :-1].flatten() / sum_E
        grad_NV.view(-1)[at_I] = own_I * grad_E[event_I]
        return grad_NV.to(ctx.dtype), None, None, None


def kl(first_NB: Tensor, second_NB: Tensor) -> Tensor:
    """Returns KL(first || second) of each token, nats, (N,); 0 log 0 is 0.

    `where` is applied to the input: on the product the gradient of 0 times inf would be NaN.
    """
    mass_NB = first_NB.exp()
    gap_NB = torch.where(mass_NB > 0, first_NB - second_NB, 0.0)
    return (mass_NB * gap_NB).sum(dim=1)


def mixture(share: float, first_NB: Tensor, second_NB: Tensor) -> Tensor:
    """Returns log(share * first + (1 - share) * second), mixed in log space, (N, B)."""
    if share in (0.0, 1.0):
        return first_NB if share == 1 else second_NB
    empty_NB = first_NB.isneginf() & second_NB.isneginf()
    if empty_NB.any():  # the gradient of logaddexp(-inf, -inf) is NaN
        first_NB, second_NB = (x.masked_fill(empty_NB, 0.0) for x in (first_NB, second_NB))
        return _mixed(share, first_NB, second_NB).masked_fill(empty_NB, -torch.inf)
    return _mixed(share, first_NB, second_NB)


def _mixed(share: float, first_NB: Tensor, second_NB: Tensor) -> Tensor:
    one = torch.tensor(share, dtype=torch.float64)
    first_NB, second_NB = first_NB + one.log().item(), second_NB + (-one).log1p().item()
    return torch.logaddexp(first_NB, second_NB)


def head_share(teacher_NB: Tensor, student_NB: Tensor, target: Target, mu: float) -> Tensor:
    """Returns the share of the gap |p - q| that lies in the teacher's head, without gradient, (N,).

    The head is the most probable ids while their mass together is at most `mu`, and always the
    first; a stored signal's tail bucket is never in it. Without any gap the share is 1/2.
    """
    mass_NB, gap_NB = (
        teacher_NB.detach().exp(),
        (teacher_NB.exp() - student_NB.exp()).detach().abs(),
    )
    has_tail = target.teacher_logits_NV is None and mass_NB.shape[1] == _width(target) + 1
    ranked_NB = mass_NB[:, :-1] if has_tail else mass_NB
    num_ranked = 32
    while True:  # most heads are a few ids, and ranking all V would take most of the time
        num_ranked = min(num_ranked, ranked_NB.shape[1])
        top_NR, at_NR = ranked_NB.topk(num_ranked, dim=1)
        inside_NR = top_NR.cumsum(dim=1) <= mu
        inside_NR[:, 0] = True
        if num_ranked == ranked_NB.shape[1] or not inside_NR[:, -1].any():
            break
        num_ranked *= 16
    head_N, all_N = (gap_NB.gather(1, at_NR) * inside_NR).sum(dim=1), gap_NB.sum(dim=1)
    return torch.where(all_N > 0, head_N / all_N.where(all_N > 0, 1.0), 0.5)


def _width(target: Target) -> int:
    return 0 if target.ids_NK is None else target.ids_NK.shape[1]


def label_pair(logits_NV: Tensor, target: Target, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns teacher and student over the labels of a closed set, (M, C) log-probabilities each.

    M are the tokens at which a label is decided and the teacher's probability of at least one label
    is known; columns without a label are -inf on both sides. Raises `ValueError` where the target
    holds no labels or no teacher.
    """
    if target.choices_NC is None:
        raise ValueError("the target holds no labels; label_distribution needs a closed set")
    teacher_NC = _teacher_of(target, target.choices_NC)
    at_M = torch.isfinite(teacher_NC).any(dim=1).nonzero()[:, 0]
    choices_MC = target.choices_NC[at_M]
    student_MC = exact(logits_NV[at_M[:, None], choices_MC.clamp(min=0)])
    student_MC = student_MC.masked_fill(choices_MC < 0, -torch.inf)
    return _log_softmax(teacher_NC[at_M], student_MC, temperature)


def _teacher_of(target: Target, choices_NC: Tensor) -> Tensor:
    """Returns the teacher's unnormalised log-probability of each label, -inf if unknown, (N, C)."""
    ids_NC = choices_NC.clamp(min=0)
    if target.teacher_logits_NV is not None:
        teacher_NC = exact(target.teacher_logits_NV.gather(1, ids_NC))
    elif target.ids_NK is None or target.logprobs_NK is None:
        raise ValueError("the loss compares with a teacher, but the target holds no signal")
    elif isinstance(target.ids_NK, Ranges):
        # Labels that one event holds share its mass, for it does not tell them apart.
        holds_NCK = torch.stack([target.ids_NK.holding(ids_N) for ids_N in choices_NC.T], dim=1)
        num_N1K = holds_NCK.sum(dim=1, keepdim=True).clamp(min=1)
        shared_N1K = exact(target.logprobs_NK)[:, None, :] - num_N1K.log()
        teacher_NC = torch.where(holds_NCK, shared_N1K, -torch.inf).amax(dim=2)
    else:
        same_NCK = ids_NC[:, :, None] == target.ids_NK[:, None, :]
        stored_N1K = exact(target.logprobs_NK)[:, None, :]
        teacher_NC = torch.where(same_NCK, stored_N1K, -torch.inf).amax(dim=2)
    return teacher_NC.masked_fill(choices_NC < 0, -torch.inf)
