"""Student and losses in one forward, so that whatever wraps it (DDP, FSDP) sees every parameter.

A head is called beside the model's own forward, so what a family does between its last hidden
states and its logits must be known: `trusted_head` measures it, and refuses what it cannot follow.
"""

# B batch, T time, N supervised tokens, V vocabulary, H hidden size, K teacher top-k
from typing import Any

import torch
from torch import Tensor, nn

from retort.losses import Target
from retort.train.head import Head, Sums, Term, losses_of, sums_of

# Largest gap between the head's logits and the model's own, as a share of the largest logit.
MOST_GAP = {torch.float64: 1e-9, torch.float32: 1e-5}


class Objective(nn.Module):  # type: ignore[misc]
    """The student and what it is trained on; call it, or what wraps it, never the parts.

    `head` None: the model's own logits are taken, of the whole batch (the unfused path).
    """

    def __init__(self, model: Any, head: Head | None, terms: list[Term], vocabulary: int):
        super().__init__()
        self.model = model
        # A plain tuple: the head's layer is the model's, and must not be registered twice.
        self.parts = (head, terms, vocabulary)

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        places: tuple[Tensor, Tensor],
        target: Target,
        terms: list[Term] | None = None,
    ) -> Sums:
        """Returns the sums of the terms (or of these) over the tokens at the places (row, time)."""
        head, own, vocabulary = self.parts
        if head is None:
            found = self.model(
                input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False
            )
            return sums_of(found.logits[places][:, :vocabulary], target, terms or own)
        hidden_BTH = last_hidden(self.model, input_ids_BT, attention_mask_BT)
        return losses_of(hidden_BTH[places], head, target, terms or own)


def last_hidden(model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Returns what a causal model, with or without adapters, gives its head, (B, T, H)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = inner.base_model(
        input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False
    )
    hidden_BTH: Tensor = found.last_hidden_state
    return hidden_BTH


def trusted_head(
    model: Any, vocabulary: int, input_ids_BT: Tensor, attention_mask_BT: Tensor
) -> tuple[Head | None, str]:
    """Returns the model's head, once it gave the model's own logits on this batch; and a note.

    None where it did not, or where there is none: the note says why, and the unfused path serves.
    Scale and cap are read from the configuration: `logit_scale` (Cohere), `logits_scaling`
    (Granite, a divisor), `final_logit_softcapping` (Gemma).
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
def _gap(model: Any, head: Head, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> float:
    """Returns the largest gap of the two ways to the logits; infinity where one cannot be gone."""
    own_BTV = model(
        input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False
    ).logits[..., : head.vocabulary]
    seen = attention_mask_BT.bool()
    try:
        hidden_BTH = last_hidden(model, input_ids_BT, attention_mask_BT)
        ours_NV = head.logits(hidden_BTH[seen])
    except (AttributeError, RuntimeError, TypeError):  # another family's backbone or widths
        return float("inf")
    own_NV = own_BTV[seen].double()
    if ours_NV.shape != own_NV.shape:
        return float("inf")
    gap = (ours_NV.double() - own_NV).abs().max() / own_NV.abs().max().clamp(min=1e-6)
    return float(gap.nan_to_num(nan=float("inf")))


def agreement(logits_NV: Tensor, target: Target) -> Tensor:
    """Returns at how many tokens the student's first choice is the teacher's: a term of weight 0.

    Raises `ValueError` where the target holds no teacher.
    """
    if target.teacher_logits_NV is not None:
        teacher_N = target.teacher_logits_NV.argmax(dim=1)
    elif target.ids_NK is not None and target.logprobs_NK is not None:
        first_N1 = target.logprobs_NK.argmax(dim=1, keepdim=True)
        teacher_N = target.ids_NK.gather(1, first_N1)[:, 0]
    else:
        raise ValueError("agreement compares with a teacher, but the target holds no signal")
    return (logits_NV.argmax(dim=1) == teacher_N).sum().float()
