"""What a data card counts: one pass over the examples and one over the responses.

They are joined by id: an example is a place in arrays from its first sight on, so that a million
rows need no more memory than a few numbers each. Only clusters need a second look, at every n-th
train example.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data import balance, text_stats
from retort.records import Decision, Response, Split, chat_text, is_expanded, read_lines
from retort.stages.curate.data_card.card import FunnelStep, LengthCounts, LengthHistogram
from retort.stages.stage import Stage, stream_examples
from retort.store import Folder

Numbers = npt.NDArray[Any]
ASKED: tuple[Split, ...] = ("train", "validation")
MOST_CLUSTERED = 20_000
NOT_COUNTED = -1
OWN = "own rows"
MOST_BINS, IN_EQUAL_BINS = 30, 99
# The fact of prepare, its step's name, and why rows are removed.
REMOVED = (
    ("num_quarantined", "quarantined", "bad rows, each kept with its reason"),
    ("num_duplicates", "exact duplicates", "ask the same as a row before"),
    ("num_near_duplicates", "near duplicates", "ask nearly the same as a row before"),
    ("num_contaminated", "contaminated", "hold what a held-out row holds"),
    ("num_left_out", "left out", "above prepare.balance.cap or prepare.limit"),
)


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


@dataclass
class Lengths:
    """How long prompts and answers are; 0 is unknown: the engine counted none."""

    prompts: "array[int]" = field(default_factory=lambda: array("q"))
    answers: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass
class Responses:
    """What is counted of the responses; groups and lengths are of those to train examples.

    `after` counts those learned from by group, `weighted` how often a pass over the data shows
    them. `learned` is as long as what the student reads, where that is not the teacher's text.
    """

    states: "Counter[str]" = field(default_factory=Counter)
    reasons: "Counter[str]" = field(default_factory=Counter)
    num_responses: int = 0
    num_learned: int = 0
    num_watched: int = 0
    num_unaccepted_kept: int = 0
    is_weighted: bool = False
    after: "Counter[int]" = field(default_factory=Counter)
    weighted: dict[int, float] = field(default_factory=dict)
    all: Lengths = field(default_factory=Lengths)
    learned: Lengths = field(default_factory=Lengths)


def count_examples(stage: Stage) -> Examples:
    """Returns the examples of train and validation, and the groups of those of train."""
    prepared, by = stage.input("prepare"), stage.spec.prepare.balance.by
    examples = Examples(by, *_units(stage.input("generate")))
    numbers: dict[str, int] = {}
    for split in ASKED:
        start = len(examples.places)
        for example in stream_examples(prepared, split):
            examples.places[example.id] = len(examples.places)
            counts = split == "train" and by != "cluster"
            group = balance.group_of(example, by) if counts else None
            place = NOT_COUNTED if group is None else numbers.setdefault(group, len(numbers))
            examples.group_E.append(place)
            if examples.prompt_unit == "words":
                examples.words_E.append(_num_words(chat_text(example.messages)))
        examples.num_examples[split] = len(examples.places) - start
    examples.group_names = list(numbers)
    if by == "auto":
        examples.by = "label" if set(numbers) - {balance.ALL} else "cluster"
    if examples.by == "cluster":
        _cluster(stage, examples)
    return examples


def _cluster(stage: Stage, examples: Examples) -> None:
    """Groups train examples by what they ask; evenly spread ones where clusters are only shown.

    Where the job is balanced by cluster these are the clusters that curation weighs by.
    """
    knobs = stage.spec.prepare.balance
    most = MOST_CLUSTERED if knobs.by == "auto" else examples.num_examples["train"]
    step = max(1, -(-examples.num_examples["train"] // max(most, 1)))
    places: list[int] = []
    questions: list[str] = []
    for place, example in enumerate(stream_examples(stage.input("prepare"), "train")):
        examples.group_E[place] = NOT_COUNTED
        if place % step == 0:
            places.append(place)
            questions.append(balance.text_of(example))
    groups, names = balance.clusters(questions, knobs.num_clusters)
    examples.group_names, numbers = names, {name: number for number, name in enumerate(names)}
    for place, group in zip(places, groups, strict=True):
        examples.group_E[place] = numbers[group]
    examples.num_sampled = len(places) if step > 1 else None


def origins(
    stage: Stage, expanded: Mapping[str, Any], decisions: list[Decision]
) -> dict[str, dict[str, int]]:
    """Returns what became of the job's own training prompts, and of those that a model wrote in
    each way: how many are asked, how many were refused, and of how many responses are learned."""
    train = stream_examples(stage.input("prepare"), "train")
    way_of = {e.id: str(e.metadata["way"]) if is_expanded(e) else OWN for e in train}
    kept, asked = {d.id for d in decisions if d.kept}, Counter(way_of.values())
    responses = _responses(stage.input("generate"))
    learned = Counter(way_of.get(r.example_id) for r in responses if r.id in kept)
    return {
        way: {
            "examples": asked[way],
            "refused": expanded["num_refused"].get(way, 0),
            "learned from": learned[way],
        }
        for way in dict.fromkeys((OWN, *asked, *expanded["num_refused"]))
    }


def count_responses(stage: Stage, examples: Examples, decisions: list[Decision]) -> Responses:
    """Returns what is counted of the responses and of the decisions on them."""
    decided = {decision.id: decision for decision in decisions}
    counted = Responses()
    if any(decision.target_text is not None for decision in decisions):
        # The teacher's tokens are not those of another text; words compare the two.
        examples.answer_unit = "words"
    for response in _responses(stage.input("generate")):
        decision, place = decided[response.id], examples.places[response.example_id]
        counted.num_responses += 1
        counted.states[response.state] += 1
        counted.num_unaccepted_kept += decision.kept and response.state != "accepted"
        if not decision.kept:
            counted.reasons[f"{decision.filter}: {decision.reason}"] += 1
        if place >= examples.num_examples["train"]:
            counted.num_watched += decision.kept
        else:
            _count_train(counted, examples, response, decision)
    return counted


def _count_train(
    counted: Responses, examples: Examples, response: Response, decision: Decision
) -> None:
    """Adds one response to a train example."""
    place = examples.places[response.example_id]
    prompt, answer, target = response.num_prompt_tokens, response.num_tokens, response.num_tokens
    if examples.prompt_unit == "words":
        chat = response.messages
        prompt = examples.words_E[place] if chat is None else _num_words(chat_text(chat))
    if examples.answer_unit == "words":
        answer = target = _num_words(response.text)
        if decision.target_text is not None:
            target = _num_words(decision.target_text)
    counted.all.prompts.append(prompt)
    counted.all.answers.append(answer)
    if not decision.kept:
        return
    counted.learned.prompts.append(prompt)
    counted.learned.answers.append(target)
    counted.num_learned += 1
    counted.is_weighted |= decision.weight != 1
    if (group := examples.group_E[place]) != NOT_COUNTED:
        counted.after[group] += 1
        counted.weighted[group] = counted.weighted.get(group, 0.0) + decision.weight


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


def _num_words(text: str) -> int:
    return len(text_stats.words(text))


def funnel(
    facts: Mapping[str, Any], num_examples: dict[Split, int], responses: Responses
) -> list[FunnelStep]:
    """Returns the steps in order, each the one before less what it took; `facts` are prepare's.

    Rows count up to "examples asked", responses from there on.
    """
    examples, held_out = sum(num_examples.values()), facts.get("num_examples", {}).get("test", 0)
    removed = {name: facts.get(name, 0) for name, _, _ in REMOVED}
    num_rows = sum(facts.get("num_rows", {}).values())
    steps = [FunnelStep("rows in", num_rows or examples + held_out + sum(removed.values()))]

    def take(step: str, num: int, why: str) -> None:
        steps.append(FunnelStep(step, steps[-1].count - num, num, why if num else ""))

    for name, step, why in REMOVED:
        take(step, removed[name], why)
    if unknown := steps[-1].count - held_out - examples:
        take("not accounted for", unknown, "prepare counted them nowhere")
    take("examples asked", held_out, "test rows, set apart for the comparison")
    num = responses.num_responses
    if num != examples:
        ratio = num / max(examples, 1)
        take("responses", examples - num, f"{ratio:.3g} to an example on average")
    accepted = responses.states["accepted"]
    others = balance.largest({s: n for s, n in responses.states.items() if s != "accepted"}, 9)
    failed = ", ".join(f"{count:,} {state}" for state, count in others.items())
    take("responses accepted", num - accepted, failed)
    why = "rejected by the filters"
    if responses.num_unaccepted_kept:
        why += f"; {responses.num_unaccepted_kept:,} not accepted were kept"
    take("kept", accepted - responses.num_learned - responses.num_watched, why)
    take("learned from", responses.num_watched, "validation: watched, not learned from")
    return steps


def lengths(examples: Examples, responses: Responses) -> dict[str, LengthHistogram]:
    """Returns the lengths of `prompts` and `answers`, those of unknown length left out.

    All bins are equally wide but the last, which reaches to the longest: one text of a hundred
    thousand tokens would else leave all others in the first bin.
    """
    everything, learned = responses.all, responses.learned
    return {
        "prompts": _histogram(examples.prompt_unit, everything.prompts, learned.prompts),
        "answers": _histogram(examples.answer_unit, everything.answers, learned.answers),
    }


def _histogram(unit: str, before: "array[int]", after: "array[int]") -> LengthHistogram:
    all_known, learned = (values[values > 0] for values in map(np.asarray, (before, after)))
    edges = _edges(np.concatenate([all_known, learned]))
    return LengthHistogram(unit, edges.tolist(), _bins(all_known, edges), _bins(learned, edges))


def _edges(values: Numbers) -> Numbers:
    """Returns the edges of at most 30 bins, whole numbers."""
    if not len(values):
        return np.zeros(0, dtype=int)
    least, longest = int(values.min()), int(values.max())
    most = int(np.percentile(values, IN_EQUAL_BINS, method="lower"))
    # A tail that is short enough is shown as it is.
    most = longest if longest - least <= 1.5 * (most - least) else most
    width = _round((most - least + 1) / (MOST_BINS - 2))
    edges = np.arange(least // width * width, most + width + 1, width)
    return edges if edges[-1] > longest else np.append(edges, longest + 1)


def _round(least: float) -> int:
    """Returns the smallest round number that is not smaller: 1, 2, 5, 10, 20, 25, 50 and so on."""
    tens = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    rounds = (part * tens for part in (1.0, 2.0, 2.5, 5.0, 10.0))
    return next(int(number) for number in rounds if number >= least and number.is_integer())


def _bins(values: Numbers, edges: Numbers) -> LengthCounts:
    if not len(values):
        return LengthCounts(0, None, None, None, None, [0] * max(len(edges) - 1, 0))
    median, p95 = (float(value) for value in np.percentile(values, [50, 95]))
    counts = np.histogram(values, edges)[0].tolist()
    return LengthCounts(len(values), int(values.min()), median, p95, int(values.max()), counts)
