"""The metrics of answers: every function here is one, named by a task type or a spec.

A metric returns a score for an example, whose mean is the metric's value, or statistics that are
summed first; None if no answer is known to compare with. It scores the answer that the task type
finds in a text, not the text.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from retort.data import text_stats
from retort.data.task_types import TaskType
from retort.metrics import rouge
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
from retort.metrics.scoring import decided as decided
from retort.metrics.scoring import scored as scored
from retort.metrics.scoring import statistics as statistics
from retort.records import Example


def accuracy(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns 1.0 for a right answer, else 0.0."""
    if example.expected is None:
        return None
    answer = task_type.answer(text, example)
    return float(answer is not None and any(task_type.equal(answer, r) for r in _right(example)))


def macro_f1(
    example: Example, text: str, task_type: TaskType, labels: Sequence[str] = ()
) -> list[float] | None:
    """Returns the indices of the expected and the predicted label among `labels`, -1 for none.

    The metric's value is the unweighted mean of the F1 of the labels that the examples expect.
    """
    if example.expected is None or not example.options:
        return None
    among = labels or labels_of(task_type, [example])
    pair = example.expected, task_type.answer(text, example)
    return [float(place(task_type, among, answer)) for answer in pair]


def exact_match(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns 1.0 for an answer that equals a right one after SQuAD's normalisation, else 0.0.

    None for a choice among options. Source: SQuAD's evaluation (Rajpurkar et al., 2016, 2018), in
    which an answer of articles alone equals no answer.
    """
    if example.expected is None or example.options:
        return None
    answer = _squad(task_type.answer(text, example) or "")
    return float(answer in _squads(example))


def token_f1(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the best F1 of the words shared with a right answer, from 0 to 1.

    None for a choice among options. Source: as of exact_match.
    """
    if example.expected is None or example.options:
        return None
    words = _squad(task_type.answer(text, example) or "").split()
    return max(_f1(words, right.split()) for right in _squads(example))


def bleu(example: Example, text: str, task_type: TaskType) -> list[float] | None:
    """Returns BLEU's counts: words of answer and reference, right and all n-grams of 1 to 4 words.

    Their value is sacrebleu's corpus BLEU with its defaults, from 0 to 100; its tokenizer (13a)
    takes a text of a script without spaces as one word. Source: Papineni et al. (2002); Post, "A
    Call for Clarity in Reporting BLEU Scores" (2018).
    """
    wanted = _wanted(example, task_type)
    if wanted is None:
        return None
    score = _bleu().sentence_score(task_type.answer(text, example) or "", [wanted])
    return [float(n) for n in (score.sys_len, score.ref_len, *score.counts, *score.totals)]


def rouge_1(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of the single words in common; the rest as in rouge_l."""
    return _rouge(partial(rouge.rouge_n, n=1), example, text, task_type)


def rouge_2(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of the word pairs in common; the rest as in rouge_l."""
    return _rouge(partial(rouge.rouge_n, n=2), example, text, task_type)


def rouge_l(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the F-measure of ROUGE-L with the expected text, else the reference; from 0 to 1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as Google's
    rouge-score computes it, with stemming, but on the words of every script.
    """
    return _rouge(rouge.rouge_l, example, text, task_type)


def length_ratio(example: Example, text: str, task_type: TaskType) -> list[float] | None:
    """Returns the numbers of words of answer and reference; the value is the ratio of the sums."""
    wanted = text_stats.words(_wanted(example, task_type) or "")
    words = text_stats.words(task_type.answer(text, example) or "")
    return [float(len(words)), float(len(wanted))] if wanted else None


def entity_coverage(example: Example, text: str, task_type: TaskType) -> float | None:
    """Returns the share of the reference's names and numbers that occur in the answer, 0 to 1.

    Names are runs of capitalised words that begin no sentence; in the answer their words may be
    anywhere, in any case, and a number in digits or (up to twelve) in English words. Scripts
    without capitals have numbers alone. None for a reference that has neither.
    """
    wanted = _wanted(example, task_type) or ""
    names, numbers = set(text_stats.names(wanted)), set(text_stats.numbers(wanted))
    if not names and not numbers:
        return None
    answer = task_type.answer(text, example) or ""
    words = text_stats.name_words(answer)
    values = {*text_stats.numbers(answer), *text_stats.spoken_numbers(answer)}
    covered = sum(text_stats.parts(name) <= words for name in names) + len(numbers & values)
    return covered / (len(names) + len(numbers))


def agreement(
    example: Example,
    text: str,
    teacher_text: str,
    task_type: TaskType,
    by: Sequence[Metric] = (),
) -> float:
    """Returns the agreement of an answer with the teacher's, from 0 to 1.

    It is the task type's first metric that applies and is a mean, with the teacher's answer as the
    right one: 1.0 or 0.0 for `accuracy`, a share for `rouge_l`. `by` are these metrics, if known.
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


def _squad(text: str) -> str:
    """Returns a text as SQuAD's own evaluation normalises it: of the letter A nothing is left."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _squads(example: Example) -> list[str]:
    """Returns the right answers in SQuAD's normal form, without those that become empty."""
    return [answer for answer in map(_squad, _right(example)) if answer] or [""]


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    if not common:
        return 0.0
    # The order of operations is SQuAD's, so that the last digit is the same.
    precision, recall = common / len(words), common / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def _wanted(example: Example, task_type: TaskType) -> str | None:
    """Returns the answer to compare with: the expected one, else the reference's."""
    if example.expected is not None or example.reference is None:
        return example.expected
    return task_type.answer(example.reference, example)


def _rouge(
    score: Callable[[str, str], float], example: Example, text: str, task_type: TaskType
) -> float | None:
    wanted = _wanted(example, task_type)
    return None if wanted is None else score(wanted, task_type.answer(text, example) or "")


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # With this option sacrebleu does not warn of the score of a single sentence, which is not used.
    return BLEU(effective_order=True)
