"""From the last hidden states to the losses, a chunk of tokens at a time: the logits of a whole
batch never exist. The gradient is computed in the forward pass, from the same logits.
"""

# N supervised tokens, V ids of the vocabulary, W rows of the head's weight (V and its padding)
# H hidden size, C tokens of a chunk, R tokens of a block, L terms; total_ and grad_ are scalars
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retort.losses import Target
from retort.losses.distributions import exact

# The losses run on blocks of a chunk's logits: fp32 temporaries of 8 MiB stay in a CPU's caches,
# and those of 128 MiB fill a GPU.
BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 25}
# Smaller chunks cost more in calls than they save in memory.
CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Term:
    """One loss of the objective; temperature and options are bound to `loss`.

    A term of weight 0 is computed without a gradient: it only measures, as agreement does.
    """

    name: str
    loss: Callable[[Tensor, Target], Tensor]
    weight: float = 1.0


@dataclass(frozen=True)
class Sums:
    """`total_` is the weighted sum, to be backpropagated; `values_L` are the terms' own sums over
    the tokens, in their order, unweighted and without a gradient."""

    total_: Tensor
    values_L: Tensor


@dataclass(frozen=True)
class Head:
    """How a model computes logits of its last hidden states: `finish(project(hidden_NH))`.

    Only the first `vocabulary` ids count; the others are padding. `scale` is a factor on the
    logits, `softcap` bounds them: softcap * tanh(logits / softcap) (Gemma 2, arXiv:2408.00118).
    `chunk_tokens` bounds the memory and changes no result.
    """

    project: nn.Module
    vocabulary: int
    scale: float = 1.0
    softcap: float | None = None
    chunk_tokens: int = CHUNK_TOKENS

    @property
    def is_plain(self) -> bool:
        """Whether it is a linear layer without adapter, hook or quantization."""
        hooked = self.project._forward_hooks or self.project._forward_pre_hooks
        return (
            type(self.project) is nn.Linear and not hooked and "forward" not in vars(self.project)
        )

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Returns the logits of the vocabulary, (N, V)."""
        return self.finish(self.project(hidden_NH)[:, : self.vocabulary])

    def finish(self, logits_NV: Tensor) -> Tensor:
        """Returns the logits scaled and capped, in fp32 at least where either is done."""
        if self.scale != 1:
            logits_NV = exact(logits_NV) * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(exact(logits_NV) / self.softcap) * self.softcap
        return logits_NV


def losses_of(
    hidden_NH: Tensor,
    head: Head,
    target: Target,
    terms: list[Term],
    teacher: Head | None = None,
) -> Sums:
    """Returns the terms' sums over the supervised tokens of these hidden states.

    `teacher` makes dense logits of `target.teacher_hidden_NH`, chunk by chunk as well. On CUDA the
    factors of a plain head's products are in autocast's dtype; its logits and losses are always
    fp32. It takes one pass, and `total_` can be backpropagated once (`RuntimeError` after that).
    Any other head (LoRA, quantized) runs under checkpointing, which computes each chunk's logits
    twice; where FSDP shards such a head by itself, each rank must have equally many chunks. Raises
    `ValueError` for a sharded weight, which only the forward of a module that FSDP wraps gathers.
    """
    job = _ChunkJob(head, target, terms, teacher)
    if not head.is_plain:
        return _checkpointed(hidden_NH, job)
    weight_WH, bias_W = head.project.weight, head.project.bias
    if hasattr(weight_WH, "full_tensor"):
        raise ValueError("the head's weight is sharded here; wrap the whole `Objective` in FSDP")
    return Sums(*_Chunked.apply(hidden_NH, weight_WH, bias_W, job, torch.is_grad_enabled()))


def sums_of(logits_NV: Tensor, target: Target, terms: list[Term]) -> Sums:
    """Returns the terms' sums of given logits, by plain autograd."""
    values, parts = [], []
    with torch.autocast(logits_NV.device.type, enabled=False):
        for term in terms:
            with torch.set_grad_enabled(torch.is_grad_enabled() and term.weight != 0):
                value = exact(term.loss(logits_NV, target))
            values.append(value.detach())
            if term.weight:
                parts.append(term.weight * value)
        if torch.is_grad_enabled() and not any(part.requires_grad for part in parts):
            parts.append(exact(logits_NV[:, :0]).sum())  # 0, with a graph to backpropagate
        total_ = torch.stack(parts).sum() if parts else values[0].new_zeros(())
    return Sums(total_, torch.stack(values))


@dataclass(frozen=True)
class _ChunkJob:
    head: Head
    target: Target
    terms: list[Term]
    teacher: Head | None

    def part(self, start: int, end: int) -> Target:
        """Returns the target of a chunk, with a live teacher's logits in it."""
        target = self.target.part(start, end)
        if self.teacher is None or target.teacher_hidden_NH is None:
            return target
        with torch.no_grad():
            logits_CV = self.teacher.logits(target.teacher_hidden_NH)
        return replace(target, teacher_logits_NV=logits_CV, teacher_hidden_NH=None)


def _checkpointed(hidden_NH: Tensor, job: _ChunkJob) -> Sums:
    def sums(hidden_CH: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        chunk = sums_of(job.head.logits(hidden_CH), job.part(start, end), job.terms)
        return chunk.total_, chunk.values_L

    parts = [  # one chunk at least, so that there is a graph without any token
        checkpoint(sums, hidden_NH[start:end], start, end, use_reentrant=False)
        for start, end in job.target.spans(job.head.chunk_tokens)
    ]
    totals, values = zip(*parts, strict=True)
    return Sums(torch.stack(totals).sum(), torch.stack(values).sum(dim=0))


class _Chunked(torch.autograd.Function):  # type: ignore[misc]
    """The weighted total and each term's sum; `ctx` keeps the gradients for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_WH: Tensor, bias_W: Tensor | None, *more: Any
    ) -> tuple[Tensor, Tensor]:
        job, is_training = more
        wanted = [is_training and needed for needed in ctx.needs_input_grad[:3]]
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_NH, weight_WH, bias_W)]
        values_L, ctx.gradients = _walk(job, (hidden_NH, weight_WH, bias_W), wanted)
        weights_L = values_L.new_tensor([term.weight for term in job.terms])
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        total_, values_L = (values_L @ weights_L).to(dtype), values_L.to(dtype)
        ctx.mark_non_differentiable(values_L)
        return total_, values_L

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("losses_of keeps its gradients for one backward pass; call it again")
        gradients, ctx.gradients = ctx.gradients, None  # held once, autograd does not copy them
        scaled = [None if g is None else g.mul_(grad_) for g in gradients]
        pairs = zip(scaled, ctx.dtypes, strict=True)
        return (*(None if g is None else g.to(dtype) for g, dtype in pairs), None, None)


def _walk(
    job: _ChunkJob, inputs: tuple[Tensor, Tensor, Tensor | None], wanted: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Returns the terms' sums (float64) and the gradients of the total by the wanted inputs.

    One buffer holds a chunk's logits, and then their gradient. Logits, and the sum of the head's
    gradient, are fp32 at least; only the factors of the products have the dtype of `_narrow`.
    """
    hidden_NH, weight_WH, bias_W = inputs
    spans, num_ids = job.target.spans(job.head.chunk_tokens), job.head.vocabulary
    dtype, wide = _narrow(hidden_NH), exact(hidden_NH[:0]).dtype
    work_NH, work_VH = hidden_NH.to(dtype), weight_WH[:num_ids].to(dtype)
    gradients = [
        torch.zeros_like(t, dtype=wide) if t is not None and needed else None
        for t, needed in zip(inputs, wanted, strict=True)
    ]
    grad_NH, grad_WH, grad_W = gradients
    values_L = torch.zeros(len(job.terms), dtype=torch.float64, device=hidden_NH.device)
    most = max(end - start for start, end in spans)
    buffer_CV = work_NH.new_empty((most, num_ids), dtype=wide)
    for start, end in spans if len(work_NH) else ():
        hidden_CH = work_NH[start:end]
        logits_CV = buffer_CV[: len(hidden_CH)]
        _multiply(hidden_CH, work_VH.T, logits_CV, adds=False)
        if bias_W is not None:
            logits_CV += bias_W[:num_ids]
        values_L += _differentiated(job, logits_CV, job.part(start, end), any(wanted))
        slope_CV = logits_CV.to(dtype)
        if grad_NH is not None:
            _multiply(slope_CV, work_VH, grad_NH[start:end], adds=False)
        if grad_WH is not None:
            _multiply(slope_CV.T, hidden_CH, grad_WH[:num_ids], adds=True)
        if grad_W is not None:
            grad_W[:num_ids] += logits_CV.sum(dim=0)
    return values_L, gradients


def _narrow(hidden_NH: Tensor) -> torch.dtype:
    """Returns the dtype of the products' factors: on CUDA autocast's, or the hidden states' own.

    A CPU cannot add up bf16 products in fp32, and bf16 logits are several percent off.
    """
    if not hidden_NH.is_cuda:
        return exact(hidden_NH[:0]).dtype
    is_cast = torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if is_cast else hidden_NH.dtype


def _multiply(left: Tensor, right: Tensor, out: Tensor, adds: bool) -> None:
    """Writes left @ right to `out`, or adds it there; `out` may be wider (CUDA only)."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, beta=float(adds))
        return
    for start in range(0, len(out), 1 << 14):  # bounds the temporary
        rows = slice(start, start + (1 << 14))
        product = torch.mm(left[rows], right, out_dtype=out.dtype)
        if adds:
            out[rows] += product
        else:
            out[rows] = product


def _differentiated(job: _ChunkJob, logits_CV: Tensor, target: Target, is_training: bool) -> Tensor:
    """Returns the terms' sums (float64); in training it replaces the logits by their gradient."""
    values_L = torch.zeros(len(job.terms), dtype=torch.float64, device=logits_CV.device)
    size = max(1, BLOCK_ELEMENTS[logits_CV.device.type] // logits_CV.shape[1])
    for start, end in target.spans(size) if len(logits_CV) else ():
        block_RV = logits_CV[start:end]
        with torch.set_grad_enabled(is_training):
            leaf_RV = block_RV.detach().requires_grad_(is_training)
            part = target.part(start, end)
            sums = sums_of(job.head.finish(leaf_RV), part, job.terms)
        values_L += sums.values_L
        if is_training:
            block_RV.copy_(torch.autograd.grad(sums.total_, leaf_RV)[0])
    return values_L
