"""Two students on the same examples: which is better, or why that cannot be told.

Examples are the same when their questions and expected answers are, whatever their ids.
"""

from dataclasses import dataclass
from itertools import combinations

from retort import metrics
from retort.jobs.compare.runs import Run
from retort.metrics.comparison.formatting import gap, gaps, p_value, unit
from retort.metrics.comparison.shapes import Difference
from retort.spec import Evaluate

# Metrics that hold an answer against the teacher's: with another teacher they say something else.
OF_TEACHER = ("agreement", "kl_to_teacher")
ExampleScores = dict[str, list[float]]  # by example's id


@dataclass(frozen=True)
class StudentPair:
    """Two runs and the difference of their students, first - second, in words too.

    `difference` and `outcome` are None where the two cannot be compared, `metric` where they have
    none in common.
    """

    runs: tuple[str, str]
    words: str
    metric: str | None = None
    difference: Difference | None = None

    @property
    def outcome(self) -> str | None:
        """The first student is above or below the second, or that is unclear."""
        return self.difference.outcome if self.difference else None


def pairs(runs: list[Run]) -> list[StudentPair]:
    """Returns every two of the runs, compared or with the reason why they are not."""
    scores = {run.label: run.statistics() for run in runs}
    questions = {
        run.label: run.questions(set(known)) if (known := scores[run.label]) else None
        for run in runs
    }
    compared = []
    for one, other in combinations(runs, 2):
        first, second = scores[one.label], scores[other.label]
        if why := _not_ranked(one, other):
            compared.append(_apart(one, other, f"are not ranked: {why}"))
        elif why := _not_the_same(one, other, questions):
            compared.append(_apart(one, other, f"are not compared example by example: {why}"))
        else:
            assert first and second, "their questions are known"
            compared.append(_compared(one, other, first, second))
    return compared


def _not_ranked(one: Run, other: Run) -> str:
    """Returns why two runs cannot be ranked at all; nothing where they can."""
    kinds = [run.content.task_type for run in (one, other)]
    if kinds[0] != kinds[1]:
        return f"their tasks are of different types ({kinds[0]}, {kinds[1]})"
    if one.metric != other.metric:
        return f"they are judged by different metrics ({one.metric}, {other.metric})"
    teachers = [run.content.models["teacher"].model for run in (one, other)]
    if one.metric in OF_TEACHER and teachers[0] != teachers[1]:
        return f"{one.metric} is with different teachers ({teachers[0]}, {teachers[1]})"
    return ""


def _not_the_same(one: Run, other: Run, questions: dict[str, dict[str, str] | None]) -> str:
    """Returns why two runs were not scored on the very same examples; nothing where they were."""
    first, second = questions[one.label], questions[other.label]
    for run, known in ((one, first), (other, second)):
        if not known:
            return f"the scores of each example of {run.label} cannot be read from here"
    assert first and second
    if first == second:
        return ""
    common = sum(second.get(key) == digest for key, digest in first.items())
    return (
        f"their examples are not the same: {one.label} {len(first):,}, {other.label} "
        f"{len(second):,}, {common:,} of them in common"
    )


def _compared(one: Run, other: Run, first: ExampleScores, second: ExampleScores) -> StudentPair:
    knobs, metric = Evaluate(), one.metric
    difference = Difference.of(
        metrics.difference(metric, first, second, knobs.num_bootstrap, knobs.seed)
    )
    words = in_words((one.label, other.label), metric, difference, "examples")
    return StudentPair((one.label, other.label), words, metric, difference)


def in_words(names: tuple[str, str], metric: str, difference: Difference, of: str) -> str:
    """Returns which of two models is better in a metric, or that it cannot be told."""
    p = p_value(difference.p_value)
    measured = (
        f"{gap(difference.value, metric)}{unit(metric)} ({gaps(difference, metric)}), "
        f"p {p if p.startswith('<') else f'= {p}'}, on the same {difference.n:,} {of}"
    )
    if difference.outcome == "unclear":
        return f"these {of} cannot tell {names[0]} from {names[1]} in {metric}: {measured}"
    is_better = (difference.outcome == "above") != metrics.lower_is_better(metric)
    better = "better" if is_better else "worse"
    return f"{names[0]} is {better} than {names[1]} in {metric}: {measured}"


def _apart(one: Run, other: Run, why: str) -> StudentPair:
    metric = one.metric if one.metric == other.metric else None
    return StudentPair((one.label, other.label), f"{one.label} and {other.label} {why}", metric)
