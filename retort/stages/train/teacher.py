"""The live teacher, in memory or behind an endpoint: its distribution takes the place of a stored
signal while the student learns.

In memory it gives hidden states; head.py computes its logits beside the losses, a chunk of tokens
at a time, and never inside the student's autocast.
"""

# B batch, T time, N supervised tokens, V vocabulary, H the teacher's width, K teacher top-k
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from retort.data import encoding
from retort.data.encoding import EncodedRow
from retort.errors import SpecError
from retort.events import Reporter
from retort.losses import Target
from retort.processes import machine
from retort.records import Example
from retort.spec import JobSpec
from retort.stages.stage import Stage, stream_examples
from retort.stages.train.batches import Batch, TrainingItem, collate, with_signals
from retort.stages.train.check import check_pair
from retort.stages.train.endpoint_teacher import EndpointTeacher, is_remote
from retort.stages.train.head import CHUNK_TOKENS, Head
from retort.stages.train.layout import layout_of
from retort.stages.train.objective import last_hidden, packs_exactly, trusted_head
from retort.stages.train.translation import OtherTokens, TranslatedSignal
from retort.store import model_folder
from retort.store.signals import Signal, captured, joined

# The number of chats on which an endpoint's tokens are compared with the student's.
CHECKED_CHATS = 3
# Of each parameter that trains: its gradient and AdamW's two averages, in fp32.
BYTES_TO_TRAIN = 12
SMALLER = (
    "set generate.dtype: bfloat16 or train.lora, serve the teacher elsewhere (generate.engine: "
    "openai with generate.endpoint), or set train.teacher: stored"
)


class LiveTeacher(Protocol):
    """A live teacher. `head` makes dense logits of the hidden states in its targets; None where the
    targets hold the distributions themselves."""

    head: Head | None

    def targets(self, batch: Batch) -> Target:
        """Returns the batch's target with the teacher's part."""

    def expect(self, items: list[TrainingItem]) -> None:
        """Announces the items that come next, so that they can be asked for ahead."""

    def close(self) -> None:
        """Frees the teacher."""


def open_teacher(
    stage: Stage, vocabulary: int, device: str, other: OtherTokens | None = None
) -> LiveTeacher:
    """Returns the teacher of a spec that `is_live`; only the first `vocabulary` ids count.

    `other` is for a teacher in memory with another tokenizer. Raises `SpecError` where an
    endpoint's tokens are not the student's or it does not score ids, and where a teacher does not
    fit in memory; `StageError` where an endpoint does not answer.
    """
    spec = stage.spec
    examples = list(islice(stream_examples(stage.input("prepare"), "train"), CHECKED_CHATS))
    tokenizer = encoding.load_tokenizer(spec.base)
    if not is_remote(spec):
        if other:
            tokenizer = encoding.load_tokenizer(spec.generate.teacher)
            vocabulary = len(other.translator.teacher.spelled)
        probe_BT = _probe(examples[0], tokenizer, device)
        teacher = _open_in_memory(stage, vocabulary, device, probe_BT)
        k = min(spec.train.live_top_k, vocabulary - 1)
        return Translated(teacher, other, k, stage.report) if other else teacher
    endpoint = EndpointTeacher(spec, vocabulary)
    try:
        endpoint.check(examples, tokenizer)
    except BaseException:
        endpoint.close()
        raise
    stage.report.note(
        f"live teacher {spec.generate.teacher} at {endpoint.shown}: the {endpoint.k} most probable "
        "ids of each token, requested once"
    )
    return AtEndpoint(endpoint)


class InMemory:
    """A teacher loaded in this process: exact at any temperature.

    `packs` says whether items that share a row stay apart in it; if not, each gets its own row.
    """

    def __init__(self, model: Any, head: Head | None, vocabulary: int, packs: bool):
        self.model, self.vocabulary, self.packs = model, vocabulary, packs
        self.head = head and replace(head, project=_InOwnPrecision(head.project))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def targets(self, batch: Batch) -> Target:
        """Returns the target with the teacher's last hidden states, or with its dense logits where
        its head alone does not give them."""
        target, device = batch.target, batch.input_ids_BT.device
        if batch.position_ids_BT is not None and not self.packs:
            batch = collate(batch.items, str(device))  # the tokens keep their order
        inputs = {
            "input_ids_BT": batch.input_ids_BT,
            "attention_mask_BT": batch.attention_mask_BT,
            "position_ids_BT": batch.position_ids_BT,
        }
        places = (batch.rows_N, batch.times_N)
        with torch.autocast(device.type, enabled=False):
            if self.head is not None:
                hidden_BTH = last_hidden(self.model, **inputs)
                return replace(target, teacher_hidden_NH=hidden_BTH[places])
            named = {name[:-3]: t for name, t in inputs.items() if t is not None}
            logits_BTV = self.model(**named, use_cache=False).logits
        return replace(target, teacher_logits_NV=logits_BTV[places][:, : self.vocabulary])

    def expect(self, items: list[TrainingItem]) -> None:
        """Does nothing: this teacher computes when it is asked."""

    def close(self) -> None:
        """Frees the model's memory."""
        self.model = self.head = None


class Translated:
    """A teacher in memory with another tokenizer: the k most probable ids of each of its tokens,
    translated to the student's. Each item is computed once: 12 k bytes a token are kept."""

    head: Head | None = None

    def __init__(self, teacher: InMemory, other: OtherTokens, k: int, report: Reporter):
        self._report, self._said = report, set[str]()
        self.teacher, self.translator, self.rows, self.k = teacher, other.translator, other.rows, k
        self._signals: dict[str, TranslatedSignal] = {}

    def targets(self, batch: Batch) -> Target:
        """Returns the batch's target with the teacher's events and chunks."""
        return with_signals(batch.target, [self._signal(row) for row, _ in batch.items])

    def _signal(self, row: EncodedRow) -> TranslatedSignal:
        if row.first == len(row.labels):
            return self.translator.nothing([], self.k)
        if row.id not in self._signals:
            theirs, text = self.rows.get(row.id, (None, ""))
            signal = self._own(theirs) if theirs else None
            (made,), reasons = self.translator.translate([(row, signal, text)], self.k)
            self._signals[row.id] = made
            for reason in reasons.keys() - self._said:
                self._said.add(reason)
                self._report.note(f"warning: {row.id} is learned from its text alone: {reason}")
        return self._signals[row.id]

    def _own(self, row: EncodedRow) -> Signal:
        """Returns the signal of a row over the teacher's own ids."""
        items: list[TrainingItem] = [(row, None)]
        batch = collate(items, str(next(self.teacher.model.parameters()).device))
        target = self.teacher.targets(batch)
        parts = []
        for start, end in target.spans(CHUNK_TOKENS):
            logits_NV = target.teacher_logits_NV
            if target.teacher_hidden_NH is not None and self.teacher.head:
                with torch.no_grad():
                    logits_NV = self.teacher.head.logits(target.teacher_hidden_NH[start:end])
            elif logits_NV is not None:
                logits_NV = logits_NV[start:end]
            assert logits_NV is not None
            all_NV = torch.log_softmax(logits_NV.float(), dim=1)
            top = all_NV.topk(self.k, dim=1)
            labels_N = target.labels_N[start:end]
            own_N = all_NV.gather(1, labels_N[:, None])[:, 0]
            columns = (top.indices, top.values, labels_N, own_N)
            dtypes = (np.int32, np.float32, np.int32, np.float32)
            arrays = (t.cpu().numpy().astype(d) for t, d in zip(columns, dtypes, strict=True))
            parts.append(captured(*arrays))
        return joined(parts)

    def expect(self, items: list[TrainingItem]) -> None:
        """Does nothing: this teacher computes when it is asked."""

    def close(self) -> None:
        """Frees the model's memory."""
        self.teacher.close()


class AtEndpoint:
    """A teacher behind an endpoint: gives the k most probable ids of each token; each item is
    requested once."""

    head: Head | None = None

    def __init__(self, endpoint: EndpointTeacher):
        self.endpoint = endpoint

    def targets(self, batch: Batch) -> Target:
        """Returns the target with the endpoint's signals; those not yet requested are, now."""
        signals = self.endpoint.signals([row for row, _ in batch.items])
        labels_N = np.concatenate([signal.target_ids_T for signal in signals])
        assert np.array_equal(labels_N, batch.target.labels_N.cpu().numpy())
        return with_signals(batch.target, signals)

    def expect(self, items: list[TrainingItem]) -> None:
        """Requests the items that were not requested before, without waiting."""
        self.endpoint.expect([row for row, _ in items])

    def close(self) -> None:
        """Closes the connection."""
        self.endpoint.close()


class _InOwnPrecision(nn.Module):  # type: ignore[misc]
    """A head outside autocast: the student's precision must not change the teacher's logits."""

    def __init__(self, project: nn.Module):
        super().__init__()
        self.project = project

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Returns the logits of hidden states."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            logits_NV: Tensor = self.project(hidden_NH)
        return logits_NV


def _open_in_memory(stage: Stage, vocabulary: int, device: str, probe_BT: Tensor) -> InMemory:
    spec, name = stage.spec, stage.spec.generate.teacher
    folder = model_folder.check(name, "generate.teacher")
    check_pair(spec, folder, model_folder.check(spec.base, "train.student"))
    _check_memory(spec, folder, device)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=spec.generate.dtype)
        model = model.to(device).eval().requires_grad_(False)
        head, note = trusted_head(model, vocabulary, probe_BT)
        packs, packing = False, "not packed"
        if spec.train.runtime.packing:
            packs, packing = packs_exactly(model, probe_BT)
    except torch.OutOfMemoryError as error:
        raise SpecError(f"generate.teacher: {name} does not fit on {device}; {SMALLER}") from error
    except (OSError, ValueError) as error:
        raise SpecError(
            f"generate.teacher: transformers cannot load {name} ({type(error).__name__}: {error}); "
            "a live teacher in memory must be a model that transformers can load"
        ) from error
    num_ids = model.get_output_embeddings().weight.shape[0]
    if num_ids < vocabulary:
        raise SpecError(
            f"generate.teacher: {name} has logits for {num_ids} ids, but the tokenizer has "
            f"{vocabulary}; it was trained with another tokenizer"
        )
    stage.report.note(f"live teacher {name} in memory: {note}; {packing}")
    return InMemory(model, head, vocabulary, packs)


def _check_memory(spec: JobSpec, teacher: Path, device: str) -> None:
    """Raises `SpecError` where teacher and student cannot fit, by the least that they need: the
    teacher's weights, and gradient and averages of a student that trains whole in this process."""
    free_bytes = _free_bytes(device)
    if free_bytes is None:
        return
    need_bytes, knobs = _weights_bytes(spec, teacher), spec.train
    layout = layout_of(knobs)
    if knobs.lora is None and not layout.shards:
        student = model_folder.locate(spec.base, "train.student")
        need_bytes += BYTES_TO_TRAIN * int(model_folder.size(student)["parameters"])
    if need_bytes > free_bytes:
        raise SpecError(
            f"generate.teacher: {spec.generate.teacher} in memory and the training of the student "
            f"need at least {need_bytes / 1e9:.1f} GB, but {device} has {free_bytes / 1e9:.1f} GB "
            f"free; {SMALLER}"
        )


def _weights_bytes(spec: JobSpec, teacher: Path) -> int:
    """Returns the bytes of the teacher's weights in the precision in which it is loaded."""
    size, dtype = model_folder.size(teacher), getattr(torch, spec.generate.dtype, None)
    if isinstance(dtype, torch.dtype):
        return int(size["parameters"]) * int(dtype.itemsize)
    return int(size["weights_bytes"])


def _free_bytes(device: str) -> int | None:
    """Returns the free memory of a device, bytes; None where the system does not tell."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory_bytes()


def _probe(example: Example, tokenizer: Any, device: str) -> Tensor:
    """Returns a prompt as a batch of one row, on which head and packing are tried."""
    prompt = encoding.render_one(tokenizer, example.messages, example.tools)
    return torch.tensor([prompt], device=device)
