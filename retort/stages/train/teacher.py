"""The live teacher: asked for its distribution while the student learns, in memory or behind an
endpoint. What it gives is the part of a batch's target that a stored signal would have given.

The surprise: in memory it gives hidden states; its logits are made beside the losses, a chunk of
tokens at a time, and never inside the student's autocast.
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
from retort.errors import SpecError
from retort.losses import Target
from retort.records import Example
from retort.spec import JobSpec
from retort.stages.stage import Stage, stream_examples
from retort.stages.train.batches import Batch, TrainingItem, collate
from retort.stages.train.endpoint_teacher import EndpointTeacher, is_remote
from retort.stages.train.head import Head
from retort.stages.train.layout import layout_of
from retort.stages.train.objective import last_hidden, packs_exactly, trusted_head
from retort.store import model_folder

# Chats of which an endpoint's tokens are compared with the student's.
CHECKED_CHATS = 3
# The gradient and AdamW's two averages, fp32, of each parameter that trains.
BYTES_TO_TRAIN = 12
SMALLER = (
    "set generate.dtype: bfloat16 or train.lora, serve the teacher elsewhere (generate.engine: "
    "openai with generate.endpoint), or set train.teacher: stored"
)


class LiveTeacher(Protocol):
    """A live teacher. `head` makes dense logits of the hidden states in its targets, where it
    gives some; None where its targets hold all."""

    head: Head | None

    def targets(self, batch: Batch) -> Target:
        """Returns the batch's target with the teacher's part."""

    def expect(self, items: list[TrainingItem]) -> None:
        """Says which items come next, so that they can be asked for while the student learns."""

    def close(self) -> None:
        """Lets go of the teacher."""


def open_teacher(stage: Stage, vocabulary: int, device: str) -> LiveTeacher:
    """Returns the teacher of a spec that `is_live`; `vocabulary` are the ids that count.

    Raises `SpecError` where its tokens are not the student's, where it does not fit in memory, and
    where an endpoint does not score ids; `StageError` where one does not answer.
    """
    spec = stage.spec
    examples = list(islice(stream_examples(stage.input("prepare"), "train"), CHECKED_CHATS))
    tokenizer = encoding.load_tokenizer(spec.train.student)
    if not is_remote(spec):
        return _open_in_memory(stage, vocabulary, device, _probe(examples[0], tokenizer, device))
    endpoint = EndpointTeacher(spec, vocabulary)
    try:
        endpoint.check(examples, tokenizer)
    except BaseException:
        endpoint.close()
        raise
    stage.report.note(
        f"live teacher {spec.generate.teacher} at {endpoint.shown}: its {endpoint.k} most probable "
        "ids of each token, asked once"
    )
    return AtEndpoint(endpoint)


class InMemory:
    """A teacher that is loaded here: exact at any temperature.

    `packs` says whether items that share a row stay apart in it; else each gets a row of its own.
    """

    def __init__(self, model: Any, head: Head | None, vocabulary: int, packs: bool):
        self.model, self.vocabulary, self.packs = model, vocabulary, packs
        self.head = head and replace(head, project=_InOwnPrecision(head.project))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def targets(self, batch: Batch) -> Target:
        """Returns the target with the teacher's last hidden states, or with dense logits where its
        head alone does not give its own."""
        target, device = batch.target, batch.input_ids_BT.device
        if batch.position_ids_BT is not None and not self.packs:
            batch = collate(batch.items, str(device))  # their tokens stand in the same order
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
            given = {name[:-3]: t for name, t in inputs.items() if t is not None}
            logits_BTV = self.model(**given, use_cache=False).logits
        return replace(target, teacher_logits_NV=logits_BTV[places][:, : self.vocabulary])

    def expect(self, items: list[TrainingItem]) -> None:
        """Does nothing: what is asked is computed here."""

    def close(self) -> None:
        """Frees the model's memory."""
        self.model = self.head = None


class AtEndpoint:
    """A teacher behind an endpoint: its k most probable ids of each token, each item asked once."""

    head: Head | None = None

    def __init__(self, endpoint: EndpointTeacher):
        self.endpoint = endpoint

    def targets(self, batch: Batch) -> Target:
        """Returns the target with what the endpoint gave, asked now where it was not before."""
        signals = self.endpoint.signals([row for row, _ in batch.items])
        labels_N = np.concatenate([signal.target_ids_T for signal in signals])
        assert np.array_equal(labels_N, batch.target.labels_N.cpu().numpy())

        def tensor(name: str, dtype: Any) -> Tensor:
            whole = np.concatenate([getattr(signal, name) for signal in signals])
            return torch.from_numpy(whole.astype(dtype)).to(batch.input_ids_BT.device)

        return replace(
            batch.target,
            ids_NK=tensor("ids_TK", np.int64),
            logprobs_NK=tensor("logprobs_TK", np.float32),
            tail_N=tensor("tail_T", np.float32),
        )

    def expect(self, items: list[TrainingItem]) -> None:
        """Asks for items that were not asked before, and does not wait."""
        self.endpoint.expect([row for row, _ in items])

    def close(self) -> None:
        """Ends the connection."""
        self.endpoint.close()


class _InOwnPrecision(nn.Module):  # type: ignore[misc]
    """A head outside autocast: a teacher's logits do not depend on the student's precision."""

    def __init__(self, project: nn.Module):
        super().__init__()
        self.project = project

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Returns what the head makes of hidden states."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            logits_NV: Tensor = self.project(hidden_NH)
        return logits_NV


def _open_in_memory(stage: Stage, vocabulary: int, device: str, probe_BT: Tensor) -> InMemory:
    spec, name = stage.spec, stage.spec.generate.teacher
    folder = model_folder.check(name, "generate.teacher")
    _check_pairing(folder, model_folder.check(spec.train.student, "train.student"))
    _check_memory(spec, folder, device)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=spec.generate.dtype)
        model = model.to(device).eval().requires_grad_(False)
        head, note = trusted_head(model, vocabulary, probe_BT)
        packs, packing = False, "each item in a row of its own"
        if spec.train.runtime.packing:
            packs, packing = packs_exactly(model, probe_BT)
    except torch.OutOfMemoryError as error:
        raise SpecError(f"generate.teacher: {name} does not fit on {device}; {SMALLER}") from error
    except (OSError, ValueError) as error:
        raise SpecError(
            f"generate.teacher: transformers cannot load {name} ({type(error).__name__}: {error}); "
            "a live teacher in memory must be a model that it knows"
        ) from error
    num_ids = model.get_output_embeddings().weight.shape[0]
    if num_ids < vocabulary:
        raise SpecError(
            f"generate.teacher: {name} has logits for {num_ids} ids, but the tokenizer spans "
            f"{vocabulary}; it is not the tokenizer that it was trained with"
        )
    stage.report.note(f"live teacher {name} in memory: {note}; {packing}")
    return InMemory(model, head, vocabulary, packs)


def _check_pairing(teacher: Path, student: Path) -> None:
    """Raises `SpecError` where the student's ids, or its template, are not the teacher's."""
    way_out = (
        "a live teacher reads the student's tokens; take a student of the same family, or set "
        "train.losses: [{name: cross_entropy}] to learn from its text alone"
    )
    if model_folder.token_map(teacher)[0] != model_folder.token_map(student)[0]:
        raise SpecError(f"{teacher} and {student} have different token maps: {way_out}")
    if model_folder.template_sha256(teacher) != model_folder.template_sha256(student):
        raise SpecError(f"{teacher} and {student} have different chat templates: {way_out}")


def _check_memory(spec: JobSpec, teacher: Path, device: str) -> None:
    """Raises `SpecError` where teacher and student cannot fit, by the least that they need: the
    teacher's weights, and gradient and averages of a student that trains whole and here."""
    free_bytes = _free_bytes(device)
    if free_bytes is None:
        return
    need_bytes, knobs = _weights_bytes(spec, teacher), spec.train
    layout = layout_of(knobs)
    if knobs.lora is None and not layout.shards:
        student = model_folder.locate(knobs.student, "train.student")
        need_bytes += BYTES_TO_TRAIN * int(model_folder.size(student)["parameters"])
    if need_bytes > free_bytes:
        raise SpecError(
            f"generate.teacher: {spec.generate.teacher} in memory and the training of the student "
            f"need {need_bytes / 1e9:.1f} GB and more, but {device} has {free_bytes / 1e9:.1f} GB "
            f"left; {SMALLER}"
        )


def _weights_bytes(spec: JobSpec, teacher: Path) -> int:
    """Returns the bytes of the teacher's weights in the precision it is asked in."""
    size, dtype = model_folder.size(teacher), getattr(torch, spec.generate.dtype, None)
    if isinstance(dtype, torch.dtype):
        return int(size["parameters"]) * int(dtype.itemsize)
    return int(size["weights_bytes"])


def _free_bytes(device: str) -> int | None:
    """Returns the memory that is left on a device, bytes; None where the system does not tell."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    memory = Path("/proc/meminfo")
    if not memory.is_file():
        return None
    lines = dict(line.split(":") for line in memory.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _probe(example: Example, tokenizer: Any, device: str) -> Tensor:
    """Returns a prompt as a batch of one row, on which the model is tried."""
    prompt = encoding.render_one(tokenizer, example.messages, example.tools)
    return torch.tensor([prompt], device=device)
