"""How probable each local model finds given answers: perplexity, and the KL to the teacher.

It runs plain forward passes in one child process, with one model in memory at a time. Note: both
sides are cut to the tokenizer's ids before the softmax, because models pad their embeddings, each
to another size.
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
from retort.engines.transformers import end_ids
from retort.errors import SpecError
from retort.events import Reporter
from retort.losses import Target, cross_entropy, forward_kl
from retort.processes.libraries import lean_imports, resolve_device
from retort.records import JsonObject, Response
from retort.stages.evaluate.compared_models import asked_examples, read_answers, requests_of
from retort.stages.stage import Stage, from_arguments
from retort.store import model_folder

# How many of the teacher's most probable ids are kept of each token, beside one bucket for all
# others; and of how many tokens at most, 12 bytes an id.
TOP_K = 64
MOST_TOKENS = 1 << 19
# The most logits, and the most tokens, of a forward pass.
MOST_LOGITS = 1 << 27
MOST_BATCH_TOKENS = 4096
UNLOADABLE = (OSError, ValueError, ImportError, LookupError, torch.OutOfMemoryError)
MetricStatistics = dict[str, dict[str, list[float]]]  # by metric and example's id: nats, and tokens


@dataclass(frozen=True)
class LikelihoodInputs:
    """The requests, the rows' reference answers where they have any, the teacher's responses."""

    requests: list[Request]
    references: dict[str, str]
    answers: dict[str, Response]


@dataclass(frozen=True)
class ForwardModel:
    """A model in inference mode, its tokenizer and token map (None where unknown), the number of
    ids that count, and the longest row that it takes, in tokens."""

    model: Any
    tokenizer: Any
    token_map: str | None
    vocabulary: int
    max_length: int


@dataclass
class TeacherTargets:
    """The teacher's token map and distributions, which are kept after it is closed."""

    token_map: str | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    num_tokens: int = 0


@dataclass(frozen=True)
class ScoredAnswer:
    """An existing answer, and the metrics that it counts for."""

    row: EncodedRow
    metrics: tuple[str, ...]


def likelihood(arguments: JsonObject, folders: dict[str, str], report: Reporter) -> JsonObject:
    """Returns `statistics` (by role, metric and example: summed nats, tokens), `perplexity_of`
    (`reference`: the rows' own answers; `teacher`: its answers, where no row has one that is as
    written out as they are) and `notes`.

    `folders` are the models' folders by role, the teacher's first. KL(teacher || model) is taken at
    every token of the teacher's answers, over its `TOP_K` most probable ids and one bucket for all
    others: never above the KL over all ids (the data processing inequality). There is a note for a
    model that transformers cannot load, or that does not share the teacher's ids.
    """
    stage, notes = from_arguments(arguments, report), list[str]()
    if all(map(os.path.isdir, folders.values())):
        os.environ["HF_HUB_OFFLINE"] = "1"
    inputs, teacher, statistics = _inputs(stage), TeacherTargets(), dict[str, MetricStatistics]()
    for index, (role, folder) in enumerate(folders.items()):
        report.progress(index, len(folders), "models", f"{role} likelihood")
        try:
            with lean_imports():
                model = _open(stage, role, folder)
            statistics[role] = _measured(inputs, model, teacher, role == "teacher")
        except UNLOADABLE as error:
            notes.append(f"{role}: no perplexity and no KL: {type(error).__name__}: {error}")
            continue
        if teacher.targets and model.token_map != teacher.token_map:
            notes.append(f"{role}: no KL to the teacher, because its token map is another")
        del model
        _free()
    of = "reference" if inputs.references else "teacher"
    return {"statistics": statistics, "perplexity_of": of, "notes": notes}


def _inputs(stage: Stage) -> LikelihoodInputs:
    """Returns the answers to score. Where the teacher writes its answers out, a reference that is
    the bare answer does not count: its probability as a whole reply says nothing of a model."""
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


def _open(stage: Stage, role: str, folder: str) -> ForwardModel:
    """Returns a model in inference mode, on all devices where the engine would take several."""
    knobs = stage.spec.evaluate
    device = resolve_device(knobs.runtime.device)
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
    length = knobs.max_model_len or stage.spec.generate.max_model_len or limit
    return ForwardModel(model, tokenizer, token_map, min(vocabulary, width), min(length, limit))


def _free() -> None:
    """Frees the memory of a model that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _measured(
    inputs: LikelihoodInputs, model: ForwardModel, teacher: TeacherTargets, is_teacher: bool
) -> MetricStatistics:
    """Returns a model's sums by metric and example; keeps the teacher's distributions."""
    if is_teacher:
        teacher.token_map = model.token_map
    shares_ids = model.token_map is not None and model.token_map == teacher.token_map
    sums: MetricStatistics = {"perplexity": {}, "kl_to_teacher": {}}
    for answer, logits_NV in _logits(model, _answers(inputs, model, shares_ids)):
        row = answer.row
        labels_N = torch.tensor(row.labels[row.first :], device=logits_NV.device)
        if "perplexity" in answer.metrics:
            nats = cross_entropy(logits_NV, Target(labels_N))
            sums["perplexity"][row.id] = [float(nats), float(len(labels_N))]
        if "kl_to_teacher" in answer.metrics and is_teacher:
            _keep(teacher, row.id, logits_NV)
        elif "kl_to_teacher" in answer.metrics and row.id in teacher.targets:
            target = _on(teacher.targets[row.id], labels_N)
            nats = forward_kl(logits_NV, target)
            sums["kl_to_teacher"][row.id] = [float(nats), float(len(labels_N))]
    return sums


def _answers(inputs: LikelihoodInputs, model: ForwardModel, shares_ids: bool) -> list[ScoredAnswer]:
    """Returns the answers to score, encoded for a model, without those that are too long for it:
    the references, and the teacher's responses, by their ids where the model shares them."""
    chats = [request.messages for request in inputs.requests]
    tools = [request.tools for request in inputs.requests]
    rendered = encoding.render_each(model.tokenizer, chats, tools)
    by_request = zip(inputs.requests, rendered, strict=True)
    prompts = {request.id: ids for request, ids in by_request if not isinstance(ids, str)}
    ends, answers = end_ids(model.model, model.tokenizer), list[ScoredAnswer]()

    def add(name: str, ids: list[int], *metrics: str) -> None:
        if ids and name in prompts and len(prompts[name]) + len(ids) <= model.max_length:
            answers.append(ScoredAnswer(encoding.encode(name, prompts[name], ids), metrics))

    def of_text(text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    for name, text in inputs.references.items():
        add(name, encoding.with_end(of_text(text), ends), "perplexity")
    own = () if inputs.references else ("perplexity",)
    for name, response in inputs.answers.items():
        if shares_ids and response.token_ids:
            add(name, response.token_ids, *own, "kl_to_teacher")
        elif own and response.text:
            whole = response.state == "accepted"
            ids = of_text(response.text)
            add(name, encoding.with_end(ids, ends) if whole else ids, *own)
    return answers


def _logits(
    model: ForwardModel, answers: list[ScoredAnswer]
) -> Iterator[tuple[ScoredAnswer, Tensor]]:
    """Yields each answer with the logits that predict its tokens, (N, V), fp32.

    Rows of similar length share a pass; they are padded on the right, where no causal model looks.
    """
    ordered = sorted(answers, key=lambda one: (len(one.row.input_ids), one.row.id))
    width = int(model.model.get_output_embeddings().weight.shape[0])
    while ordered:
        longest = len(ordered[-1].row.input_ids)
        number = max(1, min(MOST_BATCH_TOKENS, MOST_LOGITS // width) // longest)
        ordered, batch = ordered[:-number], ordered[-number:]
        padded = [one.row.input_ids + [0] * (longest - len(one.row.input_ids)) for one in batch]
        ids_BT = torch.tensor(padded, device=model.model.device)
        logits_BTV = model.model(input_ids=ids_BT, use_cache=False).logits
        for one, logits_TV in zip(batch, logits_BTV, strict=True):
            places = slice(one.row.first, len(one.row.input_ids))
            yield one, logits_TV[places, : model.vocabulary].float()


def _keep(teacher: TeacherTargets, name: str, logits_NV: Tensor) -> None:
    """Keeps the teacher's distributions at the tokens of an answer, up to `MOST_TOKENS` in all."""
    if teacher.num_tokens >= MOST_TOKENS:
        return
    teacher.num_tokens += len(logits_NV)
    logprobs_NV = torch.log_softmax(logits_NV, dim=1)
    top_NK, ids_NK = logprobs_NV.topk(min(TOP_K, logprobs_NV.shape[1]), dim=1)
    tail_N = logprobs_NV.scatter(1, ids_NK, float("-inf")).logsumexp(dim=1)
    parts = (ids_NK, top_NK, tail_N)
    ids_NK, top_NK, tail_N = (part.cpu() for part in parts)
    labels_N = ids_NK[:, 0]  # the KL does not read them
    teacher.targets[name] = Target(labels_N, ids_NK, top_NK, tail_N)


def _on(target: Target, labels_N: Tensor) -> Target:
    """Returns a kept target with the labels of its row, on their device."""
    assert isinstance(target.ids_NK, Tensor) and target.logprobs_NK is not None
    assert target.tail_N is not None
    device = labels_N.device
    parts = (target.ids_NK, target.logprobs_NK, target.tail_N)
    return Target(labels_N, *(part.to(device) for part in parts))
