"""Student and losses in one forward, so that DDP or FSDP around it sees every parameter.

The head is called beside the model's own forward, so what a model family does between its last
hidden states and its logits must be known: `trusted_head` measures whether it is. `packs_exactly`
measures whether items that share a row stay apart.
"""

# B batch, T time, N supervised tokens, V vocabulary, H hidden size, K teacher top-k
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retort.losses import Ranges, Target
from retort.plugins import find_function
from retort.records import JsonObject
from retort.spec import JobSpec, Loss
from retort.stages.train.head import (
    BLOCK_ELEMENTS,
    CHUNK_TOKENS,
    Head,
    Sums,
    Term,
    losses_of,
    sums_of,
)


def terms_of(spec: JobSpec) -> list[Term]:
    """Returns the objective's terms over logits; with a teacher's distribution `agreement`, of
    weight 0, is the last. Those over features are of features.py."""
    losses = [loss for loss in spec.losses if loss.weight > 0 and not loss.compares_features]
    terms = [term_of(loss) for loss in losses]
    return [*terms, Term("agreement", agreement, 0.0)] if spec.distils else terms


def term_of(loss: Loss) -> Term:
    """Returns a term of the objective: its function with temperature and options bound to it."""
    function = find_function("loss", loss.name, "retort.losses")
    return Term(
        loss.name, partial(function, temperature=loss.temperature, **loss.options), loss.weight
    )


# The largest gap allowed between the head's logits and the model's own, as a share of the largest
# logit.
MOST_GAP = {torch.float64: 1e-9, torch.float32: 1e-5}
# The largest change allowed of a token's logits by packing, as a share of their norm. In bf16,
# rounding alone changed up to 0.1 of a random model's (48 layers), a wrong position or a leak 0.8
# and more.
MOST_CHANGE = {torch.float64: 1e-9, torch.float32: 1e-4}
MOST_CHANGE_ROUNDED = 0.2
# The length of the longer item on which packing is tried.
PROBE_TOKENS = 32


class Objective(nn.Module):  # type: ignore[misc]
    """The student and its losses; call it, or the wrapper around it, never its parts.

    With `head` None the model's own logits of the whole batch are used (the unfused path).
    `teacher` makes the logits of a target that holds a live teacher's hidden states.
    """

    def __init__(
        self,
        model: Any,
        head: Head | None,
        terms: list[Term],
        vocabulary: int,
        teacher: Head | None = None,
    ):
        super().__init__()
        self.model = model
        # A plain tuple: the head's layer is the model's, and must not be registered twice.
        self.parts = (head, terms, vocabulary, teacher)

    def forward(  # noqa: PLR0913, PLR0917 - a wrapper passes on plain arguments alone
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        places: tuple[Tensor, Tensor],
        target: Target,
        terms: list[Term] | None = None,
        position_ids_BT: Tensor | None = None,
    ) -> Sums:
        """Returns the sums of the terms over the tokens at `places` (row, time).

        `terms` are the objective's own where None. Rows with positions and no mask may hold several
        items, each with positions from 0.
        """
        head, own, vocabulary, teacher = self.parts
        inputs = (input_ids_BT, attention_mask_BT, position_ids_BT)
        if head is None:
            logits_NV = self.model(**_named(*inputs)).logits[places][:, :vocabulary]
            return sums_of(logits_NV, _with_logits(target, teacher), terms or own)
        hidden_BTH = last_hidden(self.model, *inputs)
        return losses_of(hidden_BTH[places], head, target, terms or own, teacher)


def last_hidden(
    model: Any,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None = None,
    position_ids_BT: Tensor | None = None,
) -> Tensor:
    """Returns the input of a causal model's head, (B, T, H), with or without adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    output = inner.base_model(**_named(input_ids_BT, attention_mask_BT, position_ids_BT))
    hidden_BTH: Tensor = output.last_hidden_state
    return hidden_BTH


def _named(
    input_ids_BT: Tensor, attention_mask_BT: Tensor | None, position_ids_BT: Tensor | None
) -> JsonObject:
    """Returns a model's arguments without those that are None: not every family takes each."""
    inputs = {
        "input_ids": input_ids_BT,
        "attention_mask": attention_mask_BT,
        "position_ids": position_ids_BT,
    }
    return {"use_cache": False} | {k: v for k, v in inputs.items() if v is not None}


def _with_logits(target: Target, teacher: Head | None) -> Target:
    """Returns a target with a live teacher's logits in place of its hidden states."""
    if teacher is None or target.teacher_hidden_NH is None:
        return target
    with torch.no_grad():
        logits_NV = teacher.logits(target.teacher_hidden_NH)
    return replace(target, teacher_logits_NV=logits_NV, teacher_hidden_NH=None)


def trusted_head(
    model: Any, vocabulary: int, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None
) -> tuple[Head | None, str]:
    """Returns the model's head if it gives the model's own logits on this batch, and a note.

    None where it does not, or where the model names none: the note says why, and the unfused path
    is taken. Scale and cap are read from the configuration: `logit_scale` (Cohere),
    `logits_scaling` (Granite, a divisor), `final_logit_softcapping` (Gemma).
    """
    project = model.get_output_embeddings()
    if project is None:
        return None, "the model names no output embedding; the whole batch's logits are computed"
    config = model.config.get_text_config()
    head = Head(
        project,
        vocabulary,
        scale=_number(config, "logit_scale", 1.0) / _number(config, "logits_scaling", 1.0),
        softcap=_number(config, "final_logit_softcapping", 0.0) or None,
        # Logits that fit into one block anyway need no chunks.
        chunk_tokens=max(CHUNK_TOKENS, BLOCK_ELEMENTS[input_ids_BT.device.type] // vocabulary),
    )
    was_training = model.training
    model.eval()
    try:
        gap = _gap(model, head, input_ids_BT, attention_mask_BT)
    finally:
        model.train(was_training)
    most = MOST_GAP.get(project.weight.dtype, 1e-2)
    if gap <= most:
        return head, f"the head alone gives the model's logits (gap {gap:.1g}); losses run chunked"
    return None, (
        f"{type(model).__name__} does more than its head between hidden states and logits (gap "
        f"{gap:.1g}, at most {most:.0g}); the whole batch's logits are computed"
    )


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _gap(model: Any, head: Head, input_ids_BT: Tensor, attention_mask_BT: Tensor | None) -> float:
    """Returns the largest gap between the head's logits and the model's, as a share of the largest;
    infinity where the head's cannot be computed."""
    own_BTV = model(**_named(input_ids_BT, attention_mask_BT, None)).logits[..., : head.vocabulary]
    mask_BT = torch.ones_like(input_ids_BT) if attention_mask_BT is None else attention_mask_BT
    real_BT = mask_BT.bool()
    try:
        hidden_BTH = last_hidden(model, input_ids_BT, attention_mask_BT)
        ours_NV = head.logits(hidden_BTH[real_BT])
    except (AttributeError, RuntimeError, TypeError):  # another family's backbone or widths
        return float("inf")
    own_NV = own_BTV[real_BT].double()
    if ours_NV.shape != own_NV.shape:
        return float("inf")
    gap = (ours_NV.double() - own_NV).abs().max() / own_NV.abs().max().clamp(min=1e-6)
    return float(gap.nan_to_num(nan=float("inf")))


def packs_exactly(model: Any, input_ids_BT: Tensor) -> tuple[bool, str]:
    """Returns whether items that share a row have the logits of each alone, and a note.

    It is tried on the first row of a batch and on its tokens in another order, in two rows of both:
    the logits are compared, and the gradient of one item by another must be exactly 0, in any
    precision. Where it is not, packing must be off: for state-space models, for models that ignore
    positions, and with flash attention, which separates items in a batch of one row alone.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return False, f"not packed: {name} attends within chunks of a row, across items"
    first = input_ids_BT[0, :PROBE_TOKENS]
    second = first.flip(0)[: max(1, 2 * len(first) // 3)]
    was_training = model.training
    model.eval()
    try:
        change, leak = _change(model, first, second), _leak(model, first, second)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return False, f"not packed: {name} could not be tried with position_ids ({error})"
    finally:
        model.train(was_training)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    most = max(MOST_CHANGE.get(dtype, MOST_CHANGE_ROUNDED) for dtype in dtypes)
    if leak == 0 and change <= most:
        note = f"packed: items that share a row do not attend to one another (gap {change:.1g})"
        return True, note
    return False, (
        f"not packed: in {name} items that share a row attend to one another or lose positions "
        f"(gap {change:.1g}, at most {most:.0g}; gradient across {leak:.1g}, must be 0)"
    )


def _shared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ids and positions of two rows: both items and a padding token, in either order."""
    pad, places = first.new_zeros(1), torch.arange(len(first), device=first.device)
    one, other = places, places[: len(second)]
    ids_BT = torch.stack([torch.cat([first, second, pad]), torch.cat([second, first, pad])])
    return ids_BT, torch.stack([torch.cat([one, other, pad]), torch.cat([other, one, pad])])


@torch.no_grad()  # type: ignore[untyped-decorator]
def _change(model: Any, first: Tensor, second: Tensor) -> float:
    """Returns the largest change of a token's centred logits by packing, over their norm."""

    def logits(ids_BT: Tensor, position_ids_BT: Tensor | None = None) -> Tensor:
        own_BTV = model(**_named(ids_BT, None, position_ids_BT)).logits.double()
        return own_BTV - own_BTV.mean(dim=-1, keepdim=True)

    alone = (logits(first[None])[0], logits(second[None])[0])
    own_BTV = torch.stack([torch.cat(alone), torch.cat(alone[::-1])])
    gap_BT = (logits(*_shared(first, second))[:, :-1] - own_BTV).norm(dim=-1)
    share_BT = gap_BT / own_BTV.norm(dim=-1).clamp(min=1e-12)
    return float(share_BT.nan_to_num(nan=float("inf")).max())


def _leak(model: Any, first: Tensor, second: Tensor) -> float:
    """Returns the largest gradient of an item's logits by the embeddings of the rest of its row.

    It is exactly 0 where nothing leads from one to the other, also in bf16, in which rounding would
    hide a small leak in the logits.
    """
    leaves: list[Tensor] = []

    def follow(module: nn.Module, inputs: Any, embedded_BTH: Tensor) -> Tensor:
        leaves.append(embedded_BTH.detach().requires_grad_())
        return leaves[-1]

    hook = model.get_input_embeddings().register_forward_hook(follow)
    try:
        with torch.enable_grad():
            ids_BT, position_ids_BT = _shared(first, second)
            logits_BTV = model(**_named(ids_BT, None, position_ids_BT)).logits.float()
            one_, other_ = logits_BTV[0, len(first) : -1], logits_BTV[1, len(second) : -1]
            total_ = one_.square().sum() + other_.square().sum()
            (grad_BTH,) = torch.autograd.grad(total_, leaves[0])
    finally:
        hook.remove()
    outside = (grad_BTH[0, : len(first)], grad_BTH[1, : len(second)], grad_BTH[:, -1])
    return max(float(part.abs().nan_to_num(nan=float("inf")).max()) for part in outside)


def agreement(logits_NV: Tensor, target: Target) -> Tensor:
    """Returns the number of tokens at which the student's most probable id is the teacher's.

    It is a term of weight 0. Of a teacher with another tokenizer it is one of the ids of its most
    probable event, and the label where there is no event. Raises `ValueError` where the target
    holds no teacher.
    """
    if target.teacher_logits_NV is not None:
        teacher_N = target.teacher_logits_NV.argmax(dim=1)
    elif isinstance(target.ids_NK, Ranges) and target.logprobs_NK is not None:
        own_N, best_N1 = logits_NV.argmax(dim=1), target.logprobs_NK.argmax(dim=1, keepdim=True)
        agrees_N = target.ids_NK.holding(own_N).gather(1, best_N1)[:, 0]
        has_event_N = target.logprobs_NK.isfinite().any(dim=1)
        return torch.where(has_event_N, agrees_N, own_N == target.labels_N).sum().float()
    elif isinstance(target.ids_NK, Tensor) and target.logprobs_NK is not None:
        first_N1 = target.logprobs_NK.argmax(dim=1, keepdim=True)
        teacher_N = target.ids_NK.gather(1, first_N1)[:, 0]
    else:
        raise ValueError("agreement compares with a teacher, but the target holds no signal")
    return (logits_NV.argmax(dim=1) == teacher_N).sum().float()
