"""One pass over the examples and one over the responses, a few numbers of each kept.

They are joined by id: an example is a place in arrays from its first sight on. Only clusters need
a second look, at every n-th train example.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data import balance, text_stats
from retort.records import Decision, Message, Response, Split, chat_text, read_lines
from retort.stages.stage import Stage, stream_examples
from retort.store import Folder

Numbers = npt.NDArray[Any]
ASKED: tuple[Split, ...] = ("train", "validation")
MOST_CLUSTERED = 20_000
NOT_COUNTED = -1


@dataclass
class Examples:
    """The examples that the teacher is asked: E of them, in order, those of train first.

    `group_E` is each one's place in `group_names`, -1 where it is not counted: a validation
    example, or one left out of a sample. `words_E` is empty where prompts are counted in tokens.
    """

    by: str
    prompt_unit: str
    answer_unit: str
    places: dict[str, int] = field(default_factory=dict)
    num_examples: dict[Split, int] = field(default_factory=dict)
    group_names: list[str] = field(default_factory=list)
    group_E: "array[int]" = field(default_factory=lambda: array("q"))
    words_E: "array[int]" = field(default_factory=lambda: array("q"))
    num_sampled: int | None = None

    @property
    def before(self) -> Numbers:
        """The train examples of each group."""
        groups = np.asarray(self.group_E)
        return np.bincount(groups[groups >= 0], minlength=len(self.group_names))


@dataclass
class Responses:
    """What is counted of the responses; lengths are of those to train examples, T of them.

    `learned_T` says which of those are learned from; `learned_lengths_T` is how long the student's
    text is, where that is not the teacher's. A length of 0 is none: the engine told no number.
    """

    prompt_unit: str
    answer_unit: str
    num_groups: int
    states: "Counter[str]" = field(default_factory=Counter)
    reasons: "Counter[str]" = field(default_factory=Counter)
    num_responses: int = 0
    num_learned: int = 0
    num_watched: int = 0
    num_unaccepted_kept: int = 0
    is_weighted: bool = False
    group_T: "array[int]" = field(default_factory=lambda: array("q"))
    prompts_T: "array[int]" = field(default_factory=lambda: array("q"))
    answers_T: "array[int]" = field(default_factory=lambda: array("q"))
    learned_lengths_T: "array[int]" = field(default_factory=lambda: array("q"))
    learned_T: "array[int]" = field(default_factory=lambda: array("b"))
    weight_T: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def after(self) -> Numbers:
        """The responses learned from in each group."""
        return self._sums(np.ones(len(self.group_T)))

    @property
    def weighted(self) -> Numbers:
        """How many rows of each group one pass over the data shows."""
        return self._sums(np.asarray(self.weight_T))

    def _sums(self, values: Numbers) -> Numbers:
        groups = np.asarray(self.group_T)
        counted = (np.asarray(self.learned_T) > 0) & (groups >= 0)
        return np.bincount(groups[counted], values[counted], minlength=self.num_groups)


def count_examples(stage: Stage) -> Examples:
    """Returns the examples of train and validation, and the groups of those of train."""
    prepared, by = stage.input("prepare"), stage.spec.prepare.balance.by
    found = Examples(by, *_units(stage.input("generate")))
    numbers: dict[str, int] = {}
    for split in ASKED:
        start = len(found.places)
        for example in stream_examples(prepared, split):
            found.places[example.id] = len(found.places)
            counts = split == "train" and by != "cluster"
            group = balance.group_of(example, by) if counts else None
            place = NOT_COUNTED if group is None else numbers.setdefault(group, len(numbers))
            found.group_E.append(place)
            if found.prompt_unit == "words":
                found.words_E.append(_num_words(example.messages))
        found.num_examples[split] = len(found.places) - start
    found.group_names = list(numbers)
    if by == "auto":
        found.by = "label" if set(numbers) - {balance.ALL} else "cluster"
    if found.by == "cluster":
        _cluster(stage, found)
    return found


def _cluster(stage: Stage, found: Examples) -> None:
    """Groups train examples by what they ask; evenly spread ones where nobody asked for it.

    Where the job is balanced by cluster these are the clusters that curation weighs by.
    """
    knobs = stage.spec.prepare.balance
    most = MOST_CLUSTERED if knobs.by == "auto" else found.num_examples["train"]
    step = max(1, -(-found.num_examples["train"] // max(most, 1)))
    places: list[int] = []
    questions: list[str] = []
    for place, example in enumerate(stream_examples(stage.input("prepare"), "train")):
        found.group_E[place] = NOT_COUNTED
        if place % step == 0:
            places.append(place)
            questions.append(balance.text_of(example))
    groups, names = balance.clusters(questions, knobs.num_clusters)
    found.group_names, numbers = names, {name: number for number, name in enumerate(names)}
    for place, group in zip(places, groups, strict=True):
        found.group_E[place] = numbers[group]
    found.num_sampled = len(places) if step > 1 else None


def count_responses(stage: Stage, examples: Examples, decisions: list[Decision]) -> Responses:
    """Returns what is counted of the responses and of the decisions on them."""
    decided = {decision.id: decision for decision in decisions}
    found = Responses(examples.prompt_unit, examples.answer_unit, len(examples.group_names))
    if any(decision.target_text is not None for decision in decisions):
        # The teacher's tokens are not those of another text; words compare the two.
        found.answer_unit = "words"
    for response in _responses(stage.input("generate")):
        decision, place = decided[response.id], examples.places[response.example_id]
        found.num_responses += 1
        found.states[response.state] += 1
        found.num_unaccepted_kept += decision.kept and response.state != "accepted"
        if not decision.kept:
            found.reasons[f"{decision.filter}: {decision.reason}"] += 1
        if place >= examples.num_examples["train"]:
            found.num_watched += decision.kept
            continue
        found.num_learned += decision.kept
        found.is_weighted |= decision.kept and decision.weight != 1
        _measure(found, examples, response, decision)
    return found


def _measure(found: Responses, examples: Examples, response: Response, decision: Decision) -> None:
    """Adds one response to a train example to the arrays."""
    place = examples.places[response.example_id]
    found.group_T.append(examples.group_E[place])
    found.learned_T.append(decision.kept)
    found.weight_T.append(decision.weight)
    if found.prompt_unit == "tokens":
        found.prompts_T.append(response.num_prompt_tokens)
    elif response.messages is not None:
        found.prompts_T.append(_num_words(response.messages))
    else:
        found.prompts_T.append(examples.words_E[place])
    if found.answer_unit == "tokens":
        found.answers_T.append(response.num_tokens)
        found.learned_lengths_T.append(response.num_tokens)
        return
    length = len(text_stats.words(response.text))
    learned = (
        length if decision.target_text is None else len(text_stats.words(decision.target_text))
    )
    found.answers_T.append(length)
    found.learned_lengths_T.append(learned)


def _units(generated: Folder) -> tuple[str, str]:
    """Returns whether prompts and answers are measured in tokens, which not every engine counts.

    The first file with any number decides: an engine counts in all of its answers or in none.
    """
    prompts = answers = False
    for response in _responses(generated):
        prompts |= response.num_prompt_tokens > 0
        answers |= response.num_tokens > 0
        if prompts and answers:
            break
    return "tokens" if prompts else "words", "tokens" if answers else "words"


def _responses(generated: Folder) -> Iterator[Response]:
    """Yields all responses, holding one file at a time."""
    for name in generated.files():
        if name.startswith("responses-"):
            yield from read_lines(Response, generated.read(name))


def _num_words(messages: list[Message]) -> int:
    return len(text_stats.words(chat_text(messages)))
