"""The rows of an on-policy round: the student's own answers, and the teacher's scores of them.

The ids that the student wrote are what it learns from; they are never tokenized again.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retort.data import encoding, text_stats
from retort.errors import DataError
from retort.records import Example, Response, Split
from retort.spec import rounds
from retort.stages.stage import Stage, read_decisions, read_responses, read_signals, stream_examples
from retort.stages.train import other_tokens, training_rows
from retort.stages.train.alignment import aligned, ends_well, largest, within
from retort.stages.train.batches import TrainingItem
from retort.stages.train.training_rows import TrainingData
from retort.stages.train.translation import TranslatedSignal
from retort.store import model_folder
from retort.store.signals import Signal

# An answer repeats that ends in a loop, or has more than this share of its phrases twice.
REPEATED = 0.4
UNKNOWN = "the tokens of teacher and student do not spell the same text"
Signals = dict[str, Signal]


@dataclass(frozen=True)
class Answers:
    """What became of the student's answers in a round.

    `divergence` is KL(student || teacher) in nats a token, estimated from the sampled tokens; it
    and `length` are over answers to training examples, as are the shares.
    """

    num: int
    length: float
    truncated: float
    repeated: float
    divergence: float


@dataclass
class _Round:
    """The two artifacts of a round, read."""

    responses: list[Response]
    own: Signals
    scored: dict[str, Response]
    scores: Signals
    examples: dict[str, Example] = field(default_factory=dict)


def build(stage: Stage, base: Path, end_ids: list[int]) -> tuple[TrainingData, Answers]:
    """Returns the items of a round, with stored rows among them where the job mixes them in, and
    what became of the student's answers.

    Raises `DataError` where nothing is left, and where scores belong to other tokens.
    """
    found = _read(stage)
    tokenizer = encoding.load_tokenizer(stage.spec.base)
    own = [found.examples[r.example_id] for r in found.responses]
    prompts = encoding.render_each(tokenizer, [e.messages for e in own], [e.tools for e in own])
    token_map, vocabulary = model_folder.token_map(base)
    shared = stage.facts("generate").get("token_map_sha256") == token_map
    table = min(vocabulary, int(model_folder.text_config(base).get("vocab_size") or vocabulary))
    items: dict[Split, list[TrainingItem]] = {"train": [], "validation": [], "test": []}
    left_out: Counter[str] = Counter()
    for response, prompt, example in zip(found.responses, prompts, own, strict=True):
        row = _row(response, prompt, end_ids, stage.spec.train.max_length)
        score = found.scores.get(response.id)
        if isinstance(row, str) or score is None:
            left_out[row if isinstance(row, str) else "the teacher gave no score"] += 1
            continue
        signal = within(vocabulary, aligned(row, score)) if shared else score
        items[example.split].append((row, signal))
    if not shared:
        left_out[UNKNOWN] = _translate(stage, found, items, (tokenizer, table, end_ids))
    answers = _answers(found)
    num_own = len(items["train"])
    if not num_own:
        reasons = "; ".join(f"{number:,}: {reason}" for reason, number in left_out.most_common())
        raise DataError(
            f"train.on_policy: no answer of the student can be learned from ({reasons})"
        )
    stored = _stored(stage, base, end_ids, num_own)
    items["train"] += stored
    told = [(why, n) for why, n in left_out.most_common() if n]
    notes = [f"{n:,} answers are not learned from: {why}" for why, n in told]
    weights = [1.0] * len(items["train"])
    return TrainingData(items["train"], items["validation"], 0, weights, notes), answers


def _read(stage: Stage) -> _Round:
    """Returns the round's answers and scores, and the examples that they belong to."""
    answered, scored = (
        next(stage.input(name) for name in stage.inputs if name.startswith(prefix))
        for prefix in (rounds.ROLLOUTS, rounds.SCORES)
    )
    found = _Round(
        [r for r in read_responses(answered) if r.token_ids],
        read_signals(answered),
        {r.id: r for r in read_responses(scored)},
        {name: largest(stage.spec.train.top_k, s) for name, s in read_signals(scored).items()},
    )
    wanted = {response.example_id for response in found.responses}
    for example in stream_examples(stage.input("prepare"), "train", "validation"):
        if example.id in wanted:
            found.examples[example.id] = example
    return found


def _row(
    response: Response, prompt: list[int] | str, end_ids: list[int], most: int
) -> encoding.EncodedRow | str:
    """Returns the training sequence of an answer, or why it is not learned from."""
    if isinstance(prompt, str):
        return f"the student cannot be given their prompt ({prompt})"
    if response.state not in ("accepted", "truncated"):
        return f"they are {response.state}"
    row = encoding.encode(response.id, prompt, response.token_ids)
    if len(row.input_ids) >= most:
        return f"they are longer than train.max_length: {most}"
    return row if ends_well(row, end_ids, response.state) else training_rows.ODD_END


def _translate(
    stage: Stage,
    found: _Round,
    items: dict[Split, list[TrainingItem]],
    tokens: tuple[Any, int, list[int]],
) -> int:
    """Puts the scores of a teacher with other tokens into the items, translated by bytes. Returns
    how many it took out: those of which the teacher says nothing at any token."""
    scored = rounds.scores_of(rounds.number_of(stage.inputs))
    if not (other := other_tokens.translator(stage, *tokens, scored)):
        return 0
    texts = {response.id: response.text for response in found.responses}
    pairs = [
        (found.scored[r.id], found.examples[r.example_id])
        for r in found.responses
        if r.id in found.scored
    ]
    other_tokens.by_bytes(stage, items, other, found.scores, (texts, pairs, {}))
    number = 0
    for split, part in items.items():
        items[split] = [each for each in part if _is_known(each[1])]
        number += len(part) - len(items[split])
    return number


def _is_known(signal: Signal | TranslatedSignal | None) -> bool:
    return isinstance(signal, TranslatedSignal) and signal.num_known > 0


def _answers(found: _Round) -> Answers:
    """Returns the counts of the answers to training examples."""
    train = [r for r in found.responses if found.examples[r.example_id].split == "train"]
    gaps, num_tokens = 0.0, 0
    for response in train:
        own, score = found.own.get(response.id), found.scores.get(response.id)
        if own is not None and score is not None:
            # E of log q - log p over tokens that q wrote: unbiased for KL(q || p).
            gaps += float(own.target_logprobs_T.sum()) - float(score.target_logprobs_T.sum())
            num_tokens += len(own.target_logprobs_T)
    number = max(1, len(train))
    return Answers(
        num=len(train),
        length=sum(r.num_tokens for r in train) / number,
        truncated=sum(r.state == "truncated" for r in train) / number,
        repeated=sum(_repeats(r.text) for r in train) / number,
        divergence=gaps / max(1, num_tokens),
    )


def _repeats(text: str) -> bool:
    return text_stats.loops(text) or text_stats.repeated_share(text) > REPEATED


def _stored(stage: Stage, base: Path, end_ids: list[int], num_own: int) -> list[TrainingItem]:
    """Returns stored rows of the teacher's, as many as the job mixes among the student's own."""
    knobs = stage.spec.train.on_policy
    assert knobs
    if knobs.share == 1:
        return []
    decisions = read_decisions(stage.input("curate"))
    split = {e.id for e in stream_examples(stage.input("prepare"), "train")}
    kept = [
        r.id
        for r in read_responses(stage.input("generate"))
        if r.example_id in split and decisions[r.id].kept
    ]
    number = min(len(kept), round(num_own * (1 - knobs.share) / knobs.share))
    seed = [stage.spec.train.seed, rounds.number_of(stage.inputs)]
    chosen = np.random.default_rng(seed).permutation(len(kept))[:number]
    only = frozenset(kept[index] for index in chosen)
    return training_rows.build(stage, base, end_ids, only).train
