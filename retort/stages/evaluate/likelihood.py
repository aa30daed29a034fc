"""How probable each model here finds given answers, in one more child process: perplexity, and the
KL divergence to the teacher.

Plain forward passes, one model in memory at a time. The surprise: both sides are cut to the
tokenizer's ids before the softmax, for models pad their embeddings, each to another size.
"""

# B batch, T time, N tokens of one answer, V vocabulary, K teacher top-k
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from retort.data import encoding, task_types
from retort.data.encoding import EncodedRow
from retort.engines import Request
from retort.engines._local import render_each
from retort.engines.transformers import end_ids
from retort.errors import SpecError
from retort.events import Reporter
from retort.losses import Target, cross_entropy, forward_kl
from retort.records import Response
from retort.stages.evaluate.compared_models import asked_examples, read_answers, requests_of
from retort.stages.stage import Stage, from_arguments
from retort.store import model_folder

# The teacher's most probable ids that are kept of each token, beside one bucket for all others; and
# of how many tokens at most, 12 bytes an id.
TOP_K = 64
MOST_TOKENS = 1 << 19
# Most logits, and most tokens, of a forward pass.
MOST_LOGITS = 1 << 27
MOST_BATCH_TOKENS = 4096
UNLOADABLE = (OSError, ValueError, ImportError, LookupError, torch.OutOfMemoryError)
MetricStatistics = dict[str, dict[str, list[float]]]  # by metric and example's id: nats, and tokens


@dataclass(frozen=True)
class LikelihoodInputs:
    """What the models were asked, the rows' own answers where they have one, and the teacher's."""

    requests: list[Request]
    references: dict[str, str]
    answers: dict[str, Response]


@dataclass(frozen=True)
class Opened:
    """A model, its tokenizer, its token map (None where it tells none), how many ids count, and the
    longest row that it takes."""

    model: Any
    tokenizer: Any
    token_map: str | None
    vocabulary: int
    max_length: int


@dataclass
class TeacherTargets:
    """What is kept of the teacher once it is closed: its token map, and its distributions."""

    token_map: str | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    num_tokens: int = 0


@dataclass(frozen=True)
class Given:
    """An answer that exists already, and the measures that it is a part of."""

    row: EncodedRow
    of: tuple[str, ...]


def likelihood(
    arguments: dict[str, Any], folders: dict[str, str], report: Reporter
) -> dict[str, Any]:
    """Returns `statistics` (by role, metric and example: summed nats, tokens), `perplexity_of`
    (`reference`: the rows' own answers; `teacher`: its answers, where no row has one that is as
    written out as they are) and `notes`.

    `folders` says where each model is, the teacher first. KL(teacher || model) is taken at every
    token of the teacher's own answers, over its `TOP_K` most probable ids and one bucket for all
    others: never above the KL over all ids (the data processing inequality). A model that cannot
    be run plainly, or does not share the teacher's ids, has a note instead.
    """
    stage, notes = from_arguments(arguments, report), list[str]()
    if all(map(os.path.isdir, folders.values())):
        os.environ["HF_HUB_OFFLINE"] = "1"
    asked, teacher, statistics = _asked(stage), TeacherTargets(), dict[str, MetricStatistics]()
    for index, (role, folder) in enumerate(folders.items()):
        report.progress(index, len(folders), "models", f"{role} likelihood")
        try:
            opened = _open(stage, role, folder)
            statistics[role] = _measured(asked, opened, teacher, role == "teacher")
        except UNLOADABLE as error:
            notes.append(f"{role}: no perplexity and no KL: {type(error).__name__}: {error}")
            continue
        if teacher.targets and opened.token_map != teacher.token_map:
            notes.append(f"{role}: no KL to the teacher, for its token map is another")
        del opened
        _free()
    of = "reference" if asked.references else "teacher"
    return {"statistics": statistics, "perplexity_of": of, "notes": notes}


def _asked(stage: Stage) -> LikelihoodInputs:
    """Returns what is asked. A reference that is nothing but the answer is none where the teacher
    writes its answers out: how probable it is as a whole reply then says nothing of a model."""
    examples, task_type = asked_examples(stage), task_types.load(stage.spec.prepare.task_type)
    answers = read_answers(stage, "teacher") if stage.out.has("answers-teacher.jsonl") else {}
    texts = {e.id: answers[e.id].text for e in examples if e.id in answers}
    plain = sum(_same(texts[e.id], task_type.answer(texts[e.id], e)) for e in examples if texts)
    references = {e.id: e.reference for e in examples if e.reference}
    if 2 * plain < len(examples):
        bare = {e.id for e in examples if _same(e.reference or "", e.expected)}
        references = {name: text for name, text in references.items() if name not in bare}
    return LikelihoodInputs(requests_of(examples), references, answers)


def _same(text: str, answer: str | None) -> bool:
    return answer is not None and text.strip().casefold() == answer.strip().casefold()


def _open(stage: Stage, role: str, folder: str) -> Opened:
    """Returns a model in inference mode, on all devices where the engine would take several."""
    knobs = stage.spec.evaluate
    device = knobs.runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    several = knobs.runtime.tensor_parallel_size * knobs.runtime.pipeline_parallel_size > 1
    spread = "auto" if several and device == "cuda" else None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=knobs.dtype, device_map=spread
    )
    model = (model if spread else model.to(device)).eval()
    tokenizer = encoding.load_tokenizer(folder)
    width = int(model.get_output_embeddings().weight.shape[0])
    try:
        token_map, vocabulary = model_folder.token_map(model_folder.locate(folder, role))
    except SpecError:  # a tokenizer without a tokenizer.json
        token_map, vocabulary = None, len(tokenizer)
    limit = int(getattr(model.config, "max_position_embeddings", 1 << 30))
    asked = knobs.max_model_len or stage.spec.generate.max_model_len or limit
    return Opened(model, tokenizer, token_map, min(vocabulary, width), min(asked, limit))


def _free() -> None:
    """Gives back the memory of a model that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _measured(
    asked: LikelihoodInputs, opened: Opened, teacher: TeacherTargets, is_teacher: bool
) -> MetricStatistics:
    """Returns a model's sums by metric and example; of the teacher its distributions are kept."""
    if is_teacher:
        teacher.token_map = opened.token_map
    shares_ids = opened.token_map is not None and opened.token_map == teacher.token_map
    found: MetricStatistics = {"perplexity": {}, "kl_to_teacher": {}}
    for given, logits_NV in _logits(opened, _given(asked, opened, shares_ids)):
        row = given.row
        labels_N = torch.tensor(row.labels[row.first :], device=logits_NV.device)
        if "perplexity" in given.of:
            nats = cross_entropy(logits_NV, Target(labels_N))
            found["perplexity"][row.id] = [float(nats), float(len(labels_N))]
        if "kl_to_teacher" in given.of and is_teacher:
            _keep(teacher, row.id, logits_NV)
        elif "kl_to_teacher" in given.of and row.id in teacher.targets:
            target = _on(teacher.targets[row.id], labels_N)
            nats = forward_kl(logits_NV, target)
            found["kl_to_teacher"][row.id] = [float(nats), float(len(labels_N))]
    return found


def _given(asked: LikelihoodInputs, opened: Opened, shares_ids: bool) -> list[Given]:
    """Returns the answers whose probability is measured, encoded for a model, those left out that
    it cannot take: the references, and where the ids are shared the teacher's own."""
    rendered = zip(asked.requests, render_each(opened.tokenizer, asked.requests), strict=True)
    prompts = {request.id: ids for request, ids in rendered if not isinstance(ids, str)}
    ends, found = end_ids(opened.model, opened.tokenizer), list[Given]()

    def add(name: str, ids: list[int], *of: str) -> None:
        if ids and name in prompts and len(prompts[name]) + len(ids) <= opened.max_length:
            found.append(Given(encoding.encode(name, prompts[name], ids), of))

    def of_text(text: str) -> list[int]:
        return list(opened.tokenizer(text, add_special_tokens=False)["input_ids"])

    for name, text in asked.references.items():
        add(name, encoding.with_end(of_text(text), ends), "perplexity")
    own = () if asked.references else ("perplexity",)
    for name, response in asked.answers.items():
        if shares_ids and response.token_ids:
            add(name, response.token_ids, *own, "kl_to_teacher")
        elif own and response.text:
            whole = response.state == "accepted"
            ids = of_text(response.text)
            add(name, encoding.with_end(ids, ends) if whole else ids, *own)
    return found


def _logits(opened: Opened, given: list[Given]) -> Iterator[tuple[Given, Tensor]]:
    """Yields each answer with the logits that predict its tokens, (N, V), fp32.

    Rows of like length share a pass; they are padded on the right, where no model looks.
    """
    ordered = sorted(given, key=lambda one: (len(one.row.input_ids), one.row.id))
    width = int(opened.model.get_output_embeddings().weight.shape[0])
    while ordered:
        longest = len(ordered[-1].row.input_ids)
        number = max(1, min(MOST_BATCH_TOKENS, MOST_LOGITS // width) // longest)
        ordered, batch = ordered[:-number], ordered[-number:]
        padded = [one.row.input_ids + [0] * (longest - len(one.row.input_ids)) for one in batch]
        ids_BT = torch.tensor(padded, device=opened.model.device)
        logits_BTV = opened.model(input_ids=ids_BT, use_cache=False).logits
        for one, logits_TV in zip(batch, logits_BTV, strict=True):
            places = slice(one.row.first, len(one.row.input_ids))
            yield one, logits_TV[places, : opened.vocabulary].float()


def _keep(teacher: TeacherTargets, name: str, logits_NV: Tensor) -> None:
    """Keeps the teacher's distributions at the tokens of an answer, while there is room."""
    if teacher.num_tokens >= MOST_TOKENS:
        return
    teacher.num_tokens += len(logits_NV)
    logprobs_NV = torch.log_softmax(logits_NV, dim=1)
    top_NK, ids_NK = logprobs_NV.topk(min(TOP_K, logprobs_NV.shape[1]), dim=1)
    tail_N = logprobs_NV.scatter(1, ids_NK, float("-inf")).logsumexp(dim=1)
    parts = (ids_NK, top_NK, tail_N)
    ids_NK, top_NK, tail_N = (part.cpu() for part in parts)
    labels_N = ids_NK[:, 0]  # not looked at by the KL
    teacher.targets[name] = Target(labels_N, ids_NK, top_NK, tail_N)


def _on(target: Target, labels_N: Tensor) -> Target:
    """Returns a kept target beside the labels of the row, on their device."""
    assert target.ids_NK is not None and target.logprobs_NK is not None
    assert target.tail_N is not None
    device = labels_N.device
    parts = (target.ids_NK, target.logprobs_NK, target.tail_N)
    return Target(labels_N, *(part.to(device) for part in parts))
