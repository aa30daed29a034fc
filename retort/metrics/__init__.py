"""Metrics of answers: each function here is one, and a task type or a spec names it.

A metric gives a score an example, of which the mean is taken, or statistics of which only the sums
mean something; None where no answer is known that the text could be held against. What a task type
finds as the answer in a text is scored, not the text.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from retort.data import text_stats
from retort.data.task_types import TaskType
from retort.data.task_types.qa import squad
from retort.metrics.bootstrap import difference as difference
from retort.metrics.bootstrap import examples_needed as examples_needed
from retort.metrics.bootstrap import interval as interval
from retort.metrics.bootstrap import ratio as ratio
from retort.metrics.bootstrap import tells as tells
from retort.metrics.kinds import form as form
from retort.metrics.kinds import lower_is_better as lower_is_better
from retort.metrics.kinds import value as value
from retort.metrics.scoring import Metric, deciding, labels_of, place
from retort.metrics.scoring import Statistics as Statistics
from retort.metrics.scoring import confusion as confusion
from retort.metrics.scoring import statistics as statistics
from retort.records import Example


def accuracy(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns 1.0 or 0.0: the expected answer or another right one, or not."""
    if example.expected is None:
        return None
    given = task_type.answer(text, example)
    return float(given is not None and any(task_type.equal(given, r) for r in _right(example)))


def macro_f1(
    example: Example, text: str, task_type: TaskType, labels: Sequence[str] = ()
) -> list[float] | None:
    """Returns the places of the expected and the given label among `labels`, -1 for no label.

    Their value is the unweighted mean of the F1 of the labels that the examples expect.
    """
    if example.expected is None or not example.options:
        return None
    among = labels or labels_of(task_type, [example])
    pair = example.expected, task_type.answer(text, example)
    return [float(place(task_type, among, answer)) for answer in pair]


def exact_match(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns 1.0 or 0.0: equal to a right answer after SQuAD's normalisation.

    Of a choice among options nothing is said: accuracy does. Source: SQuAD's evaluation (Rajpurkar
    et al., 2016, 2018), in which an answer of articles alone equals no answer.
    """
    if example.expected is None or example.options:
        return None
    given = squad(task_type.answer(text, example) or "")
    return float(given in _squads(example))


def token_f1(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F1 of the words in common with a right answer, the best of all; from 0 to 1.

    Of a choice among options there is no half: None. Source: as of exact_match.
    """
    if example.expected is None or example.options:
        return None
    given = squad(task_type.answer(text, example) or "").split()
    return max(_f1(given, right.split()) for right in _squads(example))


def bleu(example: Example, text: str, task_type: TaskType) -> list[float] | None:
    """Returns BLEU's counts: words of answer and reference, right and all n-grams of 1 to 4 words.

    Their value is sacrebleu's corpus BLEU with its defaults, from 0 to 100; its tokenizer (13a)
    takes a text of a script without spaces as one word. Source: Papineni et al. (2002); Post, "A
    Call for Clarity in Reporting BLEU Scores" (2018).
    """
    wanted = _wanted(example, task_type)
    if wanted is None:
        return None
    found = _bleu().sentence_score(task_type.answer(text, example) or "", [wanted])
    return [float(n) for n in (found.sys_len, found.ref_len, *found.counts, *found.totals)]


def rouge_1(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of the single words in common; the rest as in rouge_l."""
    return _rouge("rouge1", example, text, task_type)


def rouge_2(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of the word pairs in common; the rest as in rouge_l."""
    return _rouge("rouge2", example, text, task_type)


def rouge_l(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of ROUGE-L with the expected text, else the reference; from 0 to 1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as Google's
    rouge-score computes it, with stemming. It reads Latin letters and digits alone.
    """
    return _rouge("rougeL", example, text, task_type)


def length_ratio(example: Example, text: str, task_type: TaskType) -> list[float] | None:
    """Returns the words of the answer and of the reference; their value is all by all."""
    wanted = text_stats.words(_wanted(example, task_type) or "")
    given = text_stats.words(task_type.answer(text, example) or "")
    return [float(len(given)), float(len(wanted))] if wanted else None


def entity_coverage(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the share of the reference's names and numbers that the answer holds, from 0 to 1.

    Names are runs of capitalised words that begin no sentence; the answer may have their words
    anywhere, in any case, and a number as digits or (to twelve) in English. Scripts without
    capitals have numbers alone. None for a reference that has neither.
    """
    wanted = _wanted(example, task_type) or ""
    names, numbers = set(text_stats.names(wanted)), set(text_stats.numbers(wanted))
    if not names and not numbers:
        return None
    given = task_type.answer(text, example) or ""
    said, told = (
        text_stats.name_words(given),
        {*text_stats.numbers(given), *text_stats.spoken_numbers(given)},
    )
    held = sum(text_stats.parts(name) <= said for name in names) + len(numbers & told)
    return held / (len(names) + len(numbers))


def agreement(
    example: Example,
    text: str,
    teacher_text: str,
    task_type: TaskType,
    by: Sequence[Metric] = (),
) -> float:
    """Returns how far an answer is the teacher's, from 0 to 1.

    It is the task type's first metric that applies and is a mean, with the teacher's answer as the
    right one: for `accuracy` 1.0 or 0.0 by the task type's `equal`, for `rouge_l` a share. `by`
    are these metrics, where they are known already.
    """
    wanted = task_type.answer(teacher_text, example)
    if wanted is None:
        return 0.0
    as_expected = replace(example, expected=wanted, reference=teacher_text, answers=None)
    for metric in by or deciding(task_type):
        score = metric(as_expected, text, task_type)
        if score is not None and not isinstance(score, list):
            return score
    return 0.0


def _right(example: Example) -> list[str]:
    """Returns all right answers of an example that has one."""
    return example.answers or [str(example.expected)]


def _squads(example: Example) -> list[str]:
    """Returns the right answers in SQuAD's normal form, without those of which nothing is left."""
    return [answer for answer in map(squad, _right(example)) if answer] or [""]


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    if not common:
        return 0.0
    # In SQuAD's order of operations: the last digit is the same.
    precision, recall = common / len(given), common / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def _wanted(example: Example, task_type: TaskType) -> str | None:
    """Returns the text an answer is held against: the expected one, else the reference's."""
    if example.expected is not None or example.reference is None:
        return example.expected
    return task_type.answer(example.reference, example)


def _rouge(kind: str, example: Example, text: str, task_type: TaskType) -> float | None:
    wanted = _wanted(example, task_type)
    if wanted is None:
        return None
    given = task_type.answer(text, example) or ""
    return float(_rouge_scorer(kind).score(wanted, given)[kind].fmeasure)


@cache
def _rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # Of one sentence only the counts are taken; so asked, sacrebleu does not warn of its value.
    return BLEU(effective_order=True)
