"""The training rows: token ids, shifted labels, and the teacher's distribution at each label.

They are joined by id, and every join is checked, so that no signal is trained on beside another
token.
"""

# T time, K teacher top-k
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retort.data import encoding
from retort.data.encoding import IGNORED, EncodedRow
from retort.errors import DataError
from retort.losses.choices import label_choices
from retort.records import Decision, Example, Response, Split, content_id, ids_sha256
from retort.spec import JobSpec
from retort.stages.stage import (
    Stage,
    read_decisions,
    read_examples,
    read_responses,
    read_signals,
)
from retort.stages.teacher_requests import instruction_of
from retort.stages.train import other_tokens
from retort.stages.train.alignment import (
    aligned,
    check_pairing,
    ends_well,
    largest,
    learned,
    within,
)
from retort.stages.train.batches import TrainingItem
from retort.stages.train.other_tokens import ByBytes
from retort.stages.train.translation import TranslatedSignal
from retort.store import model_folder
from retort.store.signals import Signal, cut

ODD_END = "they have an end token before their end, which a text may spell out"
# The choices of an answer without a label, in a job with a loss over labels.
NO_CHOICES: tuple[int, list[int]] = (0, [])


@dataclass(frozen=True)
class TrainingData:
    """The training and validation items, and how many were left out.

    `weights` says how often a pass shows each training item, on average; `teachers` who wrote a
    response, by its id, where there are several. `by_bytes` is what was found where the teacher has
    another tokenizer.
    """

    train: list[TrainingItem]
    validation: list[TrainingItem]
    num_too_long: int
    weights: list[float]
    warnings: list[str] = field(default_factory=list)
    teachers: dict[str, str] = field(default_factory=dict)
    by_bytes: ByBytes = field(default_factory=ByBytes)

    @property
    def num_draws(self) -> int:
        """The number of items in a pass."""
        return max(1, round(sum(self.weights)))


def build(
    stage: Stage, base: Path, end_ids: list[int], only: frozenset[str] | None = None
) -> TrainingData:
    """Returns the items of both splits, encoded for the student; of `only` these responses.

    Where teacher and student share a token map, the teacher's own ids are trained on; otherwise
    its text is tokenized again, and its signal translated. Raises `DataError` where rows and
    signals do not belong together, and where no row is left.
    """
    tokenizer = encoding.load_tokenizer(stage.spec.base)
    captured = stage.facts("generate")
    token_map, vocabulary = model_folder.token_map(base)
    shared = captured.get("token_map_sha256") == token_map
    uses_signal, chooses = stage.spec.uses_signal, _chooses(stage.spec)
    # Each has a template of its own where the tokenizers differ.
    if stage.spec.distils and shared:
        check_pairing(captured["template_sha256"], base)
    examples = {e.id: e for e in read_examples(stage.input("prepare"), "train", "validation")}
    decisions = read_decisions(stage.input("curate"))
    kept = [r for r in _kept(stage, decisions, examples) if only is None or r.id in only]
    teachers = {response.id: response.teacher for response in kept if response.teacher}
    if stage.spec.train.text == "expected":
        kept, decisions = with_own_answers(kept, examples, decisions)
    signals = _signals(stage) if uses_signal else {}
    own = [examples[r.example_id] for r in kept]
    chats = [r.messages or example.messages for r, example in zip(kept, own, strict=True)]
    prompts = encoding.render_each(tokenizer, chats, [example.tools for example in own])
    table = min(vocabulary, int(model_folder.text_config(base).get("vocab_size") or vocabulary))
    items: dict[Split, list[TrainingItem]] = {"train": [], "validation": [], "test": []}
    texts: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    num_too_long, num_other, weights = 0, 0, []
    for response, prompt_ids in zip(kept, prompts, strict=True):
        decision = decisions[response.id]
        text, ids = learned(tokenizer, response, decision, shared and not stage.spec.generate.stop)
        row = _row(response, prompt_ids, ids, end_ids, table)
        if isinstance(row, str):
            left_out[row] += 1
            continue
        num_other += uses_signal and shared and _differs(row, response)
        if chooses:
            answer_ids = row.labels[row.first :]
            decided = choices(tokenizer, examples[response.example_id], text, answer_ids)
            row = replace(row, choices=decided or NO_CHOICES)
        if len(row.input_ids) >= stage.spec.train.max_length:
            num_too_long += 1
            continue
        signal, texts[row.id] = None, text
        if uses_signal and shared:
            signal = within(vocabulary, aligned(row, signals.get(response.id)))
        split = examples[response.example_id].split
        items[split].append((row, signal))
        if split == "train":
            weights.append(decision.weight)
    by_bytes = ByBytes()
    if not shared and (other := other_tokens.translator(stage, tokenizer, table, end_ids)):
        pairs = [(r, e) for r, e in zip(kept, own, strict=True) if r.id in texts]
        by_bytes = other_tokens.by_bytes(stage, items, other, signals, (texts, pairs, decisions))
    warnings = _warnings(
        num_other if instruction_of(stage.spec) is None else 0, left_out, by_bytes.text_alone
    )
    _check(stage, items["train"], warnings)
    return TrainingData(
        items["train"],
        items["validation"],
        num_too_long,
        weights,
        warnings,
        teachers,
        by_bytes,
    )


def _kept(
    stage: Stage, decisions: dict[str, Decision], examples: dict[str, Example]
) -> list[Response]:
    """Returns the kept responses, without those of a teacher that a control does without, to as
    many training examples as the spec says."""
    responses, without = read_responses(stage.input("generate")), stage.spec.train.without_teacher
    kept = (response for response in responses if decisions[response.id].kept)
    known = [response for response in kept if not (without and response.teacher == without)]
    return fewest(known, examples, stage.spec.train.max_examples)


def fewest(
    kept: list[Response], examples: dict[str, Example], number: int | None
) -> list[Response]:
    """Returns the responses to so many of the training examples, and all others. Whatever the
    number, the examples are the first in one order, so that fewer of them are among more."""
    asked = {r.example_id for r in kept if examples[r.example_id].split == "train"}
    chosen = set(sorted(asked, key=lambda id: (content_id(id), id))[:number])
    return [r for r in kept if r.example_id in chosen or r.example_id not in asked]


def _signals(stage: Stage) -> dict[str, Signal]:
    """Returns what is read of the stored signals, by the id of the response."""
    stored = read_signals(stage.input("generate"))
    return {name: largest(stage.spec.train.top_k, signal) for name, signal in stored.items()}


def _warnings(num_other: int, left_out: Counter[str], text_alone: Counter[str]) -> list[str]:
    """Returns a line for each thing about the rows that a person should know."""
    lines = []
    if num_other:
        lines.append(
            f"{num_other:,} prompts are not rendered as when the teacher answered, so its signal "
            "follows another prompt; if the chat template writes the date, --force generate asks "
            "the teacher again"
        )
    for reason, number in left_out.most_common():
        lines.append(f"{number:,} responses are not learned from: {reason}")
    for reason, number in text_alone.most_common():
        lines.append(f"{number:,} responses are learned from by their text alone: {reason}")
    return lines


def with_own_answers(
    kept: list[Response], examples: dict[str, Example], decisions: dict[str, Decision]
) -> tuple[list[Response], dict[str, Decision]]:
    """Returns the responses whose example has an expected answer, and decisions to learn that.

    A reply inside a conversation is left out: the expected answer is that of the last turn.
    """
    answered, target_texts = [], {}
    for response in kept:
        example = examples[response.example_id]
        own = example.expected if example.reference is None else example.reference
        if own is not None and response.messages is None:
            answered.append(replace(response, state="accepted"))
            target_texts[response.id] = replace(decisions[response.id], target_text=own)
    return answered, target_texts


def _row(
    response: Response, prompt: list[int] | str, ids: list[int], end_ids: list[int], table: int
) -> EncodedRow | str:
    """Returns the training sequence of a prompt, or why it has none, and of a response's ids; or
    why it is not learned from. The student's table has `table` ids."""
    if isinstance(prompt, str):
        return f"the student cannot be given their prompt ({prompt})"
    if response.state == "accepted":
        ids = encoding.with_end(ids, end_ids)
    if not (prompt and ids):
        return "their prompt or answer is empty"
    if max(*prompt, *ids) >= table:
        return f"they hold a token id beyond the student's {table:,}"
    row = encoding.encode(response.id, prompt, ids)
    return row if ends_well(row, end_ids, response.state) else ODD_END


def _differs(row: EncodedRow, response: Response) -> bool:
    """Whether the teacher's prompt was another than the student's."""
    prompt_ids = row.input_ids[: row.first + 1]
    return bool(response.prompt_sha256) and ids_sha256(prompt_ids) != response.prompt_sha256


def _check(stage: Stage, train: list[TrainingItem], warnings: list[str]) -> None:
    """Says the warnings. Raises `DataError` when there is nothing to learn from."""
    spec = stage.spec
    if not train:
        longest = f"train.max_length: {spec.train.max_length}"
        if warnings:
            raise DataError(f"train: there is nothing to learn from; {'; '.join(warnings)}")
        if spec.train.text == "teacher":
            raise DataError(f"train: no kept response fits {longest}; raise it")
        raise DataError(
            f"train.text: expected needs rows with an answer that fits {longest}, and there are "
            "none; raise it, or set train.text: teacher"
        )
    if _chooses(spec) and not any(has_choices(row) for row, _ in train):
        raise DataError(
            "train.losses: label_distribution finds no label in any kept response; it is for nli "
            "and multiple choice, where the rows or prepare.labels name the possible answers"
        )
    for text in warnings:
        stage.report.note(f"warning: {text}")


def has_choices(row: EncodedRow) -> bool:
    """Whether a row's answer decides a label of a closed set."""
    return row.choices is not None and bool(row.choices[1])


def _chooses(spec: JobSpec) -> bool:
    """Whether the objective has a loss over the labels of a closed set."""
    return any(loss.name == "label_distribution" for loss in spec.losses)


def choices(
    tokenizer: Any, example: Example, text: str, ids: list[int]
) -> tuple[int, list[int]] | None:
    """Returns the token of an answer at which its label is decided, and the labels' ids there.

    The label is the last one in the text, in upper or lower case. None where the example has no
    closed set, the text no label, or the tokens are not those of the text.
    """
    folded, labels = text.lower(), list(example.options or {})
    places = {label: folded.rfind(label.lower()) for label in labels}
    label = max(places, key=lambda name: (places[name], len(name)), default=None)
    if label is None or places[label] < 0 or len(folded) != len(text):
        return None
    start, end = places[label], places[label] + len(label)
    written = text[start:end]
    if written[:1].isupper():
        labels = [name[:1].upper() + name[1:] for name in labels]

    def encode(whole: str) -> list[int]:
        return list(tokenizer(whole, add_special_tokens=False)["input_ids"])

    return label_choices(encode, ids, (text[:start], written, text[end:]), labels)


def supervised(items: list[TrainingItem]) -> int:
    """Returns the number of supervised tokens of the items."""
    return sum(len(row.labels) - row.first for row, _ in items)


def blank(item: TrainingItem) -> TrainingItem:
    """Returns the item without supervised tokens, for a process that has no part of a step."""
    row, signal = item
    choices = row.choices and NO_CHOICES
    row = replace(row, labels=[IGNORED] * len(row.labels), first=len(row.labels), choices=choices)
    if isinstance(signal, TranslatedSignal):
        return row, signal.part(0)
    return row, signal and cut(signal, 0, 0)


def draws(weights: list[float], random: np.random.Generator) -> Any:
    """Returns item indices, an item of weight w floor(w) or ceil(w) times.

    Systematic resampling: as many draws as the weights add up to, each item in its exact share on
    average. Source: Kitagawa, "Monte Carlo Filter and Smoother" (1996), appendix.
    """
    ends = np.cumsum(np.asarray(weights, dtype=np.float64))
    number = max(1, round(float(ends[-1])))
    points = (random.random() + np.arange(number)) * (ends[-1] / number)
    return np.searchsorted(ends, points, side="right").clip(max=len(weights) - 1)


def steps_of_epoch(data: TrainingData, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Returns the item indices of each optimizer step of an epoch: shuffled, then grouped by length
    within windows of 16 steps, so that little is padded. The same arguments give the same steps."""
    random, items = np.random.default_rng([seed, epoch]), data.train
    even = all(weight == 1.0 for weight in data.weights)
    order = random.permutation(len(items) if even else draws(data.weights, random))
    lengths = np.array([len(row.input_ids) for row, _ in items])
    window = batch_size * 16
    steps: list[list[int]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        steps += [part[at : at + batch_size].tolist() for at in range(0, len(part), batch_size)]
    return [steps[index] for index in random.permutation(len(steps))]


def audit(items: list[TrainingItem], tokenizer: Any) -> str:
    """Returns four rows decoded: the text before the supervised tokens, and each of these."""
    lines = []
    for row, _ in items[:4]:
        read = tokenizer.decode(row.input_ids[: row.first + 1])
        tokens = [tokenizer.decode([label]) for label in row.labels[row.first :]]
        lines += [f"example {row.id}", f"  read:    {read!r}", f"  learned: {tokens}", ""]
    return "\n".join(lines)
